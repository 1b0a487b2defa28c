"""Reads and folds all that a rebuild would, and writes nothing: can every event be read, and how long does it take?"""

from time import monotonic
from typing import Any

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.bulk_reader import in_position_order, snapshot, streams
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.projections.engine.projection import Key, Projection
from coupon_clock.projections.engine.projector import applied
from coupon_clock.projections.rebuild.rebuild import Progress
from coupon_clock.projections.rebuild.replay import folded

TELL_EVERY = 10_000

LOG = "SELECT count(*), coalesce(max(notification_id), 0) FROM {schema}.event"


class DryRun(Struct, frozen=True):
    """What a rebuild would have to do; `seconds`: for reading and folding, in one process."""

    projection: str
    events: int
    rows: int
    seconds: float


def dry_run(store: EventStore[Event], projection: Projection[Any], progress: Progress) -> DryRun:
    """Raises UnreadableEvent, DatabaseUnavailable."""
    started = monotonic()
    with snapshot(store.database) as (log,):
        (events, end) = fetch_one(log, store.database.sql(LOG))
        if projection.one_row_a_stream:
            rows = _fold_streams(log, store, projection, events, progress)
        else:
            rows = len(folded_by_key(log, store, projection, end))
    return DryRun(projection.name, events, rows, monotonic() - started)


def _fold_streams(
    log: Connection[TupleRow], store: EventStore[Event], projection: Projection[Any], events: int, progress: Progress
) -> int:
    rows = done = 0
    with streams(log, store) as found:
        for _, envelopes in found:
            folded(projection, envelopes)
            rows += 1
            done += len(envelopes)
            if rows % TELL_EVERY == 0:
                progress("replaying", done, events)
    return rows


def folded_by_key(
    connection: Connection[TupleRow], store: EventStore[Event], projection: Projection[Any], until: int
) -> dict[Key, Any]:
    """All rows as of that position, in memory. Raises UnreadableEvent."""
    rows: dict[Key, Any] = {}
    with in_position_order(connection, store, until) as envelopes:
        for envelope in envelopes:
            key = projection.key(envelope)
            rows[key] = applied(projection, rows.get(key), envelope)
    return rows
