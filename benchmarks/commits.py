"""How late ends are, and in which ways they are stored. The log tells whether a way is missing here."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import product
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import psycopg
from measure import Figure, create, say, sleep_until

from coupon_clock.app import Application
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.event_store.recorder import EndedPage
from coupon_clock.infrastructure.event_store.store import Append, Appended, Busy, Conflict

WAYS = PAGE, EACH_STREAM, DECIDED = "prepared, in a page", "prepared, each stream for itself", "loaded and decided"
CAUSES = "message", "reconciler"
PATIENCE_S = 60.0

ENDS = """
SELECT originator_id, cause, recorded_at, (convert_from(state, 'UTF8')::json ->> 'ended_at')::timestamptz
  FROM coupon_clock.event
 WHERE topic = 'CouponTemplate.Ended'
"""
STORED = "SELECT cause, count(*) FROM coupon_clock.event WHERE topic = 'CouponTemplate.Ended' GROUP BY cause"


def ended(app: Application, ends: Sequence[datetime]) -> "Commits":
    """Creates templates with these ends, and waits until all have ended."""
    commits = Commits(app)
    create(app, ends)
    commits.wait_for(len(ends), max(ends))
    return commits


class Commits:
    """Stands before every way in which an end is stored, and notes PostgreSQL's time after each that ended any.

    Ends of one cause come from one thread, so what was recorded between two such times was committed at the later one.
    """

    def __init__(self, app: Application) -> None:
        self._clock = psycopg.connect(app.settings.database(), autocommit=True)
        self._committed_at: dict[str, list[datetime]] = {}
        self._stored: Counter[tuple[str, str]] = Counter()
        self._results_before = results()
        self._append = app.store.append
        self._end_due = app.store.recorder.end_due
        self._end_each_stream = app.store.recorder.end_each_stream
        app.store.append = self.append  # type: ignore[method-assign]
        app.store.recorder.end_due = self.end_due  # type: ignore[method-assign, assignment]
        app.store.recorder.end_each_stream = self.end_each_stream  # type: ignore[method-assign, assignment]

    def wait_for(self, count: int, last_end: datetime) -> None:
        sleep_until(last_end)
        give_up_at = monotonic() + PATIENCE_S
        while self._stored.total() < count and monotonic() < give_up_at:
            sleep(0.1)
        stored: dict[str, int] = dict(self._clock.execute(STORED).fetchall())
        assert stored == self._by_cause(), f"some ended in a way that is not counted: {stored}"
        late = self.lateness()
        say(f"{len(late):,} ended: {self.in_words()}")
        assert len(late) == count, "some did not end"
        assert min(late) >= 0, "some ended early"

    def lateness(self, stream_ids: Sequence[UUID] | None = None) -> list[float]:
        """In seconds, of all or of these."""
        late = {
            stream_id: (committed_after(self._committed_at[cause], recorded_at) - end).total_seconds()
            for stream_id, cause, recorded_at, end in self._clock.execute(ENDS)
        }
        return list(late.values()) if stream_ids is None else [late[each] for each in stream_ids]

    def in_words(self) -> str:
        """Which cause stored how many, in which way; and what the loops counted meanwhile."""
        stored = [f"{way}, {cause} {number:,}" for (way, cause), number in self._stored.items()]
        counted = [f"{role} {what} {number:,}" for (role, what), number in (results() - self._results_before).items()]
        return "; ".join(stored + counted)

    def figures(self, name: str) -> Iterator[Figure]:
        """One a way and cause, also where none was stored so."""
        for way, cause in {**dict.fromkeys(product(WAYS, CAUSES)), **dict.fromkeys(self._stored)}:
            number = self._stored[way, cause]
            yield Figure(f"{name}: {way}, cause {cause}", number, "ends")

    def _by_cause(self) -> Counter[str]:
        by_cause: Counter[str] = Counter()
        for (_, cause), number in self._stored.items():
            by_cause[cause] += number
        return by_cause

    # ── the ways ─────────────────────────────────────────────────────────────────────────────────

    def append(
        self, appends: Sequence[Append[Any]], *arguments: Any, **options: Any
    ) -> list[Appended | Conflict | Busy]:
        outcomes = self._append(appends, *arguments, **options)
        for append, outcome in zip(appends, outcomes, strict=True):
            new = append.events[-1]
            if isinstance(outcome, Appended) and isinstance(new.event, Ended):
                self._note(DECIDED, new.cause, 1)
        return outcomes

    def end_due(self, *arguments: Any) -> EndedPage:
        page = self._end_due(*arguments)
        self._note(PAGE, arguments[4], len(page.lateness))
        return page

    def end_each_stream(self, *arguments: Any) -> EndedPage:
        page = self._end_each_stream(*arguments)
        self._note(EACH_STREAM, arguments[2], len(page.lateness))
        return page

    def _note(self, way: str, cause: str, ends: int) -> None:
        if ends:
            ((now,),) = self._clock.execute("SELECT coupon_clock.now_utc()", prepare=True)
            self._committed_at.setdefault(cause, []).append(now)
            self._stored[way, cause] += ends


def committed_after(times: Sequence[datetime], recorded_at: datetime) -> datetime:
    return times[bisect_left(times, recorded_at)]


def results() -> Counter[tuple[str, str]]:
    """What the loops that end counted so far: a message can also find its template ended, moved, or not due."""
    samples = [sample for metric in telemetry.WORK.collect() for sample in metric.samples]
    return Counter(
        {
            (sample.labels["role"], sample.labels["what"]): int(sample.value)
            for sample in samples
            if sample.name.endswith("_total") and sample.labels["role"] in ("consumer", "reconciler")
        }
    )
