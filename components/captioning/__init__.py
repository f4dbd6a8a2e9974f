"""The captioning stage: read `stage.py` first."""
