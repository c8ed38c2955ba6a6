"""Tables from sums of activations, by pure functions."""
