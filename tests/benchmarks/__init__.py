"""Figures in issues and LOG.md come from here: `python -m tests.benchmarks.<name>`."""
