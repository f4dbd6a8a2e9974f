"""Trials: a policy acts on a station, or is replayed against recordings, and each try is a row."""
