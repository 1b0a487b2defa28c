"""Compares what is derived with the log it derives from: each projection with a fresh fold, alarms with the streams.

In one snapshot, so that it is right on a running system. Streams, rows and alarms are read side by side in order of
their ids, so that memory stays flat; only a projection with other keys is folded in memory, where its rows are few.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import starmap
from random import Random
from typing import Any, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct, field
from msgspec.structs import astuple
from psycopg import Connection
from psycopg.rows import TupleRow
from sqlalchemy import BigInteger, Date, DateTime, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from coupon_clock.domain.coupon_template import due_at, fold
from coupon_clock.domain.errors import CouponError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store import Envelope, EventStore
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.projection import Key, Projection, position, same_shape
from coupon_clock.projections.projector import applied
from coupon_clock.projections.snapshot import ALL, LOG_TYPES, SOME, Alongside, copied, snapshot, streams

ALARM = "alarm"

IN_POSITION_ORDER = """
COPY (SELECT originator_id, originator_version, notification_id, state
        FROM coupon_template_events
       WHERE notification_id <= %(position)s
       ORDER BY notification_id)
  TO STDOUT (FORMAT BINARY)
"""

SINCE = "SELECT DISTINCT originator_id FROM coupon_template_events WHERE notification_id > %(since)s"
SAMPLE = "SELECT DISTINCT {id} FROM {table} TABLESAMPLE SYSTEM (%(percent)s)"

TYPES: dict[type, str] = {
    Uuid: "uuid", BigInteger: "int8", Text: "text", DateTime: "timestamptz", Date: "date", JSONB: "jsonb"
}  # fmt: skip


class Difference(Struct, frozen=True):
    """`table`'s row `id` has `is_value` in `column`, and the log says `should_be`; `column` "row" where one of the
    two is missing. `id`: the stream's, or the row's key where that is another."""

    table: str
    id: UUID | str
    column: str
    is_value: object = field(name="is")
    should_be: object


class Part(Struct, frozen=True, kw_only=True):
    """Which streams to look at: `since`: those that changed after this position; `percent`: a sample of that size, in
    whole pages of the tables, so that the rest need not be read."""

    since: int | None = None
    percent: float | None = None

    @property
    def is_all(self) -> bool:
        return self.since is None and self.percent is None


class NotInParts(CouponError):
    """{name} can only be verified as a whole, because its rows gather many streams: leave out --since and --sample."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def verify(
    settings: Settings,
    store: EventStore[Event],
    projections: Sequence[Projection[Any]],
    alarms: bool = True,
    part: Part = Part(),  # noqa: B008  (frozen)
) -> Iterator[Difference]:
    """Every difference. Raises DatabaseUnavailable, UnreadableEvent, ReadModelOutdated, NotInParts."""
    by_stream = [projection for projection in projections if projection.one_row_a_stream]
    others = [projection for projection in projections if not projection.one_row_a_stream]
    if others and not part.is_all:
        raise NotInParts(others[0].name)
    with snapshot(settings, 1 + len(by_stream) + alarms) as (log, *beside), ExitStack() as stack:
        ids = None if part.is_all else _ids(log, by_stream, alarms, part)
        checks: list[Check] = [Rows(stack, c, p, ids) for c, p in zip(beside, by_stream, strict=False)]
        checks += [Alarms(stack, beside[-1], ids)] if alarms else []
        if checks:
            yield from _differences(log, store, checks, ids)
        for projection in others:
            yield from _differences_by_key(log, store, projection)


# ── by stream ────────────────────────────────────────────────────────────────────────────────────


class Check(Protocol):
    """Something that has at most one row a stream. Both are called in order of the ids."""

    def of(self, stream_id: UUID, envelopes: list[Envelope[Event]]) -> Iterator[Difference]: ...

    def rest(self) -> Iterator[Difference]: ...


def _differences(
    connection: Connection[TupleRow], store: EventStore[Event], checks: Sequence[Check], ids: list[UUID] | None
) -> Iterator[Difference]:
    with streams(connection, store, ALL if ids is None else SOME, {"ids": ids}) as found:
        for stream_id, envelopes in found:
            for check in checks:
                yield from check.of(stream_id, envelopes)
    for check in checks:
        yield from check.rest()


class Rows:
    """Of a projection whose key is the stream's id."""

    def __init__(
        self, stack: ExitStack, connection: Connection[TupleRow], projection: Projection[Any], ids: list[UUID] | None
    ) -> None:
        self._projection = projection
        self._checkpoint = position(connection, projection)
        self._shape = Shape(projection)
        rows = stack.enter_context(self._shape.rows(connection, ids))
        self._live = Alongside((row[0], row) for row in rows)

    def of(self, stream_id: UUID, envelopes: list[Envelope[Event]]) -> Iterator[Difference]:
        yield from self._surplus(self._live.before(stream_id))
        row = None
        for envelope in envelopes:
            if envelope.position <= self._checkpoint:
                row = applied(self._projection, row, envelope)
        yield from self._shape.differences(stream_id, self._live.at(stream_id), row)

    def rest(self) -> Iterator[Difference]:
        return self._surplus(self._live.rest())

    def _surplus(self, rows: Iterator[tuple[UUID, Any]]) -> Iterator[Difference]:
        for stream_id, row in rows:
            yield from self._shape.differences(stream_id, row, None)


