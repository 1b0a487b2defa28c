"""The log by stream, and other tables beside it, as of one moment: what rebuilds and checks read on a running system.

By COPY, because it streams: memory stays flat, and PostgreSQL reads on while Python works. The only reads of the log
beside those of the recorder.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol
from uuid import UUID

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from coupon_clock.domain.decider import Event
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.postgres.binary_cursor import CopyCursor
from coupon_clock.infrastructure.postgres.database import Database, fetch_one
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.time_limit import LONG_STATEMENT_LIMIT_S

IN_UTC = "SELECT set_config('TimeZone', 'UTC', true), set_config('statement_timeout', '0', true)"

# The fields of RecordedEvent, in their order; `topic` says nothing that is not in `state`.
COLUMNS = "originator_id, originator_version, NULL, state, notification_id, recorded_at, command_id, cause, actor"
TYPES = ("uuid", "int8", "text", "bytea", "int8", "timestamptz", "uuid", "text", "text")

BY_STREAM = f"""
COPY (SELECT {COLUMNS}
        FROM {{schema}}.event
       WHERE WHICH
       ORDER BY originator_id, originator_version)
  TO STDOUT (FORMAT BINARY)
"""
ALL = BY_STREAM.replace("WHICH", "true")
ALL_WITH_TOPICS = ALL.replace("NULL", "topic")
"""For logs whose states do not name what they are."""
CHANGED_WITH_TOPICS = BY_STREAM.replace("NULL", "topic").replace(
    "WHICH", "originator_id IN (SELECT originator_id FROM {schema}.event WHERE notification_id > %(since)s)"
)
SOME = BY_STREAM.replace("WHICH", "originator_id = ANY(%(ids)s::uuid[])")
CHUNK = BY_STREAM.replace(
    "WHICH",
    """(%(after)s::uuid IS NULL OR originator_id > %(after)s::uuid) AND originator_id <= %(through)s::uuid
         AND notification_id <= %(position)s""",
)
IN_POSITION_ORDER = f"""
COPY (SELECT {COLUMNS}
        FROM {{schema}}.event
       WHERE notification_id <= %(position)s
       ORDER BY notification_id)
  TO STDOUT (FORMAT BINARY)
"""


@contextmanager
def snapshot(database: Database, connections: int = 1) -> Iterator[list[Connection[TupleRow]]]:
    """So many connections that see the same moment, because each can stream only one thing at a time.

    Raises DatabaseUnavailable.
    """
    with translate_errors(), ExitStack() as stack:
        first, *others = [stack.enter_context(database.connect(LONG_STATEMENT_LIMIT_S)) for _ in range(connections)]
        begin(stack, first)
        (name,) = fetch_one(first, "SELECT pg_export_snapshot()")
        for other in others:
            begin(stack, other)
            other.execute(f"SET TRANSACTION SNAPSHOT '{name}'".encode())
        for connection in (first, *others):
            connection.execute(IN_UTC)
        yield [first, *others]


def begin(stack: ExitStack, connection: Connection[TupleRow]) -> None:
    connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    stack.enter_context(connection.transaction())


Stream = tuple[UUID, list[Envelope[Event]], UnreadableEvent | None]
"""Its id, as much of it as can be read, and the first event that cannot."""


class ReadableLog(Protocol[Event]):
    """An EventStore, or what reads another kind of log."""

    @property
    def database(self) -> Database: ...

    def readable(self, events: Sequence[Any], /) -> tuple[list[Envelope[Event]], UnreadableEvent | None]:
        """Of one stream, rows with the fields of RecordedEvent: as many as can be read, and the first that cannot."""


@contextmanager
def streams(
    connection: Connection[TupleRow],
    store: ReadableLog[Event],
    statement: str = ALL,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[Iterator[Stream[Event]]]:
    """Streams in order of their ids, oldest event first."""
    with copied(connection, store.database.sql(statement), TYPES, parameters) as stored:
        # As plain tuples: to make a RecordedEvent of each costs a tenth of all.
        yield ((stream_id, *store.readable(list(rows))) for stream_id, rows in groupby(stored, key=itemgetter(0)))


@contextmanager
def in_position_order(
    connection: Connection[TupleRow], store: EventStore[Event], through: int
) -> Iterator[Iterator[Envelope[Event]]]:
    """All events up to that position, without those that cannot be read."""
    with copied(connection, store.database.sql(IN_POSITION_ORDER), TYPES, {"position": through}) as stored:
        yield (envelope for row in stored for envelope in store.readable([row])[0])


@contextmanager
def copied(
    connection: Connection[TupleRow],
    statement: bytes,
    types: Sequence[str],
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[Iterator[Any]]:
    """The rows of a COPY … TO STDOUT (FORMAT BINARY), tuples, as they come; in a transaction IN_UTC.

    What is not read by the end is given up.
    """
    with CopyCursor(connection) as cursor, cursor.copy(statement, parameters) as copy:
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
