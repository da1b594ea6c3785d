"""Benchmarks as tasks: a manifest, what scores its rows, and what makes figures of the scores."""
