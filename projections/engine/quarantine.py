"""Streams that a projection leaves alone, because it could not take in one of their events.

The row of such a stream stays as it was before that event, is marked where it is read, and is made anew once the event
can be taken in. A projection that gathers many streams in a row leaves out the event alone, and needs a rebuild then.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.projections.engine.fold import failure, fold_stream
from coupon_clock.projections.engine.projection import Key, Projection
from coupon_clock.projections.engine.tables import delete, save

LONGEST_REASON = 1_000

ADD = """
INSERT INTO {schema}.quarantine (projection, stream_id, version, position, reason)
SELECT %b, * FROM unnest(%b, %b, %b, %b)
    ON CONFLICT DO NOTHING
RETURNING stream_id
"""
AMONG = "SELECT stream_id FROM {schema}.quarantine WHERE projection = %s AND stream_id = ANY (%b)"
LIST = """
SELECT projection, stream_id, version, position, reason, since
  FROM {schema}.quarantine
 WHERE (%(projection)s::text IS NULL OR projection = %(projection)s)
   AND (%(stream_id)s::uuid IS NULL OR stream_id = %(stream_id)s)
   AND (projection, stream_id) > (%(after_projection)s, %(after)s)
 ORDER BY projection, stream_id
 LIMIT %(limit)s
