"""The ingestion stage: read `stage.py` first."""
