"""The registration stage: read `stage.py` first."""
