"""What surrounds a computation: run folder, tracking, processes, signals, terminal."""
