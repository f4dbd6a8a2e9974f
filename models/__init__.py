"""Towers, losses and optimizers of the World Action Model: torch only, no paths, no YAML."""
