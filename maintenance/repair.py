"""Mends the alarm table in place from the log: after a foreign writer, or a restore without it.

On a running system: each wrong row is locked before its stream is read again, so an append that changes the same alarm
goes first or comes after, and in both cases the later one is right. What was missing cannot be locked; so it is looked
at once more until nothing is found.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID

from coupon_clock.domain.coupon_template import due_at, fold
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.store import EventStore, UnreadableEvent
from coupon_clock.maintenance.verify.rows import verify

BATCH = 1_000

LOCK = "SELECT FROM {schema}.alarm WHERE stream_id = ANY(%s) ORDER BY stream_id FOR UPDATE"

# Deleted and inserted: an update would be taken for the late move of an end (schema.sql).
KEEP = "INSERT INTO {schema}.alarm (stream_id, due_at) SELECT * FROM unnest(%s::uuid[], %s::timestamptz[])"

DROP = "DELETE FROM {schema}.alarm WHERE stream_id = ANY(%s)"


def repair_alarms(store: EventStore[Event]) -> int:
    """Answers how many were wrong. Stopped in between, it can be run again.

    Raises DatabaseUnavailable, UnreadableEvent.
    """
    repaired = 0
    while wrong := [difference.id for difference in verify(store, [])]:
        for start in range(0, len(wrong), BATCH):
            _repair(store, [stream_id for stream_id in wrong[start : start + BATCH] if isinstance(stream_id, UUID)])
        repaired += len(wrong)
    return repaired


def _repair(store: EventStore[Event], stream_ids: Sequence[UUID]) -> None:
    sql = store.database.sql
    with store.database.connection() as connection, connection.transaction():
        connection.execute(sql(LOCK), (list(stream_ids),))
        alarms = dict(_due(store, stream_ids))
        kept = {stream_id: due for stream_id, due in alarms.items() if due is not None}
        connection.execute(sql(DROP), (list(alarms),))
        connection.execute(sql(KEEP), (list(kept), list(kept.values())))


def _due(store: EventStore[Event], stream_ids: Sequence[UUID]) -> Iterator[tuple[UUID, datetime | None]]:
    for stream_id, stream in store.load_many(stream_ids).streams.items():
        if isinstance(stream, UnreadableEvent):
            raise stream
        state = fold(envelope.event for envelope in stream)
        yield stream_id, due_at(state) if state else None
