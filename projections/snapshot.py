"""The whole log in one snapshot, stream by stream: what checks read on a running system, in flat memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow, dict_row

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.database import Pool, available
from coupon_clock.infrastructure.event_store import Envelope, EventStore

LOG = """
SELECT originator_id, originator_version, notification_id, state
  FROM coupon_template_events
 ORDER BY originator_id, originator_version
"""

FETCH = 5_000


@contextmanager
def snapshot(pool: Pool) -> Iterator[Connection[TupleRow]]:
    """A connection on which every statement sees the same moment. Raises DatabaseUnavailable."""
    with available(), pool.connection() as connection:
        connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        try:
            with connection.transaction():
                connection.execute("SET LOCAL statement_timeout = 0")
                yield connection
        finally:
            connection.set_isolation_level(None)


def streams(
    connection: Connection[TupleRow], store: EventStore[Event]
) -> Iterator[tuple[UUID, Iterator[Envelope[Event]]]]:
    """Every stream in order of its id, oldest event first. Raises UnreadableEvent."""
    return groupby(_envelopes(connection, store), key=attrgetter("stream_id"))


def rows(connection: Connection[TupleRow], name: str, statement: str) -> Iterator[dict[str, Any]]:
    """Read along a cursor of that name, some thousand at a time."""
    with connection.cursor(name, row_factory=dict_row) as cursor:
        cursor.itersize = FETCH
        yield from cursor.execute(statement)


class Alongside:
    """Pairs in order of their ids, read along a second sequence in the same order."""

    def __init__(self, pairs: Iterator[tuple[UUID, Any]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def before(self, stream_id: UUID) -> Iterator[tuple[UUID, Any]]:
        """Those that the other sequence has passed without meeting them."""
        while self._next is not None and self._next[0] < stream_id:
            yield self._next
            self._next = next(self._pairs, None)

    def at(self, stream_id: UUID) -> Any:
        """The value for this id, None where there is none."""
        if self._next is None or self._next[0] != stream_id:
            return None
        value = self._next[1]
        self._next = next(self._pairs, None)
        return value

    def rest(self) -> Iterator[tuple[UUID, Any]]:
        while self._next is not None:
            yield self._next
            self._next = next(self._pairs, None)


def _envelopes(connection: Connection[TupleRow], store: EventStore[Event]) -> Iterator[Envelope[Event]]:
    with connection.cursor("log", binary=True) as cursor:
        cursor.itersize = FETCH
        for stream_id, version, position, state in cursor.execute(LOG):
            yield store.envelope(stream_id, version, position, state)
