"""Delivers the log in batches to one active process a name, from a durable checkpoint on."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import Generic, Literal, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.decider import Event
from coupon_clock.domain.errors import CouponClockError, InvalidArgument, Problem
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.event_store.checkpoint import Checkpoint, CheckpointLost, Kind, StoredCheckpoint
from coupon_clock.infrastructure.event_store.lease import PATIENCE_S, Lease
from coupon_clock.infrastructure.event_store.log_reader import LogReader, RecordedEvent
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.notifier import Wait
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable

RENEW_AFTER_S = 5
SHORTEST_PAUSE_S = 0.002

log = Log(__name__)


class Batch(NamedTuple, Generic[Event]):
    """Envelopes in position order, none where all were skipped; of a projection, `unreadable` are those between them
    that this code cannot read. `advance` moves the checkpoint past them, in the caller's transaction; call it first
    there, so that a second process with the same name waits and is then refused."""

    envelopes: list[Envelope[Event]]
    unreadable: list[UnreadableEvent]
    advance: Callable[[Connection[TupleRow]], None]


class Lag(NamedTuple):
    """`events`: positions between a follower and the end of the log; `seconds`: the age of the last one it took in,
    0 when caught up; `blocked_for`: seconds that it has stood at an undecided gap, or None."""

    events: int = 0
    seconds: float = 0.0
    blocked_for: float | None = None


class Subscription(Generic[Event]):
    """`deliver` must see to it that `advance` is called.

    `kind`: what follows, a projection or somebody's function: neither takes events from the other under its name.
    `start`: the position after which it begins the first time; "now": after all that is stored or under way.
    `patience_s`: how long another process under this name may show no sign of life.
    """

    def __init__(
        self,
        store: EventStore[Event],
        name: str,
        kind: Kind,
        deliver: Callable[[Batch[Event]], None],
        batch: int = 500,
        start: int | Literal["now"] = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._name = name
        self._kind = kind
        self._deliver = deliver
        self._batch = batch
        self._start = start
        self.lease = Lease(store.database, name, patience_s)
        self._checkpoint = StoredCheckpoint(store.database, name, kind)
        self.lag = Lag()
        self._is_checked = False
        self._stopped_by: str | None = None
        self._taken: Checkpoint | None = None
        self._reader = LogReader(store.recorder, 0)
        self._renewed_at = float("-inf")
        self._pause = 0.0

    def run_once(self) -> Counts:
        """One batch; nothing while another process follows under this name, or a gap is undecided.

        Raises InvalidArgument where the name or `start` cannot be used; UnreadableEvent, where it stops until code
        comes that can read it, or a person skips it; CheckpointBeyondLog, CheckpointLost, DatabaseUnavailable, and what
        `deliver` raises.
        """
        if not self._is_checked:
            self._check()
        checkpoint = self._leased()
        if checkpoint is None:
            return Counts()
        page = self._reader.page(self._batch)
        if not page.events:
            self._observe_lag(None, page.blocked_for)
            return Counts()
        try:
            envelopes, unreadable = self._readable(page.events, checkpoint.skipped)
            position = self._reader.position
            with self.lease.kept():
                self._deliver(Batch(envelopes, unreadable, lambda c: self._checkpoint.advance(c, checkpoint, position)))
        except BaseException as error:
            self._taken = None  # the next batch begins at the stored checkpoint
            self._note(error)
            raise
        self._taken = checkpoint._replace(position=position)
        self._stopped_by = None
        self._pause = 0.0
        self._observe_lag(page.events[-1].recorded_at if page.more else None, None)
        return +Counts(followed=len(envelopes), skipped=len(page.events) - len(envelopes))

    def release(self) -> None:
        """At a clean stop: another process may follow on at once. Raises DatabaseUnavailable."""
        self._taken = None
        self.lease.release()

    def paced(self, wait: Wait) -> Wait:
        """For the loop: short pauses first, longer ones the longer nothing comes, up to what the loop asks for. Events
        of other processes notify nobody here, and most gaps are settled within milliseconds."""

        def paced_wait(seconds: float) -> None:
            self._pause = min(seconds, max(2 * self._pause, SHORTEST_PAUSE_S))
            wait(self._pause)

        return paced_wait

    def _check(self) -> None:
        """What a process that waits for its turn should know at once."""
        self._checkpoint.read()
        if self._start != "now" and self._start > (end := self._store.end()):
            raise InvalidArgument([Problem("start", self._start, f"must not be beyond the end of the log, {end}")])
        self._is_checked = True

    def _note(self, error: BaseException) -> None:
        """For whoever looks at it from outside. Of what a handler raises the type alone: its text may hold anything."""
        if isinstance(error, CheckpointLost | DatabaseUnavailable) or not isinstance(error, Exception):
            return
        note = str(error) if isinstance(error, CouponClockError) else f"its handler raised {type(error).__name__}"
        if note != self._stopped_by:
            with suppress(DatabaseUnavailable):
                self._checkpoint.stop(note)
                self._stopped_by = note

    def _leased(self) -> Checkpoint | None:
        if self._taken is not None and monotonic() - self._renewed_at < RENEW_AFTER_S:
            return self._taken
        checkpoint = None
        if self.lease.take():
            checkpoint = self._checkpoint.read() or self._checkpoint.start(self._first_position())
            if checkpoint != self._taken:
                self._reader = LogReader(self._store.recorder, checkpoint.position)
        self._taken = checkpoint
        self._renewed_at = monotonic()
        return checkpoint

    def _first_position(self) -> int:
        """What is under way below it is waited for: those who begin later cannot come before it."""
        if self._start == 0:
            return 0
        end = self._store.settled_end()
        return end if self._start == "now" else self._start

    def _readable(
        self, events: list[RecordedEvent], skipped: frozenset[int]
    ) -> tuple[list[Envelope[Event]], list[UnreadableEvent]]:
        """Of a follower, as far as this code can read, so that an unreadable event does not block what comes before."""
        envelopes: list[Envelope[Event]] = []
        unreadable: list[UnreadableEvent] = []
        for number, event in enumerate(events):
            if event.position in skipped:
                log.warning("event skipped", action="follow", follower=self._name, position=event.position)
                continue
            try:
                envelopes.append(self._store.envelope(event))
            except UnreadableEvent as error:
                if self._kind == "projection":
                    unreadable.append(error)
                    continue
                if number == 0:
                    raise
                self._reader = LogReader(self._store.recorder, events[number - 1].position)
                break
        return envelopes, unreadable

    def _observe_lag(self, last_recorded_at: datetime | None, blocked_for: float | None) -> None:
        """`last_recorded_at`: of a batch that was full, so that more may follow. Only then is the log asked."""
        self.lag = Lag()
        if last_recorded_at is not None or blocked_for is not None:
            end, now = self._store.recorder.select_end()
            seconds = (now - last_recorded_at).total_seconds() if last_recorded_at else blocked_for or 0.0
            events = end - self._reader.position
            self.lag = Lag(events, seconds if events else 0.0, blocked_for)
        telemetry.GAP_AGE.labels(self._name).set(blocked_for or 0)
