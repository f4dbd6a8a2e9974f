"""The pretraining stage: read `stage.py` first."""
