"""From residuals to features, and the passes over text that sum them up."""
