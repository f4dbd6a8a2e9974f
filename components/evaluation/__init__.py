"""The evaluation stage: read `stage.py` first."""