"""
COUNT = "SELECT count(*) FROM {schema}.quarantine WHERE projection = %s"
LOCK = "SELECT position FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"
REMOVE = "DELETE FROM {schema}.quarantine WHERE projection = %s AND stream_id = %s"
CLEAR = "DELETE FROM {schema}.quarantine WHERE projection = %s"
TAKE_OVER = "UPDATE {schema}.quarantine SET projection = %s WHERE projection = %s"
FIRST = UUID(int=0)

log = Log(__name__)


class Quarantined(NamedTuple):
    """`version`, `position`: of the first event that could not be taken in, and the `reason`."""

    projection: str
    stream_id: UUID
    version: int
    position: int
    reason: str
    since: datetime


def add(connection: Connection[TupleRow], schema: Schema, table: str, failed: Collection[UnreadableEvent]) -> None:
    """Logs once how many are new."""
    if not failed:
        return
    columns = (
        arrays.uuids([each.stream_id for each in failed]),
        arrays.packed(arrays.Bigints, [each.version for each in failed]),
        arrays.packed(arrays.Bigints, [each.position for each in failed]),
        arrays.packed(arrays.Texts, [each.reason[:LONGEST_REASON].replace("\0", "") for each in failed]),
    )
    new = {stream_id for (stream_id,) in connection.execute(schema.sql(ADD), (table, *columns))}
    if new:
        first = next(each for each in failed if each.stream_id in new)
        log.error("quarantined", action="project", projection=table, streams=len(new), first=str(first))


def among(connection: Connection[TupleRow], schema: Schema, table: str, stream_ids: Collection[UUID]) -> set[UUID]:
    """Returns which of these streams are in quarantine."""
    rows = connection.execute(schema.sql(AMONG), (table, arrays.uuids(list(stream_ids))))
    return {stream_id for (stream_id,) in rows}


def listed(
    connection: Connection[TupleRow],
    schema: Schema,
    projection: str | None = None,
    stream_id: UUID | None = None,
    after: tuple[str, UUID] = ("", FIRST),
    limit: int | None = None,
) -> list[Quarantined]:
    """Returns them by projection and stream, those beyond `after`."""
    parameters = {
        "projection": projection,
        "stream_id": stream_id,
        "after_projection": after[0],
        "after": after[1],
        "limit": limit,
    }
    with connection.cursor(row_factory=class_row(Quarantined)) as cursor:
        return cursor.execute(schema.sql(LIST), parameters).fetchall()


def count(connection: Connection[TupleRow], schema: Schema, table: str) -> int:
    (number,) = fetch_one(connection, schema.sql(COUNT), table)
    return int(number)


def remake_row(store: EventStore[Any], projection: Projection[Any], stream_id: UUID) -> UnreadableEvent | None:
    """Makes the row of one stream anew, up to where the projection is, and frees it; or returns why that cannot be.

    Of a projection with one row a stream. Raises DatabaseUnavailable.
    """
    schema, table = store.database.schema, projection.name
    with store.database.connection() as connection, connection.transaction():
        (position,) = fetch_one(connection, schema.sql(LOCK), table)
        envelopes, failed = store.load_readable(stream_id)
        envelopes = [each for each in envelopes if each.position <= position]
        row, not_folded = fold_stream(projection, envelopes)
        failed = not_folded or failed
        if failed is None or failed.position > position:
            failed = _stored(connection, schema, projection, row, envelopes, stream_id)
        if failed is None:
            connection.execute(schema.sql(REMOVE), (table, stream_id))
        else:
            add(connection, schema, table, [failed])
        return failed


def _stored(
    connection: Connection[TupleRow],
    schema: Schema,
    projection: Projection[Any],
    row: Any,
    envelopes: Sequence[Envelope[Any]],
    stream_id: UUID,
) -> UnreadableEvent | None:
    if row is None:
        delete(connection, schema, projection, projection.name, stream_id)
        return None
    try:
        with connection.transaction():
            save(connection, schema, projection, projection.name, [row])
    except UNSTORABLE as error:
        return failure(envelopes[-1], error)
    return None


def clear(connection: Connection[TupleRow], schema: Schema, table: str) -> None:
    """For a shadow that is begun anew."""
    connection.execute(schema.sql(CLEAR), (table,))


def take_over(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any]) -> None:
    """For a shadow that becomes live."""
    clear(connection, schema, projection.name)
    connection.execute(schema.sql(TAKE_OVER), (projection.name, projection.shadow))


def first_of_each_stream(failed: Iterable[UnreadableEvent]) -> list[UnreadableEvent]:
    first: dict[UUID, UnreadableEvent] = {}
    for each in sorted(failed, key=lambda each: each.position):
        first.setdefault(each.stream_id, each)
    return list(first.values())


def readable_streams(batch: Batch[Any], quarantined: Collection[UUID]) -> list[Envelope[Any]]:
    """The events of streams that are in no quarantine, of each those before the first that cannot be read."""
    until: dict[UUID, int] = {}
    for each in batch.unreadable:
        until.setdefault(each.stream_id, each.position)
    return [
        each
        for each in batch.envelopes
        if each.stream_id not in quarantined and each.position < until.get(each.stream_id, each.position + 1)
    ]


# ── rows that PostgreSQL does not take ───────────────────────────────────────────────────────────

UNSTORABLE = (
    psycopg.DataError,
    psycopg.IntegrityError,
    msgspec.ValidationError,
    UnicodeError,
    OverflowError,
    TypeError,
)
"""What the values of a row can lead to."""

SaveRows = Callable[
    [Connection[TupleRow], Schema, Projection[Any], str, Mapping[Key, Any], Sequence[Envelope[Any]]],
    list[UnreadableEvent],
]


def save_apart(
    connection: Connection[TupleRow],
    schema: Schema,
    projection: Projection[Any],
    table: str,
    rows: Mapping[Key, Any],
    envelopes: Sequence[Envelope[Any]],
) -> list[UnreadableEvent]:
    """Row by row, after all together were refused. Returns the first event behind each that cannot be stored; where
    that is all of several, it is not the rows that are wrong, and the error is raised."""
    failed = []
    for key, row in rows.items():
        try:
            with connection.transaction():
                save(connection, schema, projection, table, [row])
        except UNSTORABLE as error:
            behind = next(each for each in envelopes if projection.key(each) == key)
            failed.append(failure(behind, error))
            if len(failed) == len(rows) > 1:
                raise
    return failed
