"""Proves the promise from the log alone: every template that ended did so once, last, not early; and how late.

Reads any live database, in one snapshot and in bounded memory.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Struct, field

from coupon_clock.domain.coupon_template import due_at, fold
from coupon_clock.domain.events import Ended, EndReason, Event
from coupon_clock.infrastructure.event_store.bulk_reader import snapshot, streams
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore
from coupon_clock.infrastructure.postgres.database import fetch_one

MOST_NAMED = 1_000
MICROSECONDS_A_BUCKET = 100


class Violation(Struct, frozen=True):
    """One broken promise: `position` is that of the event that breaks it."""

    stream_id: UUID
    position: int
    what: str


class LeftOut(Struct, frozen=True):
    """A stream that cannot be verified, because an event of it cannot be read or folded: `position` is that event's."""

    stream_id: UUID
    position: int
    reason: str


class LatenessDistribution(Struct):
    """From end to decision, in seconds; exact to 0.1 ms."""

    buckets: Counter[int] = field(default_factory=Counter)
    worst: timedelta = timedelta(0)

    def add(self, lateness: timedelta) -> None:
        self.buckets[lateness // timedelta(microseconds=MICROSECONDS_A_BUCKET)] += 1
        self.worst = max(self.worst, lateness)

    @property
    def count(self) -> int:
        return self.buckets.total()

    def quantile(self, share: float) -> float:
        """Seconds; 0 where nothing ended."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return bucket * MICROSECONDS_A_BUCKET / 1e6
        return 0.0


class PromiseReport(Struct):
    """What was found. `violations`, `overdue` and `left_out` name up to 1,000 each; the counts are of all."""

    templates: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    lateness: dict[str, LatenessDistribution] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0
    overdue: list[UUID] = field(default_factory=list)
    overdue_count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    left_out_count: int = 0

    @property
    def found_something(self) -> bool:
        return bool(self.violation_count or self.overdue_count or self.left_out_count)


def verify_promise(store: EventStore[Event], grace: timedelta) -> PromiseReport:
    """Returns what was found. `grace`: how long after its end a template counts as overdue.

    Raises DatabaseUnavailable.
    """
    report = PromiseReport()
    with snapshot(store.database) as (log,):
        (now,) = fetch_one(log, store.database.sql("SELECT {schema}.now_utc()"))
        with streams(log, store) as found:
            for stream_id, envelopes, unreadable in found:
                if unreadable is not None:
                    _leave_out(report, LeftOut(stream_id, unreadable.position, unreadable.reason))
                    continue
                try:
                    _verify_stream(report, stream_id, envelopes, now - grace)
                except Exception as error:
                    _leave_out(report, LeftOut(stream_id, envelopes[-1].position, repr(error)))
    return report


def _leave_out(report: PromiseReport, stream: LeftOut) -> None:
    report.left_out_count += 1
    report.left_out += [stream] if len(report.left_out) < MOST_NAMED else []


def _verify_stream(
    report: PromiseReport, stream_id: UUID, envelopes: list[Envelope[Event]], overdue_since: datetime
) -> None:
    report.templates += 1
    for violation in ending_violations(stream_id, envelopes):
        report.violation_count += 1
        report.violations += [violation] if len(report.violations) < MOST_NAMED else []
    state = fold(envelope.event for envelope in envelopes)
    due = due_at(state) if state else None
    if due is not None and due < overdue_since:
        report.overdue_count += 1
        report.overdue += [stream_id] if len(report.overdue) < MOST_NAMED else []
    last = envelopes[-1]
    if isinstance(last.event, Ended):
        report.ended[last.event.reason] += 1
        if last.event.reason is EndReason.EXPIRED:
            distribution = report.lateness.setdefault(last.cause, LatenessDistribution())
            distribution.add(last.recorded_at - last.event.ended_at)


def ending_violations(stream_id: UUID, envelopes: list[Envelope[Event]]) -> Iterator[Violation]:
    """Yields what is wrong with the ending: repeated, not last, early, or at another time than the template's end."""
    ends = [(number, envelope) for number, envelope in enumerate(envelopes) if isinstance(envelope.event, Ended)]
    for _, envelope in ends[1:]:
        yield Violation(stream_id, envelope.position, "it ended again")
    for number, envelope in ends[:1]:
        if number != len(envelopes) - 1:
            yield Violation(stream_id, envelopes[number + 1].position, "something happened after its end")
        before = fold(earlier.event for earlier in envelopes[:number])
        event = envelope.event
        assert isinstance(event, Ended)
        if event.reason is EndReason.EXPIRED and before is not None:
            if envelope.recorded_at < before.valid_until:
                yield Violation(
                    stream_id, envelope.position, f"it ended {before.valid_until - envelope.recorded_at} early"
                )
            if event.ended_at != before.valid_until:
                yield Violation(stream_id, envelope.position, f"ended_at is {event.ended_at}, not {before.valid_until}")
