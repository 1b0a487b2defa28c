"""The log by stream, and other tables beside it, as of one moment: what checks read on a running system.

By COPY, because it streams: memory stays flat, and PostgreSQL reads on while Python works.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.migrations import one
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.pool import connect
from coupon_clock.infrastructure.settings import Settings

LOG = """
COPY (SELECT originator_id, originator_version, notification_id, state
        FROM coupon_template_events
       WHERE {which}
       ORDER BY originator_id, originator_version)
  TO STDOUT (FORMAT BINARY)
"""
ALL = LOG.format(which="true")
SOME = LOG.format(which="originator_id = ANY(%(ids)s::uuid[])")

# The id is taken as bytes: it costs a tenth, and most rows only compare it with the one before.
LOG_TYPES = ("bytea", "int8", "int8", "bytea")


@contextmanager
def snapshot(settings: Settings, connections: int = 1) -> Iterator[list[Connection[TupleRow]]]:
    """So many connections that see the same moment, because each can stream only one thing at a time.

    Raises DatabaseUnavailable.
    """
    with translate_errors(), ExitStack() as stack:
        first, *others = [stack.enter_context(connect(settings)) for _ in range(connections)]
        begin(stack, first)
        (name,) = one(first, "SELECT pg_export_snapshot()")
        for other in others:
            begin(stack, other)
            other.execute(f"SET TRANSACTION SNAPSHOT '{name}'")
        yield [first, *others]


def begin(stack: ExitStack, connection: Connection[TupleRow]) -> None:
    connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    connection.execute("SET statement_timeout = 0")
    stack.enter_context(connection.transaction())


Stream = tuple[UUID, list[Envelope[Event]]]


@contextmanager
def streams(
    connection: Connection[TupleRow],
    store: EventStore[Event],
    statement: str = ALL,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[Iterator[Stream]]:
    """Streams in order of their ids, oldest event first; reading on raises UnreadableEvent."""
    with copied(connection, statement, LOG_TYPES, parameters) as stored:
        yield grouped(store, stored)


def grouped(store: EventStore[Event], stored: Iterator[tuple[Any, ...]]) -> Iterator[Stream]:
    for raw_id, rows in groupby(stored, key=itemgetter(0)):
        stream_id = UUID(bytes=raw_id)
        yield stream_id, [store.envelope(stream_id, version, position, state) for _, version, position, state in rows]


@contextmanager
def copied(
    connection: Connection[TupleRow], statement: str, types: Sequence[str], parameters: Mapping[str, Any] | None = None
) -> Iterator[Iterator[tuple[Any, ...]]]:
    """The rows of a COPY … TO STDOUT (FORMAT BINARY), as they come. What is not read by the end is given up."""
    with connection.cursor() as cursor, cursor.copy(statement, parameters) as copy:
        copy.set_types(types)
        yield copy.rows()


class MergeJoin:
    """Pairs in order of their ids, read along a second sequence in the same order."""

    def __init__(self, pairs: Iterator[Any]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def before(self, stream_id: UUID) -> list[tuple[UUID, Any]]:
        """Those that the other sequence has passed without meeting them."""
        passed = []
        while self._next is not None and self._next[0] < stream_id:
            passed.append(self._next)
            self._next = next(self._pairs, None)
        return passed

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
