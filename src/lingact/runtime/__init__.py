"""The infrastructure of a run: folder, tracking, processes, signals, terminal."""
