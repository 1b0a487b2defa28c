"""Compares what is derived with the log it derives from: the read model with a fresh fold, alarms with the streams.

In one snapshot, so that it is right on a running system; stream by stream, so that memory stays flat.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.coupon_template import CouponTemplate, due_at, evolve
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.database import Pool
from coupon_clock.infrastructure.event_store import Envelope, EventStore
from coupon_clock.infrastructure.schema import one
from coupon_clock.projections import read_model
from coupon_clock.projections.read_model import TemplateRow
from coupon_clock.projections.snapshot import Alongside, rows, snapshot, streams

ROWS = f"SELECT * FROM {read_model.NAME} ORDER BY template_id"
ALARMS = "SELECT stream_id, due_at FROM alarm ORDER BY stream_id"
CHECKPOINT = "SELECT coalesce((SELECT position FROM checkpoint WHERE name = %s), 0)"


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
    with snapshot(pool) as connection:
        yield from _differences(connection, store)


def _differences(connection: Connection[TupleRow], store: EventStore[Event]) -> Iterator[Difference]:
    (checkpoint,) = one(connection, CHECKPOINT, read_model.NAME)
    live = Alongside((row["template_id"], row) for row in rows(connection, "live_rows", ROWS))
    alarms = Alongside((row["stream_id"], row["due_at"]) for row in rows(connection, "alarms", ALARMS))
    for stream_id, envelopes in streams(connection, store):
        row, state = _fold(envelopes, checkpoint)
        yield from _surplus("coupon_template", live.before(stream_id))
        yield from _surplus("alarm", alarms.before(stream_id))
        yield from _row_differences(stream_id, live.at(stream_id), row)
        yield from _alarm_differences(stream_id, alarms.at(stream_id), state)
    yield from _surplus("coupon_template", live.rest())
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
