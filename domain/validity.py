"""The window in which coupons can be used: half-open, [from, until)."""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple


class Validity(NamedTuple):
    """Aware times; `valid_until` itself is outside."""

    valid_from: datetime
    valid_until: datetime

    @classmethod
    def days(cls, first: date, last: date, zone: tzinfo) -> "Validity":
        """The whole of these days, both included, in that zone (a `zoneinfo.ZoneInfo`), as UTC."""
        start = datetime.combine(first, time.min, zone)
        end = datetime.combine(last + timedelta(days=1), time.min, zone)
        return cls(start.astimezone(UTC), end.astimezone(UTC))


def utc(time: datetime) -> datetime:
    """The same instant in UTC; a naive time, and one outside the calendar in UTC, as it is (rules.py refuses both).

    Needed before comparing: PEP 495 calls a time in a repeated hour unequal to every time of another zone.
    """
    try:
        return time if time.utcoffset() is None else time.astimezone(UTC)
    except OverflowError:
        return time
