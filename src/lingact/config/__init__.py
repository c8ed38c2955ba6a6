"""The configuration: its schemas, and the messages for mistakes in it."""
