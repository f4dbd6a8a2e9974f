"""The pictures that a training reads: decoded once, at the model's size, kept in the shard store.

A package of its own, so that what is kept outlives changes of the code that trains.
"""
