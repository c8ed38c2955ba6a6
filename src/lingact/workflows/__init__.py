"""The three stories: analyze, train, evaluate."""
