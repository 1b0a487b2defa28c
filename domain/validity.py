"""The window in which coupons can be used: half-open, [from, until)."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from coupon_clock.domain.errors import InvalidArgument, Problem

ONE_DAY = timedelta(days=1)


class Validity(NamedTuple):
    """Aware times; `valid_until` itself is outside."""

    valid_from: datetime
    valid_until: datetime

    @classmethod
    def days(cls, first: date, last: date, zone: tzinfo) -> "Validity":
        """The whole of these days, both included, in that zone (a `zoneinfo.ZoneInfo`), as UTC.

        A day begins with its first moment, also where clocks go forward or back at midnight. Raises InvalidArgument:
        times instead of days, no zone, `last` before `first`, or days that no calendar has.
        """
        problems = [*day_problems("first", first), *day_problems("last", last), *zone_problems(zone)]
        if problems:
            raise InvalidArgument(problems)
        if last < first:
            raise InvalidArgument([Problem("last", last, f"must not be before the first day, {first}")])
        try:
            window = cls(midnight(first, zone), midnight(last + ONE_DAY, zone))
        except OverflowError:
            raise InvalidArgument([Problem("last", last, "must lie within the calendar, as must the first")]) from None
        if window.valid_until == window.valid_from:
            raise InvalidArgument([Problem("last", last, f"was left out of the calendar in {zone}")])
        return window


def day_problems(field: str, day: date) -> Iterator[Problem]:
    """A datetime is a date to Python: its time would be left out in silence, and its zone with it."""
    if not isinstance(day, date) or isinstance(day, datetime):
        yield Problem(field, day, "must be a date without a time, as in date(2026, 1, 31)")


def zone_problems(zone: tzinfo) -> Iterator[Problem]:
    if not isinstance(zone, tzinfo) or datetime(2000, 1, 1, tzinfo=zone).utcoffset() is None:
        yield Problem("zone", zone, "must be a time zone, as in ZoneInfo('Europe/Berlin') or UTC")


def midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def utc(moment: datetime) -> datetime:
    """The same instant in UTC; a naive time, and one outside the calendar in UTC, as it is (rules.py refuses both).

    Needed before comparing: PEP 495 calls a time in a repeated hour unequal to every time of another zone.
    A subclass becomes a `datetime` itself, because nothing else can be stored.
    """
    if moment.utcoffset() is None:
        return moment
    try:
        there = moment.astimezone(UTC)
    except OverflowError:
        return moment
    return there if type(there) is datetime else datetime.fromisoformat(there.isoformat())
