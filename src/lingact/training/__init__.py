"""The combined loss, and the loop that trains adapters with it."""
