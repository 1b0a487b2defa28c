"""Compares what is derived with the log it derives from: the read model with a fresh fold, alarms with the streams.

In one snapshot, so that it is right on a running system; stream by stream, so that memory stays flat.
"""

from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow, dict_row

from coupon_clock.domain.coupon_template import CouponTemplate, due_at, evolve
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.database import Pool, available
from coupon_clock.infrastructure.event_store import Envelope, EventStore
from coupon_clock.infrastructure.schema import one
from coupon_clock.projections import read_model
from coupon_clock.projections.read_model import TemplateRow

LOG = """
SELECT originator_id, originator_version, notification_id, state
  FROM coupon_template_events
 ORDER BY originator_id, originator_version
"""
ROWS = f"SELECT * FROM {read_model.NAME} ORDER BY template_id"
ALARMS = "SELECT stream_id, due_at FROM alarm ORDER BY stream_id"
CHECKPOINT = "SELECT coalesce((SELECT position FROM checkpoint WHERE name = %s), 0)"

FETCH = 5_000


class Difference(Struct, frozen=True):
    """`table`'s row `id` has `is_value` in `column`, and the log says `should_be`; `column` "row" where one of the
    two is missing."""

    table: str
    id: UUID
    column: str
    is_value: object
    should_be: object


def verify(pool: Pool, store: EventStore[Event]) -> Iterator[Difference]:
    """Every difference. Raises DatabaseUnavailable, UnreadableEvent."""
    with available(), pool.connection() as connection:
        connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        try:
            with connection.transaction():
                yield from _differences(connection, store)
        finally:
            connection.set_isolation_level(None)


def _differences(connection: Connection[TupleRow], store: EventStore[Event]) -> Iterator[Difference]:
    connection.execute("SET LOCAL statement_timeout = 0")
    (checkpoint,) = one(connection, CHECKPOINT, read_model.NAME)
    rows = _Merge((row["template_id"], row) for row in _read(connection, "verify_rows", ROWS))
    alarms = _Merge((row["stream_id"], row["due_at"]) for row in _read(connection, "verify_alarms", ALARMS))
    for stream_id, envelopes in groupby(_envelopes(connection, store), key=attrgetter("stream_id")):
        row, state = _fold(envelopes, checkpoint)
        yield from _surplus("coupon_template", rows.before(stream_id))
        yield from _surplus("alarm", alarms.before(stream_id))
        yield from _row_differences(stream_id, rows.at(stream_id), row)
        yield from _alarm_differences(stream_id, alarms.at(stream_id), state)
    yield from _surplus("coupon_template", rows.rest())
    yield from _surplus("alarm", alarms.rest())


def _fold(envelopes: Iterator[Envelope[Event]], checkpoint: int) -> tuple[TemplateRow | None, CouponTemplate | None]:
    """The row as of the checkpoint, and the state as of now."""
    row: TemplateRow | None = None
    state: CouponTemplate | None = None
    for envelope in envelopes:
        state = evolve(state, envelope.event)
        if envelope.position <= checkpoint:
            row = read_model.fold(row, envelope)
    return row, state


def _row_differences(
    stream_id: UUID, found: dict[str, Any] | None, should_be: TemplateRow | None
) -> Iterator[Difference]:
    if found is None or should_be is None:
        if found is not None or should_be is not None:
            yield Difference("coupon_template", stream_id, "row", _presence(found), _presence(should_be))
        return
    expected = msgspec.to_builtins(should_be, builtin_types=(UUID, datetime))
    for column, value in expected.items():
        if found[column] != value:
            yield Difference("coupon_template", stream_id, column, found[column], value)


def _alarm_differences(stream_id: UUID, found: object, state: CouponTemplate | None) -> Iterator[Difference]:
    should_be = due_at(state) if state else None
    if found != should_be:
        yield Difference("alarm", stream_id, "due_at", found, should_be)


def _surplus(table: str, surplus: Iterator[tuple[UUID, Any]]) -> Iterator[Difference]:
    for stream_id, _ in surplus:
        yield Difference(table, stream_id, "row", "present", "missing")


def _presence(row: object) -> str:
    return "missing" if row is None else "present"


def _read(connection: Connection[TupleRow], name: str, statement: str) -> Iterator[dict[str, Any]]:
    with connection.cursor(name, row_factory=dict_row) as cursor:
        cursor.itersize = FETCH
        yield from cursor.execute(statement)


def _envelopes(connection: Connection[TupleRow], store: EventStore[Event]) -> Iterator[Envelope[Event]]:
    with connection.cursor("verify_log", binary=True) as cursor:
        cursor.itersize = FETCH
        for stream_id, version, position, state in cursor.execute(LOG):
            yield store.envelope(stream_id, version, position, state)


class _Merge:
    """Pairs in order of their ids, read along a second sequence in the same order."""

    def __init__(self, pairs: Iterator[tuple[UUID, Any]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def before(self, stream_id: UUID) -> Iterator[tuple[UUID, Any]]:
        while self._next is not None and self._next[0] < stream_id:
            yield self._next
            self._next = next(self._pairs, None)

    def at(self, stream_id: UUID) -> Any:
        if self._next is None or self._next[0] != stream_id:
            return None
        value = self._next[1]
        self._next = next(self._pairs, None)
        return value

    def rest(self) -> Iterator[tuple[UUID, Any]]:
        while self._next is not None:
            yield self._next
            self._next = next(self._pairs, None)
