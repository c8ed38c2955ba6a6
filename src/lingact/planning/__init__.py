"""Before a run: the memory and the time it takes, and whether this machine has them."""
