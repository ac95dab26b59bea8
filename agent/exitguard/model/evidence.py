"""Evidence: what a verdict rests on."""

from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class Evidence(Record):
    """One observation behind a verdict: where it was read, what it said (or why it could not say), and when."""

    source: str
    value: str
    observed_at: UtcTime
