"""The segmentation stage: read `stage.py` first."""