class Alarms:
    """Each is due when its stream says."""

    def __init__(self, stack: ExitStack, connection: Connection[TupleRow], ids: list[UUID] | None) -> None:
        where = "" if ids is None else "WHERE stream_id = ANY(%(ids)s::uuid[])"
        statement = f"COPY (SELECT stream_id, due_at FROM alarm {where} ORDER BY stream_id) TO STDOUT (FORMAT BINARY)"
        alarms = copied(connection, statement, ("uuid", "timestamptz"), {"ids": ids})
        self._alarms = Alongside(stack.enter_context(alarms))

    def of(self, stream_id: UUID, envelopes: list[Envelope[Event]]) -> Iterator[Difference]:
        yield from self._surplus(self._alarms.before(stream_id))
        state = fold(envelope.event for envelope in envelopes)
        found, should_be = self._alarms.at(stream_id), due_at(state) if state else None
        if found != should_be:
            yield Difference(ALARM, stream_id, "due_at", found, should_be)

    def rest(self) -> Iterator[Difference]:
        return self._surplus(self._alarms.rest())

    def _surplus(self, alarms: Iterator[tuple[UUID, datetime]]) -> Iterator[Difference]:
        return starmap(lambda stream_id, due: Difference(ALARM, stream_id, "due_at", due, None), alarms)


def _ids(
    connection: Connection[TupleRow], projections: Sequence[Projection[Any]], alarms: bool, part: Part
) -> list[UUID]:
    """The streams of that part."""
    if part.since is not None:
        ids = [stream_id for (stream_id,) in connection.execute(SINCE, {"since": part.since})]
        return ids if part.percent is None else Random().sample(ids, round(len(ids) * part.percent / 100))
    tables = [("coupon_template_events", "originator_id"), *([(ALARM, "stream_id")] if alarms else [])]
    tables += [(p.name, p.table(p.name).primary_key.columns[0].name) for p in projections]
    statement = " UNION ".join(SAMPLE.format(table=table, id=name) for table, name in tables)
    return [stream_id for (stream_id,) in connection.execute(statement, {"percent": part.percent})]


# ── by other keys ────────────────────────────────────────────────────────────────────────────────


def _differences_by_key(
    connection: Connection[TupleRow], store: EventStore[Event], projection: Projection[Any]
) -> Iterator[Difference]:
    should_be = folded_by_key(connection, store, projection, position(connection, projection))
    shape = Shape(projection)
    with shape.rows(connection, None) as rows:
        for row in rows:
            key = row[: shape.key_length]
            yield from shape.differences(named(key), row, should_be.pop(key, None))
    for key, missing in should_be.items():
        yield from shape.differences(named(key), None, missing)


def folded_by_key(
    connection: Connection[TupleRow], store: EventStore[Event], projection: Projection[Any], until: int
) -> dict[Key, Any]:
    """All rows as of that position, in memory. Raises UnreadableEvent."""
    rows: dict[Key, Any] = {}
    with copied(connection, IN_POSITION_ORDER, LOG_TYPES, {"position": until}) as stored:
        for raw_id, version, at, state in stored:
            envelope = store.envelope(UUID(bytes=raw_id), version, at, state)
            key = projection.key(envelope)
            rows[key] = applied(projection, rows.get(key), envelope)
    return rows


def named(key: Key) -> str:
    return " / ".join(map(str, key))


# ── rows as stored ───────────────────────────────────────────────────────────────────────────────


class Shape:
    """How a projection's rows are stored, so that most are compared by one comparison."""

    def __init__(self, projection: Projection[Any]) -> None:
        self._projection = projection
        self._table: Table = projection.table(projection.name)
        self._columns = projection.row.__struct_fields__
        self._key = [column.name for column in self._table.primary_key.columns]
        self._jsonb = [n for n, column in enumerate(self._table.columns) if isinstance(column.type, JSONB)]
        self.key_length = len(self._key)

    @contextmanager
    def rows(self, connection: Connection[TupleRow], ids: list[UUID] | None) -> Iterator[Iterator[tuple[Any, ...]]]:
        """Those that are live, in order of their keys."""
        where = "" if ids is None else f"WHERE {self._key[0]} = ANY(%(ids)s::uuid[])"
        statement = (
            f"COPY (SELECT {', '.join(self._columns)} FROM {self._table.name} {where} "
            f"ORDER BY {', '.join(self._key)}) TO STDOUT (FORMAT BINARY)"
        )
        types = [TYPES[type(column.type)] for column in self._table.columns]
        with same_shape(self._projection), copied(connection, statement, types, {"ids": ids}) as rows:
            yield rows

    def differences(
        self, row_id: UUID | str, found: tuple[Any, ...] | None, row: Struct | None
    ) -> Iterator[Difference]:
        if found is None or row is None:
            if found is not None or row is not None:
                yield Difference(self._projection.name, row_id, "row", _presence(found), _presence(row))
            return
        should_be = self._stored(row)
        if found != should_be:
            for column, value, wanted in zip(self._columns, found, should_be, strict=True):
                if value != wanted:
                    yield Difference(self._projection.name, row_id, column, value, wanted)

    def _stored(self, row: Struct) -> tuple[Any, ...]:
        values = list(astuple(row))
        for n in self._jsonb:
            values[n] = msgspec.to_builtins(values[n])
        return tuple(values)


def _presence(row: object) -> str:
    return "missing" if row is None else "present"
