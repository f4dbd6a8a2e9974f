"""The sampling stage: read `stage.py` first."""
