"""A stage of the miniature project: read `stage.py`."""
