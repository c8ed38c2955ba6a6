"""Reading users' files, and reading and writing lingact's own."""
