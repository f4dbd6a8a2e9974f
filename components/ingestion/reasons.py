"""Why an episode is kept aside: the words of the column `reason` in quarantine.parquet."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """In order of precedence: an episode with several faults is filed under the first."""

    MISSING_DATA = "missing_data"  # metadata names rows that are not there
    DUPLICATE_INDEX = "duplicate_index"  # different files say that they are the same episode
    UNREADABLE_DATA = "unreadable_data"  # a file of signals that no reader opens
    UNKNOWN_ENCODING = "unknown_encoding"  # messages or video in messages that are not decoded
    MISSING_COLUMN = "missing_column"  # no state, no action or no timestamp
    WRONG_WIDTH = "wrong_width"  # another number of dimensions than the data set has
    FAILED_DEMONSTRATION = "failed_demonstration"  # the recording itself says: no success
    EMPTY_EPISODE = "empty_episode"
    TOO_SHORT = "too_short"
    NAN_IN_SIGNALS = "nan_in_signals"  # NaN or infinite
    BEYOND_LIMITS = "beyond_limits"  # of a dimension, as the mapping declares them
    TIMESTAMPS_NOT_INCREASING = "timestamps_not_increasing"
    CLOCK_JUMP = "clock_jump"  # a step that no pause within an episode explains
    UNKNOWN_TASK = "unknown_task"
    MISSING_VIDEO = "missing_video"
    UNREADABLE_VIDEO = "unreadable_video"
    VIDEO_LENGTH_MISMATCH = "video_length_mismatch"
    UNSAFE_NAME = "unsafe_name"  # an object, not an episode: its name leads out of its source
    # from here on: warnings, unless a suite says that they are blocking
    CLOCK_GAPS = "clock_gaps"
    JITTER = "jitter"
    WRONG_RATE = "wrong_rate"  # the clock's real rate is not the declared one
    VIDEO_DRIFT = "video_drift"  # rows and pictures end at different times
    BLACK_CAMERA = "black_camera"
    FROZEN_CAMERA = "frozen_camera"
    CONSTANT_STATE = "constant_state"
    CONSTANT_ACTION = "constant_action"
    STATE_JUMP = "state_jump"
    GRIPPER_RANGE = "gripper_range"
    UNEQUAL_WIDTHS = "unequal_widths"
    VIDEO_LAG = "video_lag"  # pictures show what the rows say at another time
    ACTION_LAG = "action_lag"  # the state does not follow the action in the usual time


class Problem(NamedTuple):
    """A reason and one sentence that says what was found."""

    reason: Reason
    detail: str
