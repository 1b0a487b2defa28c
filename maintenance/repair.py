"""Repairs the alarm table in place from the log: after a foreign writer, a restore without it, or a changed rule.

On a running system: each wrong row is locked before its stream is read again, so an append that changes the same alarm
goes first or comes after, and in both cases the later one is right. What was missing cannot be locked; so the table is
compared once more until nothing is found.
"""

from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.recorder import TooMuchAtOnce
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, Loaded, UnreadableEvent
from coupon_clock.maintenance.verify.alarms import StoredAlarm, alarm_of
from coupon_clock.maintenance.verify.rows import verify
from coupon_clock.maintenance.verify.stored_rows import LEFT_OUT

BATCH = 1_000

LOCK = "SELECT FROM {schema}.alarm WHERE stream_id = ANY(%s) ORDER BY stream_id FOR UPDATE"

# Deleted and inserted, not updated: an update would be refused as the late move of an end (schema.sql).
DROP = "DELETE FROM {schema}.alarm WHERE stream_id = ANY(%s)"

INSERT = """
INSERT INTO {schema}.alarm (stream_id, due_at, version, topic, ending)
SELECT * FROM unnest(%s::uuid[], %s::timestamptz[], %s::bigint[], %s::text[], %s::bytea[]) ORDER BY 1
"""

Read = Callable[[Sequence[UUID]], Loaded[Event]]


def repair_alarms(store: EventStore[Event], read: Read | None = None) -> int:
    """Returns how many alarms were wrong. Stopped in between, it can be run again. Alarms of streams that cannot be
    read stay as they are.

    `read`: how streams are read while their alarms are locked. Raises DatabaseUnavailable.
    """
    repaired = 0
    while wrong := list({each.id: None for each in verify(store, []) if each.column != LEFT_OUT}):
        stream_ids = [stream_id for stream_id in wrong if isinstance(stream_id, UUID)]
        for start in range(0, len(stream_ids), BATCH):
            _repair(store, stream_ids[start : start + BATCH], read or store.load_many)
        repaired += len(wrong)
    return repaired


def _repair(store: EventStore[Event], stream_ids: list[UUID], read: Read) -> None:
    sql = store.database.sql
    with store.database.connection() as connection, connection.transaction():
        connection.execute(sql(LOCK), (stream_ids,))
        alarms: dict[UUID, StoredAlarm] = {}
        readable: list[UUID] = []
        for stream_id, envelopes in read_in_parts(read, stream_ids):
            if isinstance(envelopes, UnreadableEvent):
                continue
            readable.append(stream_id)
            if alarm := alarm_of(store, envelopes):
                alarms[stream_id] = alarm
        connection.execute(sql(DROP), (readable,))
        columns = zip(*((stream_id, *alarm) for stream_id, alarm in alarms.items()), strict=True)
        if alarms:
            connection.execute(sql(INSERT), [list(column) for column in columns])


def read_in_parts(
    read: Read, stream_ids: Sequence[UUID]
) -> Iterator[tuple[UUID, list[Envelope[Event]] | UnreadableEvent]]:
    """Halved where they are too much at once."""
    try:
        yield from read(stream_ids).streams.items()
    except TooMuchAtOnce:
        middle = len(stream_ids) // 2
        yield from read_in_parts(read, stream_ids[:middle])
        yield from read_in_parts(read, stream_ids[middle:])
