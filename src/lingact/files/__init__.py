"""Reading users' files and writing one's own."""
