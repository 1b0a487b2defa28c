"""Follow the log without ever stepping over an event, and remember how far.

Positions are drawn before transactions commit, so a reader can see 7 before 6. A gap is final once every writer that
held the shared lock after the gap was seen is gone: only they can have drawn what is missing (docs/event-log.md).
No writer ever waits for a reader.
"""

from collections.abc import Callable
from time import monotonic
from typing import Generic, NamedTuple
from uuid import UUID, uuid4

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponError
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.database import Pool, available
from coupon_clock.infrastructure.event_store import Envelope, Event, EventStore
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.schema import one

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
        self._gap = Gap(rows[-1].position, self._writers(), monotonic())
        return self._across(self._gap)

    def _across(self, gap: Gap) -> Page:
        gap.writers &= self._writers()
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

    def _writers(self) -> frozenset[str]:
        with available(), self._pool.connection() as connection:
            return frozenset(writer for (writer,) in connection.execute(WRITERS, prepare=True))


def end_of_log(pool: Pool) -> int:
    """The highest position stored so far, 0 in an empty log."""
    with available(), pool.connection() as connection:
        (position,) = one(connection, "SELECT coalesce(max(notification_id), 0) FROM coupon_template_events")
        return int(position)


def contiguous(rows: list[Row], position: int) -> list[Row]:
    """The rows that follow `position` without a gap."""
    if not rows or rows[-1].position == position + len(rows):
        return rows
    return [row for offset, row in enumerate(rows, 1) if row.position == position + offset]


# ── durable checkpoints ──────────────────────────────────────────────────────────────────────────

LEASE_S = 15
RENEW_AFTER_S = 5

START = "INSERT INTO checkpoint (name, position) VALUES (%s, %s) ON CONFLICT DO NOTHING"

LEASE = """
UPDATE checkpoint
   SET leased_by = %(me)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (leased_by = %(me)s OR leased_until IS NULL OR leased_until < clock_timestamp())
RETURNING position, build, fold_version
"""

ADVANCE = """
UPDATE checkpoint
   SET position = %(to)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
   AND leased_by = %(me)s
"""

RELEASE = "UPDATE checkpoint SET leased_by = NULL, leased_until = NULL WHERE name = %s AND leased_by = %s"


class Checkpoint(NamedTuple):
    """How far a follower is; `build` counts rebuilds of what it writes, `fold_version` the code that writes it."""

    position: int
    build: int = 1
    fold_version: int = 1


class CheckpointLost(CouponError):
    """Another process follows as {name} now: this one steps back."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Batch(NamedTuple, Generic[Event]):
    """Envelopes in position order. `advance` moves the checkpoint past them, in the caller's transaction; call it
    first there, so that a second process with the same name waits and is then refused."""

    envelopes: list[Envelope[Event]]
    advance: Callable[[Connection[TupleRow]], None]


class Follower(Generic[Event]):
    """Delivers the log in batches, one active process a name. `deliver` must see to it that `advance` is called."""

    def __init__(
        self,
        pool: Pool,
        store: EventStore[Event],
        name: str,
        deliver: Callable[[Batch[Event]], None],
        batch: int = 500,
        start: int = 0,
    ) -> None:
        self._pool = pool
        self._store = store
        self._name = name
        self._deliver = deliver
        self._batch = batch
        self._start = start
        self.identity = uuid4()
        self._checkpoint: Checkpoint | None = None
        self._reader = LogReader(pool, start)
        self._renewed_at = float("-inf")

    def run_once(self) -> Counts:
        """One batch; nothing while another process follows under this name, or a gap is undecided.

        Raises UnreadableEvent, where it stops until code comes that can read it: nothing is ever skipped.
        """
        if not self._lease():
            return Counts()
        page = self._reader.page(self._batch)
        telemetry.GAP_AGE.labels(self._name).set(page.blocked_for or 0)
        if not page.rows:
            return Counts()
        try:
            envelopes = [self._store.envelope(r.stream_id, r.version, r.position, r.state) for r in page.rows]
            self._deliver(Batch(envelopes, self._advance))
        except BaseException:
            self._forget()
            raise
        assert self._checkpoint is not None
        self._checkpoint = self._checkpoint._replace(position=self._reader.position)
        self._renewed_at = monotonic()
        return Counts(followed=len(envelopes))

    def release(self) -> None:
        """At a clean stop: another process may follow on at once."""
        self._forget()
        with available(), self._pool.connection() as connection:
            connection.execute(RELEASE, (self._name, self.identity))

    def _lease(self) -> bool:
        if self._checkpoint is not None and monotonic() - self._renewed_at < RENEW_AFTER_S:
            return True
        with available(), self._pool.connection() as connection:
            connection.execute(START, (self._name, self._start))
            row = connection.execute(LEASE, {"name": self._name, "me": self.identity, "seconds": LEASE_S}).fetchone()
        leased = Checkpoint(*row) if row else None
        if leased is None or leased != self._checkpoint:
            self._reader = LogReader(self._pool, leased.position if leased else self._start)
        self._checkpoint = leased
        self._renewed_at = monotonic()
        return leased is not None

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

    def _forget(self) -> None:
        """The next batch begins at the stored checkpoint."""
        self._checkpoint = None
