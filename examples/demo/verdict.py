"""Was the promise kept? Judged from the log after the run, together with what was seen from outside."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil
from typing import Literal, NamedTuple
from uuid import UUID

from msgspec import Struct

from coupon_clock.app import Envelope
from coupon_clock.domain.events import Created, Ended, EndReason, Event, ValidityChanged
from observer import Seen

LATEST = timedelta(seconds=1)

What = Literal["ended twice", "ended early", "ended late", "did not end"]


class Fault(NamedTuple):
    """`by`: how much too early or too late, where that is the fault."""

    name: str
    template_id: UUID
    what: What
    by: timedelta | None = None


class Lateness(NamedTuple):
    """Percentiles by nearest rank."""

    p50: timedelta
    p99: timedelta
    most: timedelta

    @classmethod
    def of(cls, values: Sequence[timedelta]) -> "Lateness | None":
        ranked = sorted(values)
        if not ranked:
            return None
        return cls(*(ranked[ceil(percent * len(ranked) / 100) - 1] for percent in (50, 99, 100)))


class Report(Struct, frozen=True):
    """`decided`, `committed` and `shown`: after the end, of those that expired."""

    reasons: Counter[EndReason]
    causes: Counter[str]
    decided: Lateness | None
    committed: Lateness | None
    shown: Lateness | None
    faults: list[Fault]

    @property
    def exit_code(self) -> int:
        return 1 if self.faults else 0


class Life(NamedTuple):
    """One template's history, and when its end was seen in the log and in the read model."""

    template_id: UUID
    envelopes: Sequence[Envelope[Event]]
    committed_at: datetime | None
    shown_at: datetime | None

    @property
    def ends(self) -> list[tuple[Ended, datetime]]:
        """With the time at which each was decided."""
        return [(e.event, e.recorded_at) for e in self.envelopes if isinstance(e.event, Ended)]

    @property
    def name(self) -> str:
        return next((e.event.name for e in self.envelopes if isinstance(e.event, Created)), "unknown")

    def due_at(self, ended: Ended) -> datetime:
        """When it had to end: as the shop last set it, or at once where the shop terminated it."""
        if ended.reason is EndReason.TERMINATED:
            return ended.ended_at
        return [e.event.valid_until for e in self.envelopes if isinstance(e.event, Created | ValidityChanged)][-1]


def judge(histories: Mapping[UUID, Sequence[Envelope[Event]]], seen: Seen) -> Report:
    """`histories`: those of all templates that had to end, empty where nothing was found."""
    lives = [
        Life(template_id, envelopes, seen.committed_at.get(template_id), seen.shown_at.get(template_id))
        for template_id, envelopes in histories.items()
    ]
    expired = [(life, *end) for life in lives for end in life.ends if end[0].reason is EndReason.EXPIRED]
    return Report(
        reasons=Counter(ended.reason for life in lives for ended, _ in life.ends),
        causes=Counter(e.cause for life in lives for e in life.envelopes if isinstance(e.event, Ended)),
        decided=Lateness.of([recorded_at - life.due_at(ended) for life, ended, recorded_at in expired]),
        committed=Lateness.of([life.committed_at - life.due_at(e) for life, e, _ in expired if life.committed_at]),
        shown=Lateness.of([life.shown_at - life.due_at(e) for life, e, _ in expired if life.shown_at]),
        faults=[fault for life in lives for fault in faults(life)],
    )


def faults(life: Life) -> Iterator[Fault]:
    if not life.ends:
        yield Fault(life.name, life.template_id, "did not end")
    if len(life.ends) > 1:
        yield Fault(life.name, life.template_id, "ended twice")
    for ended, recorded_at in life.ends:
        due_at = life.due_at(ended)
        too_early = due_at - min(recorded_at, ended.ended_at, life.committed_at or recorded_at)
        too_late = max(recorded_at, life.committed_at or recorded_at) - due_at
        if too_early > timedelta(0):
            yield Fault(life.name, life.template_id, "ended early", too_early)
        if too_late > LATEST:
            yield Fault(life.name, life.template_id, "ended late", too_late)
