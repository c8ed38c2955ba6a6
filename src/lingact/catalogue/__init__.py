"""Tables of languages, benchmarks and licences."""
