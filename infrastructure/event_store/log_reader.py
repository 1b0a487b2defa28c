"""Follow the log without ever stepping over an event.

Positions are drawn before transactions commit, so a reader can see 7 before 6. A gap is final once every writer that
held the shared lock after the gap was seen is gone: only they can have drawn what is missing (docs/event-log.md).
No writer ever waits for a reader.
"""

from time import monotonic, sleep
from typing import NamedTuple
from uuid import UUID

from msgspec import Struct

from coupon_clock.infrastructure.event_store.migrations import one
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.pool import Pool

WRITER_PAUSE_S = 0.002

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
        with translate_errors(), self._pool.connection() as connection:
            cursor = connection.execute(statement, parameters, prepare=True, binary=True)
            return [Row(*row) for row in cursor]


def contiguous(rows: list[Row], position: int) -> list[Row]:
    """The rows that follow `position` without a gap."""
    if not rows or rows[-1].position == position + len(rows):
        return rows
    return [row for offset, row in enumerate(rows, 1) if row.position == position + offset]


def writers(pool: Pool) -> frozenset[str]:
    """The transactions that may hold positions which nobody can see yet."""
    with translate_errors(), pool.connection() as connection:
        return frozenset(writer for (writer,) in connection.execute(WRITERS, prepare=True))


def still_writing(noted: frozenset[str], now: frozenset[str]) -> frozenset[str]:
    """Prepared transactions lose their old name when the server restarts, so one of those (-1/…) may be any of them."""
    return frozenset(writer for writer in now if writer in noted or writer.startswith("-1/"))


def end_of_log(pool: Pool) -> int:
    """The highest position stored so far, 0 in an empty log. Lower ones may still come."""
    with translate_errors(), pool.connection() as connection:
        (position,) = one(connection, "SELECT coalesce(max(notification_id), 0) FROM coupon_template_events")
        return int(position)


def settled_end_of_log(pool: Pool) -> int:
    """The same, once no lower one can come any more: it waits for the writers that are under way."""
    position = end_of_log(pool)
    noted = writers(pool)
    while noted := still_writing(noted, writers(pool)):
        sleep(WRITER_PAUSE_S)
    return position
