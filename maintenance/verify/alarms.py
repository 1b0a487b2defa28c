"""Compares the alarm table with the log: when each stream is due, and the ending that is prepared for it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.coupon_template import COUPON_TEMPLATES, fold
from coupon_clock.domain.decider import prepared_ending
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.bulk_reader import MergeJoin, copied
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.maintenance.verify.stored_rows import LEFT_OUT, READABLE, Difference

ALARM = "alarm"

STORED = """
COPY (SELECT stream_id, due_at, version, topic, ending
        FROM {{schema}}.alarm
       {where}
       ORDER BY stream_id)
  TO STDOUT (FORMAT BINARY)
"""
TYPES = ("uuid", "timestamptz", "int8", "text", "bytea")


class StoredAlarm(NamedTuple):
    """One row, without what the relay notes. An alarm without an ending has no version and no topic."""

    due_at: datetime
    version: int | None
    topic: str | None
    ending: bytes | None


def alarm_of(store: EventStore[Event], envelopes: Sequence[Envelope[Event]]) -> StoredAlarm | None:
    """Returns the alarm that a stream with these events must have. `ending` is in the form that is stored today."""
    state = fold(envelope.event for envelope in envelopes)
    due_at = None if state is None else COUPON_TEMPLATES.due_at(state)
    if state is None or due_at is None:
        return None
    ending = prepared_ending(COUPON_TEMPLATES, state.template_id, state)
    if ending is None:
        return StoredAlarm(due_at, None, None, None)
    topic, encoded = store.encoded(ending)
    return StoredAlarm(due_at, envelopes[-1].version, topic, encoded)


class AlarmCheck:
    """Each alarm is what its stream says. Called in order of the ids."""

    def __init__(
        self, stack: ExitStack, connection: Connection[TupleRow], store: EventStore[Event], ids: list[UUID] | None
    ) -> None:
        where = "" if ids is None else "WHERE stream_id = ANY(%(ids)s::uuid[])"
        rows = copied(connection, store.database.sql(STORED.format(where=where)), TYPES, {"ids": ids})
        self._store = store
        self._alarms = MergeJoin((row[0], StoredAlarm._make(row[1:])) for row in stack.enter_context(rows))

    def of(
        self, stream_id: UUID, envelopes: list[Envelope[Event]], unreadable: UnreadableEvent | None
    ) -> Iterable[Difference]:
        surplus = self._surplus(self._alarms.before(stream_id))
        found = self._alarms.at(stream_id)
        try:
            should_be = alarm_of(self._store, envelopes)
        except Exception as error:
            return [*surplus, Difference(ALARM, stream_id, LEFT_OUT, repr(error), READABLE)]
        if unreadable is not None:
            return [*surplus, Difference(ALARM, stream_id, LEFT_OUT, unreadable.reason, READABLE)]
        return surplus if found == should_be else [*surplus, *differences(stream_id, found, should_be)]

    def rest(self) -> Iterable[Difference]:
        return self._surplus(self._alarms.rest())

    def _surplus(self, alarms: Iterable[tuple[UUID, StoredAlarm]]) -> list[Difference]:
        return [each for stream_id, alarm in alarms for each in differences(stream_id, alarm, None)]


def differences(stream_id: UUID, found: StoredAlarm | None, should_be: StoredAlarm | None) -> Iterator[Difference]:
    """A missing or surplus alarm differs in its due time; a wrong ending alone only makes the end more costly."""
    if found is None or should_be is None:
        yield Difference(ALARM, stream_id, "due_at", found and found.due_at, should_be and should_be.due_at)
        return
    for column, value, wanted in zip(StoredAlarm._fields, found, should_be, strict=True):
        if value != wanted:
            yield Difference(ALARM, stream_id, column, readable(value), readable(wanted))


def readable(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
