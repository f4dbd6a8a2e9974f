"""Why an episode is kept aside: the words of the column `reason` in quarantine.parquet."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """In order of precedence: an episode with several faults is filed under the first."""

    MISSING_DATA = "missing_data"  # metadata names rows that are not there
    UNREADABLE_DATA = "unreadable_data"  # a file of signals that no reader opens
    MISSING_COLUMN = "missing_column"  # no state, no action or no timestamp
    WRONG_WIDTH = "wrong_width"  # another number of dimensions than the data set has
    FAILED_DEMONSTRATION = "failed_demonstration"  # the recording itself says: no success
    EMPTY_EPISODE = "empty_episode"
    TOO_SHORT = "too_short"
    NAN_IN_SIGNALS = "nan_in_signals"  # NaN or infinite
    TIMESTAMPS_NOT_INCREASING = "timestamps_not_increasing"
    UNKNOWN_TASK = "unknown_task"
    MISSING_VIDEO = "missing_video"
    UNREADABLE_VIDEO = "unreadable_video"
    VIDEO_LENGTH_MISMATCH = "video_length_mismatch"


class Problem(NamedTuple):
    """A reason and one sentence that says what was found."""

    reason: Reason
    detail: str
