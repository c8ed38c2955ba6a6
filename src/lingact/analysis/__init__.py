"""From sums of activations to tables: pure functions."""
