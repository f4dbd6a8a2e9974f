"""Prefect, DVC, git, Kubernetes and the command line: when and where the stages run."""
