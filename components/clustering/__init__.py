"""The clustering stage: read `stage.py` first."""
