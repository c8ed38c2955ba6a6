"""Benchmarks: what is asked, what a model answers, and what its answers say."""
