"""Units by what names and ranges speak for."""

from __future__ import annotations

import re

from components.episodes import GRIPPER

QUATERNION = re.compile(r"quat|^q[xyzw]$")
LENGTH = re.compile(r"^(?:eef?_|tcp_|d)?[xyz]$|eef_position|width|_pos_[xyz]$")
ANGLE = re.compile(r"joint|^q\d+$|^d?(?:roll|pitch|yaw)$|motor")
SPEED = re.compile(r"vel")


def unit(name: str, low: float, high: float) -> str:
    """The SI unit that a name and the range of values speak for; empty where they do not."""
    short, reach = name.lower(), max(abs(low), abs(high))
    if QUATERNION.search(short):
        return "1"
    if GRIPPER.search(short) and not SPEED.search(short):
        if low >= 0:
            return "0..1" if 0.2 < high <= 1.1 else ""
        return "-1..1" if low <= -0.5 and reach <= 1 else ""
    if LENGTH.search(short):
        return "m" if reach < 10 else ""
    if ANGLE.search(short):
        per_s = "/s" if SPEED.search(short) else ""
        return f"rad{per_s}" if 0 < reach < 7 else f"deg{per_s}?" if 7 <= reach <= 400 else ""
    return ""
