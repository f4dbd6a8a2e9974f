"""Robots behind one interface: see `station.py`."""
