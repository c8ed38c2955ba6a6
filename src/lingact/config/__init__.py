"""The configuration: its schemas, and what a user is told of mistakes in it."""
