"""Proves the promise from the log alone: what was due was done once, not early; and how late.

Reads any live database, in one snapshot and in bounded memory. What is right for one stream is judged by its kind: of
coupon templates here, of aggregates in aggregates.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct, field

from coupon_clock.domain.coupon_template import due_at, fold
from coupon_clock.domain.events import Ended, EndReason, Event
from coupon_clock.infrastructure.event_store.bulk_reader import (
    ALL_WITH_TOPICS,
    CHANGED_WITH_TOPICS,
    ReadableLog,
    snapshot,
    streams,
)
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.postgres.database import fetch_one

MOST_NAMED = 1_000
MOST_LATE = 10
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


class Judged(Struct):
    """What one stream's events say: how it ended, or what was done; how late, by what found it due; when it is due."""

    violations: list[Violation] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    lateness: list[tuple[str, timedelta]] = field(default_factory=list)
    due_at: datetime | None = None


class Late(NamedTuple):
    """What ended so long after it was due."""

    by: timedelta
    stream_id: UUID


class PromiseReport(Struct):
    """What was found. `violations`, `overdue` and `left_out` name up to 1,000 each; the counts are of all. `most_late`:
    the ten ends that were most late."""

    streams: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    lateness: dict[str, LatenessDistribution] = field(default_factory=dict)
    most_late: list[Late] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0
    overdue: list[UUID] = field(default_factory=list)
    overdue_count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    left_out_count: int = 0

    @property
    def found_something(self) -> bool:
        return bool(self.violation_count or self.overdue_count or self.left_out_count)


def verify_promise(
    log: ReadableLog[Any],
    grace: timedelta,
    judge: Callable[[UUID, list[Envelope[Any]]], Judged],
    since: int | None = None,
) -> PromiseReport:
    """Returns what was found. `grace`: how long after its due time a stream counts as overdue. `since`: only of streams
    with an event after this position.

    Raises DatabaseUnavailable.
    """
    report = PromiseReport()
    with snapshot(log.database) as (connection,):
        (now,) = fetch_one(connection, log.database.sql("SELECT {schema}.now_utc()"))
        which = ALL_WITH_TOPICS if since is None else CHANGED_WITH_TOPICS
        with streams(connection, log, which, {"since": since} if since is not None else None) as found:
            for stream_id, envelopes, unreadable in found:
                if unreadable is not None:
                    _leave_out(report, LeftOut(stream_id, unreadable.position, unreadable.reason))
                    continue
                try:
                    _add(report, stream_id, judge(stream_id, envelopes), now - grace)
                except Exception as error:
                    _leave_out(report, LeftOut(stream_id, envelopes[-1].position, repr(error)))
    return report


def _leave_out(report: PromiseReport, stream: LeftOut) -> None:
    report.left_out_count += 1
    report.left_out += [stream] if len(report.left_out) < MOST_NAMED else []


def _add(report: PromiseReport, stream_id: UUID, judged: Judged, overdue_since: datetime) -> None:
    report.streams += 1
    report.violation_count += len(judged.violations)
    report.violations += judged.violations[: MOST_NAMED - len(report.violations)]
    report.ended.update(judged.ended)
    if judged.due_at is not None and judged.due_at < overdue_since:
        report.overdue_count += 1
        report.overdue += [stream_id] if len(report.overdue) < MOST_NAMED else []
    for cause, lateness in judged.lateness:
        report.lateness.setdefault(cause, LatenessDistribution()).add(lateness)
        if len(report.most_late) < MOST_LATE or lateness > report.most_late[-1].by:
            report.most_late = sorted([*report.most_late, Late(lateness, stream_id)], reverse=True)[:MOST_LATE]


# ── of coupon templates ──────────────────────────────────────────────────────────────────────────


def judge_template(stream_id: UUID, envelopes: list[Envelope[Event]]) -> Judged:
    state = fold(envelope.event for envelope in envelopes)
    judged = Judged(list(ending_violations(stream_id, envelopes)), due_at=due_at(state) if state else None)
    last = envelopes[-1]
    if isinstance(last.event, Ended):
        judged.ended.append(last.event.reason)
        if last.event.reason is EndReason.EXPIRED:
            judged.lateness.append((last.cause, last.recorded_at - last.event.ended_at))
    return judged


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
