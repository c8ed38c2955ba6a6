"""The three jobs: analyze, train, evaluate."""
