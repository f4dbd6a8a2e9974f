"""Stages as Jobs on a cluster: `run.py` on the flow's side, `entry.py` inside the pod."""
