"""From a model to what it was made from, from an episode to the models it reached: `trace.py`."""
