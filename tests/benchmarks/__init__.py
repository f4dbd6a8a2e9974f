"""Every figure in an issue or in LOG.md comes from one of these: `python -m tests.benchmarks.<name>`."""
