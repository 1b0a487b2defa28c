"""Follow the log without ever stepping over an event, and remember how far.

Positions are drawn before transactions commit, so a reader can see 7 before 6. A gap is final once every writer that
held the shared lock after the gap was seen is gone: only they can have drawn what is missing (docs/event-log.md).
No writer ever waits for a reader.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic, sleep
from typing import Generic, Literal, NamedTuple
from uuid import UUID, uuid4

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponError
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.event_store.migrations import one
from coupon_clock.infrastructure.event_store.store import Envelope, Event, EventStore, UnreadableEvent
from coupon_clock.infrastructure.loop import Counts, Wait
from coupon_clock.infrastructure.postgres.pool import Pool, available

PAGE = """
SELECT originator_id, originator_version, topic, state, notification_id
  FROM coupon_template_events
 WHERE notification_id > %s
 ORDER BY notification_id
 LIMIT %s
"""

RANGE = """
SELECT originator_id, originator_version, topic, state, notification_id
  FROM coupon_template_events
 WHERE notification_id > %s AND notification_id <= %s
 ORDER BY notification_id
"""

WRITERS = """
SELECT virtualtransaction
  FROM pg_locks
 WHERE locktype = 'advisory'
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid  = 1129271116
   AND objid    = 'coupon_template_events'::regclass::oid
   AND objsubid = 2
   AND mode     = 'ShareLock'
   AND granted
"""


class Row(NamedTuple):
    """One event as stored."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: int


class Page(NamedTuple):
    """`rows` in position order, all final; `blocked_for`: seconds that the oldest undecided gap has stood, or None."""

    rows: list[Row]
    blocked_for: float | None = None


class Gap(Struct):
    """A page that begins after something missing: final up to `page_end` once none of `writers` is left."""

    page_end: int
    writers: frozenset[str]
    noticed_at: float


class LogReader:
    """Reads on from `position`. Each reader judges its own gaps, page by page; nothing is shared between readers."""

    def __init__(self, pool: Pool, position: int) -> None:
        self._pool = pool
        self._gap: Gap | None = None
        self.position = position

    def page(self, limit: int) -> Page:
        """The next events, none when there are none yet or a gap is undecided. Raises DatabaseUnavailable."""
        if self._gap is not None:
            return self._across(self._gap)
        rows = self._select(PAGE, self.position, limit)
        prefix = contiguous(rows, self.position)
        if prefix or not rows:
            return self._pass(prefix)
        # Noted after the page was read: whoever drew a number below its end and is not noted was done by then.
        self._gap = Gap(rows[-1].position, writers(self._pool), monotonic())
        return self._across(self._gap)

    def _across(self, gap: Gap) -> Page:
        gap.writers = still_writing(gap.writers, writers(self._pool))
        if gap.writers:
            return Page([], monotonic() - gap.noticed_at)
        rows = self._select(RANGE, self.position, gap.page_end)
        self._gap = None
        return self._pass(rows)

    def _pass(self, rows: list[Row]) -> Page:
        if rows:
            self.position = rows[-1].position
        return Page(rows)

    def _select(self, statement: str, *parameters: int) -> list[Row]:
        with available(), self._pool.connection() as connection:
            cursor = connection.execute(statement, parameters, prepare=True, binary=True)
            return [Row(*row) for row in cursor]


def contiguous(rows: list[Row], position: int) -> list[Row]:
    """The rows that follow `position` without a gap."""
    if not rows or rows[-1].position == position + len(rows):
        return rows
    return [row for offset, row in enumerate(rows, 1) if row.position == position + offset]


def writers(pool: Pool) -> frozenset[str]:
    """The transactions that may hold positions which nobody can see yet."""
    with available(), pool.connection() as connection:
        return frozenset(writer for (writer,) in connection.execute(WRITERS, prepare=True))


def still_writing(noted: frozenset[str], now: frozenset[str]) -> frozenset[str]:
    """Prepared transactions lose their old name when the server restarts, so one of those (-1/…) may be any of them."""
    return frozenset(writer for writer in now if writer in noted or writer.startswith("-1/"))


def end_of_log(pool: Pool) -> int:
    """The highest position stored so far, 0 in an empty log. Lower ones may still come."""
    with available(), pool.connection() as connection:
        (position,) = one(connection, "SELECT coalesce(max(notification_id), 0) FROM coupon_template_events")
        return int(position)


def settled_end_of_log(pool: Pool) -> int:
    """The same, once no lower one can come any more: it waits for the writers that are under way."""
    position = end_of_log(pool)
    noted = writers(pool)
    while noted := still_writing(noted, writers(pool)):
        sleep(SHORTEST_PAUSE_S)
    return position


# ── durable checkpoints ──────────────────────────────────────────────────────────────────────────

LEASE_S = 15
RENEW_AFTER_S = 5
SHORTEST_PAUSE_S = 0.002

START = "INSERT INTO checkpoint (name, position) VALUES (%s, %s) ON CONFLICT DO NOTHING"

LEASE = """
UPDATE checkpoint
   SET leased_by = %(me)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (leased_by = %(me)s OR leased_until IS NULL OR leased_until < clock_timestamp())
RETURNING position, build, fold_version
"""

# Not only by the holder of the lease: two processes with handlers slower than a lease would stop each other for ever.
ADVANCE = """
UPDATE checkpoint
   SET position = %(to)s, leased_by = %(me)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
"""

END = "SELECT coalesce(max(notification_id), 0), coupon_clock_now() FROM coupon_template_events"

RELEASE = "UPDATE checkpoint SET leased_by = NULL, leased_until = NULL WHERE name = %s AND leased_by = %s"


class Checkpoint(NamedTuple):
    """How far a follower is; `build` counts rebuilds of what it writes, `fold_version` the code that writes it."""

    position: int
    build: int = 1
    fold_version: int = 1


@dataclass(eq=False)
class CheckpointLost(CouponError):
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
        with available(), self._pool.connection() as connection:
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
        with available(), self._pool.connection() as connection:
            parameters = {"name": self._name, "me": self.identity, "seconds": LEASE_S}
            row = connection.execute(LEASE, parameters).fetchone()
        return Checkpoint(*row) if row else None

    def _begin(self) -> bool:
        """Makes the checkpoint, unless there is one."""
        with available(), self._pool.connection() as connection:
            if connection.execute("SELECT FROM checkpoint WHERE name = %s", (self._name,)).fetchone() is not None:
                return False
        first = settled_end_of_log(self._pool) if self._start == "now" else self._start
        with available(), self._pool.connection() as connection:
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
            with available(), self._pool.connection() as connection:
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
