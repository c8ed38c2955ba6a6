"""Files from the Hugging Face hub and from Weights & Biases."""
