"""Follow the log without ever stepping over an event, and remember how far.

Positions are drawn before transactions commit, so a reader can see 7 before 6. A gap is final once every writer that
held the shared lock after the gap was seen is gone: only they can have drawn what is missing (docs/event-log.md).
No writer ever waits for a reader.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Generic, Literal, NamedTuple
from uuid import uuid4

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.event_store.checkpoint import ADVANCE, END, LEASE, RELEASE, START, Checkpoint
from coupon_clock.infrastructure.event_store.log_reader import LogReader, Row, settled_end_of_log
from coupon_clock.infrastructure.event_store.migrations import one
from coupon_clock.infrastructure.event_store.store import Envelope, Event, EventStore, UnreadableEvent
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.notifier import Wait
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.pool import Pool

# ── durable checkpoints ──────────────────────────────────────────────────────────────────────────

LEASE_S = 15
RENEW_AFTER_S = 5
SHORTEST_PAUSE_S = 0.002


@dataclass(eq=False)
class CheckpointLost(CouponClockError):
    """Another process follows as {name} now: this one steps back."""

    name: str


class Batch(NamedTuple, Generic[Event]):
    """Envelopes in position order. `advance` moves the checkpoint past them, in the caller's transaction; call it
    first there, so that a second process with the same name waits and is then refused."""

    envelopes: list[Envelope[Event]]
    advance: Callable[[Connection[TupleRow]], None]


class Lag(NamedTuple):
    """`events`: positions between a follower and the end of the log; `seconds`: the age of the last one it took in,
    0 when caught up; `blocked_for`: seconds that it has stood at an undecided gap, or None."""

    events: int = 0
    seconds: float = 0.0
    blocked_for: float | None = None


class Follower(Generic[Event]):
    """Delivers the log in batches, one active process a name. `deliver` must see to it that `advance` is called.

    `start`: the position after which it begins the first time; "now": after all that is stored or under way.
    """

    def __init__(
        self,
        pool: Pool,
        store: EventStore[Event],
        name: str,
        deliver: Callable[[Batch[Event]], None],
        batch: int = 500,
        start: int | Literal["now"] = 0,
    ) -> None:
        self._pool = pool
        self._store = store
        self._name = name
        self._deliver = deliver
        self._batch = batch
        self._start = start
        self.identity = uuid4()
        self.lag = Lag()
        self._checkpoint: Checkpoint | None = None
        self._reader = LogReader(pool, 0)
        self._renewed_at = float("-inf")
        self._pause = 0.0

    def run_once(self) -> Counts:
        """One batch; nothing while another process follows under this name, or a gap is undecided.

        Raises UnreadableEvent, where it stops until code comes that can read it: nothing is ever skipped.
        """
        if not self._lease():
            return Counts()
        page = self._reader.page(self._batch)
        if not page.rows:
            self._tell_lag(None, page.blocked_for)
            return Counts()
        try:
            envelopes = self._readable(page.rows)
            self._deliver(Batch(envelopes, self._advance))
        except BaseException:
            self._forget()
            raise
        assert self._checkpoint is not None
        self._checkpoint = self._checkpoint._replace(position=self._reader.position)
        self._renewed_at = monotonic()
        self._pause = 0.0
        self._tell_lag(envelopes[-1].recorded_at if len(page.rows) == self._batch else None, None)
        return Counts(followed=len(envelopes))

    def release(self) -> None:
        """At a clean stop: another process may follow on at once."""
        self._forget()
        with translate_errors(), self._pool.connection() as connection:
            connection.execute(RELEASE, (self._name, self.identity))

    def paced(self, wait: Wait) -> Wait:
        """For the loop: short pauses first, longer ones the longer nothing comes, up to what the loop asks for. Events
        of other processes ring no bell here, and most gaps are settled within milliseconds."""

        def paced_wait(seconds: float) -> None:
            self._pause = min(seconds, max(2 * self._pause, SHORTEST_PAUSE_S))
            wait(self._pause)

        return paced_wait

    def _lease(self) -> bool:
        if self._checkpoint is not None and monotonic() - self._renewed_at < RENEW_AFTER_S:
            return True
        leased = self._leased() or (self._leased() if self._begin() else None)
        if leased is not None and leased != self._checkpoint:
            self._reader = LogReader(self._pool, leased.position)
        self._checkpoint = leased
        self._renewed_at = monotonic()
        return leased is not None

    def _leased(self) -> Checkpoint | None:
        """None while another process holds the lease, and the first time."""
        with translate_errors(), self._pool.connection() as connection:
            parameters = {"name": self._name, "me": self.identity, "seconds": LEASE_S}
            row = connection.execute(LEASE, parameters).fetchone()
        return Checkpoint(*row) if row else None

    def _begin(self) -> bool:
        """Makes the checkpoint, unless there is one."""
        with translate_errors(), self._pool.connection() as connection:
            if connection.execute("SELECT FROM checkpoint WHERE name = %s", (self._name,)).fetchone() is not None:
                return False
        first = settled_end_of_log(self._pool) if self._start == "now" else self._start
        with translate_errors(), self._pool.connection() as connection:
            return connection.execute(START, (self._name, first)).rowcount == 1

    def _readable(self, rows: list[Row]) -> list[Envelope[Event]]:
        """As far as this code can read, so that what comes before an unreadable event is not held up by it."""
        envelopes: list[Envelope[Event]] = []
        for row in rows:
            try:
                envelopes.append(self._store.envelope(row.stream_id, row.version, row.position, row.state))
            except UnreadableEvent:
                if not envelopes:
                    raise
                self._reader = LogReader(self._pool, envelopes[-1].position)
                break
        return envelopes

    def _advance(self, connection: Connection[TupleRow]) -> None:
        assert self._checkpoint is not None
        parameters = self._checkpoint._asdict() | {
            "name": self._name,
            "me": self.identity,
            "seconds": LEASE_S,
            "to": self._reader.position,
        }
        if connection.execute(ADVANCE, parameters, prepare=True).rowcount != 1:
            raise CheckpointLost(self._name)

    def _tell_lag(self, last_recorded_at: datetime | None, blocked_for: float | None) -> None:
        """`last_recorded_at`: of a batch that was full, so that more may follow. Only then is the log asked."""
        self.lag = Lag()
        if last_recorded_at is not None or blocked_for is not None:
            with translate_errors(), self._pool.connection() as connection:
                (end, now) = one(connection, END)
            seconds = (now - last_recorded_at).total_seconds() if last_recorded_at else blocked_for or 0.0
            events = end - self._reader.position
            self.lag = Lag(events, seconds if events else 0.0, blocked_for)
        telemetry.LAG.labels(self._name).set(self.lag.events)
        telemetry.LAG_SECONDS.labels(self._name).set(self.lag.seconds)
        telemetry.GAP_AGE.labels(self._name).set(blocked_for or 0)

    def _forget(self) -> None:
        """The next batch begins at the stored checkpoint."""
        self._checkpoint = None
