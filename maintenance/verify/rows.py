"""Compares what is derived with the log it derives from: each projection with a fresh fold, alarms with the streams.

In one snapshot, so that it is right on a running system. Streams, rows and alarms are read side by side in order of
their ids, so that memory stays flat; only a projection with other keys is folded in memory, where its rows are few.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain import arguments
from coupon_clock.domain.errors import CouponClockError, Problem
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.bulk_reader import (
    ALL,
    SOME,
    MergeJoin,
    in_position_order,
    snapshot,
    streams,
)
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.maintenance.verify.alarms import ALARM, AlarmCheck
from coupon_clock.maintenance.verify.stored_rows import LEFT_OUT, READABLE, Difference, StoredRows
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.fold import fold_by_key, fold_stream
from coupon_clock.projections.engine.projection import Key, Projection, position

SINCE = "SELECT DISTINCT originator_id FROM {schema}.event WHERE notification_id > %(since)s"
SAMPLE = "SELECT DISTINCT {id} FROM {{schema}}.{table} TABLESAMPLE SYSTEM (%(percent)s)"


class Part(Struct, frozen=True, kw_only=True):
    """Which streams to look at: `since`: those that changed after this position; `percent`: a sample of that size, in
    whole pages of the tables, so that the rest need not be read."""

    since: int | None = None
    percent: float | None = None

    @property
    def is_all(self) -> bool:
        return self.since is None and self.percent is None


def part_problems(part: Part) -> Iterator[Problem]:
    if wrong_type := list(arguments.of_type("part", part, Part)):
        yield from wrong_type
        return
    if part.since is not None:
        yield from arguments.whole_number("since", part.since, 0)
    if part.percent is not None:
        yield from arguments.number("percent", part.percent, 0, 100)


@dataclass(eq=False)
class NotInParts(CouponClockError):
    """{name} can only be verified as a whole, because its rows gather many streams: leave out --since and --sample."""

    name: str


def verify(
    store: EventStore[Event],
    projections: Sequence[Projection[Any]],
    alarms: bool = True,
    part: Part = Part(),  # noqa: B008  (frozen)
) -> Iterator[Difference]:
    """Yields every difference, and each stream of which not all can be taken in.

    Raises DatabaseUnavailable, ReadModelOutdated, NotInParts.
    """
    by_stream = [projection for projection in projections if projection.one_row_a_stream]
    others = [projection for projection in projections if not projection.one_row_a_stream]
    if others and not part.is_all:
        raise NotInParts(others[0].name)
    with snapshot(store.database, 1 + len(by_stream) + alarms) as (log, *beside), ExitStack() as stack:
        schema = store.database.schema
        ids = None if part.is_all else _ids(log, schema, by_stream, alarms, part)
        checks: list[Check] = [RowCheck(stack, c, schema, p, ids) for c, p in zip(beside, by_stream, strict=False)]
        checks += [AlarmCheck(stack, beside[-1], store, ids)] if alarms else []
        if checks:
            yield from _differences(log, store, checks, ids)
        for projection in others:
            yield from _differences_by_key(log, store, projection)


# ── by stream ────────────────────────────────────────────────────────────────────────────────────


class Check(Protocol):
    """Something that has at most one row a stream. Both are called in order of the ids."""

    def of(
        self, stream_id: UUID, envelopes: list[Envelope[Event]], unreadable: UnreadableEvent | None
    ) -> Iterable[Difference]: ...

    def rest(self) -> Iterable[Difference]: ...


def _differences(
    connection: Connection[TupleRow], store: EventStore[Event], checks: Sequence[Check], ids: list[UUID] | None
) -> Iterator[Difference]:
    with streams(connection, store, ALL if ids is None else SOME, {"ids": ids}) as found:
        for stream_id, envelopes, unreadable in found:
            for check in checks:
                yield from check.of(stream_id, envelopes, unreadable)
    for check in checks:
        yield from check.rest()


class RowCheck:
    """Of a projection whose key is the stream's id."""

    def __init__(
        self,
        stack: ExitStack,
        connection: Connection[TupleRow],
        schema: Schema,
        projection: Projection[Any],
        ids: list[UUID] | None,
    ) -> None:
        self._projection = projection
        self._checkpoint = position(connection, schema, projection)
        self._stored = StoredRows(projection)
        rows = stack.enter_context(self._stored.rows(connection, schema, ids))
        self._live = MergeJoin((row[0], row) for row in rows)

    def of(
        self, stream_id: UUID, envelopes: list[Envelope[Event]], unreadable: UnreadableEvent | None
    ) -> Iterable[Difference]:
        found = self._surplus(self._live.before(stream_id))
        if envelopes and envelopes[-1].position > self._checkpoint:
            envelopes = [envelope for envelope in envelopes if envelope.position <= self._checkpoint]
        row, not_folded = fold_stream(self._projection, envelopes)
        failed = not_folded or unreadable
        if failed is not None and failed.position <= self._checkpoint:
            found.append(in_quarantine(self._projection.name, failed))
        return found + self._stored.differences(stream_id, self._live.at(stream_id), row)

    def rest(self) -> Iterable[Difference]:
        return self._surplus(self._live.rest())

    def _surplus(self, rows: Iterable[tuple[UUID, Any]]) -> list[Difference]:
        return [difference for stream_id, row in rows for difference in self._stored.differences(stream_id, row, None)]


def _ids(
    connection: Connection[TupleRow], schema: Schema, projections: Sequence[Projection[Any]], alarms: bool, part: Part
) -> list[UUID]:
    """Returns the streams of that part."""
    if part.since is not None:
        ids = [stream_id for (stream_id,) in connection.execute(schema.sql(SINCE), {"since": part.since})]
        return ids if part.percent is None else Random().sample(ids, round(len(ids) * part.percent / 100))
    tables = [("event", "originator_id"), *([(ALARM, "stream_id")] if alarms else [])]
    tables += [(p.name, p.table(p.name).primary_key.columns[0].name) for p in projections]
    statement = " UNION ".join(SAMPLE.format(table=table, id=name) for table, name in tables)
    return [stream_id for (stream_id,) in connection.execute(schema.sql(statement), {"percent": part.percent})]


# ── by other keys ────────────────────────────────────────────────────────────────────────────────


def _differences_by_key(
    connection: Connection[TupleRow], store: EventStore[Event], projection: Projection[Any]
) -> Iterator[Difference]:
    checkpoint = position(connection, store.database.schema, projection)
    with in_position_order(connection, store, checkpoint) as envelopes:
        should_be = fold_by_key(projection, envelopes).rows
    for each in quarantine.listed(connection, store.database.schema, projection.name):
        yield Difference(projection.name, each.stream_id, LEFT_OUT, each.reason, READABLE)
    stored = StoredRows(projection)
    with stored.rows(connection, store.database.schema, None) as rows:
        for row in rows:
            key = row[: stored.key_length]
            yield from stored.differences(named(key), row, should_be.pop(key, None))
    for key, missing in should_be.items():
        yield from stored.differences(named(key), None, missing)


def in_quarantine(table: str, failed: UnreadableEvent) -> Difference:
    return Difference(table, failed.stream_id, LEFT_OUT, failed.reason, READABLE)


def named(key: Key) -> str:
    return " / ".join(map(str, key))
