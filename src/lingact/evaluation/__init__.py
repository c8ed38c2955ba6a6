"""Evaluation on benchmarks and held-out text: load tasks, score a model on them, compare models."""
