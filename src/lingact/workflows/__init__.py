"""The jobs: analyze, train, evaluate, saes."""
