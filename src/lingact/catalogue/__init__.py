"""What is known beforehand of languages, benchmarks and licences."""
