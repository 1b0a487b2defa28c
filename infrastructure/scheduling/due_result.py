"""What handling a stream whose alarm is due can come to. The loops know no more of the domain than this."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError


class Completed(Struct, frozen=True, gc=False):
    """Nothing is left to do: the stream was ended by this (`ended_now`), or before."""

    ended_now: bool


class NotDue(Struct, frozen=True, gc=False):
    """Too early, or moved: due at `due_at`."""

    due_at: datetime


class Failed(Struct, frozen=True):
    """This stream can never be handled: unknown, or unreadable."""

    error: CouponClockError


class Retry(Struct, frozen=True):
    """Not this time: PostgreSQL is away, busy, or its answer was lost."""

    error: CouponClockError


DueCause = Literal["message", "reconciler"]
DueResult = Completed | NotDue | Failed | Retry


class DueReport(Struct, frozen=True):
    """`ended`: how many streams; `failures`: of those that were due; `results`: of each stream asked for, in order."""

    ended: int
    failures: Sequence[Failed | Retry]
    results: Sequence[DueResult]


HandleDue = Callable[[Sequence[UUID], DueCause, timedelta], DueReport]
"""Ends all that was due that long ago, soonest first, and reports what came of these streams."""
