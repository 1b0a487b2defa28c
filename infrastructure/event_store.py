"""Streams of events in PostgreSQL: load, load_many, append. Events go in, envelopes come out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import psycopg
from msgspec import UNSET, Struct, UnsetType
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponError
from coupon_clock.infrastructure.database import DatabaseUnavailable, Pool, available, first_line
from coupon_clock.infrastructure.server_clock import ServerClock

LOAD = """
SELECT clock.now, log.originator_id, log.originator_version, log.notification_id, log.state
  FROM (SELECT coupon_clock_now() AS now) AS clock
  LEFT JOIN coupon_template_events AS log ON log.originator_id = ANY(%b)
 ORDER BY log.originator_id, log.originator_version
"""

APPEND = """
SELECT stream_id, version, log_position
  FROM coupon_clock_append(%b, %b::bigint[], %b::text[], %b::bytea[], %b::uuid[], %b::timestamptz[])
"""

Event = TypeVar("Event")
Cause = Literal["command", "message", "sweep"]


class Record(Struct, Generic[Event], frozen=True, omit_defaults=True):
    """What is stored of an event: itself, and how it came about."""

    event: Event
    recorded_at: datetime
    command_id: UUID
    cause: Cause = "command"
    actor: str | None = None


class Envelope(Struct, Generic[Event], frozen=True, kw_only=True):
    """One event with its place: `version` in its stream from 1, `position` in the log; `recorded_at` is when it was
    decided, by PostgreSQL's clock."""

    event: Event
    version: int
    position: int
    recorded_at: datetime
    command_id: UUID
    actor: str | None
    cause: Cause
    stream_id: UUID


class Append(Struct, Generic[Event], frozen=True):
    """What one stream gains, directly after `expected_version`. `due_at`: UNSET leaves its alarm, None drops it."""

    stream_id: UUID
    expected_version: int
    records: Sequence[Record[Event]]
    due_at: datetime | UnsetType | None = UNSET


class Appended(Struct, frozen=True):
    """The positions of the records, in their order."""

    positions: list[int]


class Conflict(Struct, frozen=True):
    """Another append came first; nothing of this stream went in."""

    stream_id: UUID
    expected_version: int
    actual_version: int


class Loaded(NamedTuple, Generic[Event]):
    """Envelopes by stream, oldest first, or why a stream cannot be read; and PostgreSQL's time just after."""

    streams: "dict[UUID, list[Envelope[Event]] | UnreadableEvent]"
    now: datetime


class UnreadableEvent(CouponError):
    """Event {version} of stream {stream_id}, at position {position}, cannot be read by this version: {reason}."""

    def __init__(self, stream_id: UUID, version: int, position: int, reason: str) -> None:
        super().__init__(stream_id, version, position, reason)
        self.stream_id, self.version, self.position, self.reason = stream_id, version, position, reason


class AppendRolledBack(DatabaseUnavailable):
    """PostgreSQL rolled the events back ({reason}): try again."""


class AnswerLost(DatabaseUnavailable):
    """Whether the events were stored is unknown, because the connection broke ({reason})."""


class EventStore(Generic[Event]):
    """`event_type`: the union of all events that this log holds, as msgspec tagged structs."""

    def __init__(self, pool: Pool, clock: ServerClock, event_type: Any) -> None:
        self._pool = pool
        self._clock = clock
        self._encode = msgspec.json.Encoder().encode
        self._decoder = msgspec.json.Decoder(Record[event_type])

    def load(self, stream_id: UUID) -> tuple[list[Envelope[Event]], datetime]:
        """The whole stream and PostgreSQL's time. Raises DatabaseUnavailable, UnreadableEvent."""
        loaded = self.load_many([stream_id])
        stream = loaded.streams[stream_id]
        if isinstance(stream, UnreadableEvent):
            raise stream
        return stream, loaded.now

    def load_many(self, stream_ids: Sequence[UUID]) -> Loaded[Event]:
        """In one round trip. One stream that cannot be read spoils no other. Raises DatabaseUnavailable."""
        started = monotonic()
        with available(), self._pool.connection() as connection:
            rows = connection.execute(LOAD, (list(stream_ids),), prepare=True, binary=True).fetchall()
        now: datetime = rows[0][0]
        self._clock.learn(now, started, monotonic())
        streams: dict[UUID, list[Envelope[Event]] | UnreadableEvent] = {stream_id: [] for stream_id in stream_ids}
        for _, stream_id, version, position, state in rows:
            if stream_id is None:
                break
            self._extend(streams, stream_id, version, position, state)
        return Loaded(streams, now)

    def learn_time(self) -> None:
        """Reads PostgreSQL's time, as every load does. Raises DatabaseUnavailable."""
        self.load_many([])

    def append(self, appends: Sequence[Append[Event]]) -> list[Appended | Conflict]:
        """All in one transaction and one round trip, with their alarms; answers in order.

        Raises DatabaseUnavailable (nothing was stored), AppendRolledBack (nothing was stored), AnswerLost.
        """
        if not appends:
            return []
        columns = self._columns(appends)
        with available(), self._pool.connection() as connection, rolled_back_or_lost(connection):
            rows = connection.execute(APPEND, columns, prepare=True, binary=True).fetchall()
        positions: dict[UUID, list[int]] = {}
        versions: dict[UUID, int] = {}
        for stream_id, version, position in rows:
            if position is None:
                versions[stream_id] = version
            else:
                positions.setdefault(stream_id, []).append(position)
        return [
            Appended(positions[append.stream_id])
            if append.stream_id in positions
            else Conflict(append.stream_id, append.expected_version, versions[append.stream_id])
            for append in appends
        ]

    def envelope(self, stream_id: UUID, version: int, position: int, state: bytes) -> Envelope[Event]:
        """Raises UnreadableEvent."""
        try:
            return enveloped(self._decoder.decode(state), stream_id, version, position)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UnreadableEvent(stream_id, version, position, str(error)) from error

    def _extend(
        self,
        streams: dict[UUID, list[Envelope[Event]] | UnreadableEvent],
        stream_id: UUID,
        version: int,
        position: int,
        state: bytes,
    ) -> None:
        stream = streams[stream_id]
        if isinstance(stream, UnreadableEvent):
            return
        try:
            stream.append(self.envelope(stream_id, version, position, state))
        except UnreadableEvent as unreadable:
            streams[stream_id] = unreadable

    def _columns(self, appends: Sequence[Append[Event]]) -> tuple[list[object], ...]:
        ids: list[object] = []
        versions: list[object] = []
        topics: list[object] = []
        states: list[object] = []
        for append in sorted(appends, key=lambda append: append.stream_id):
            for version, record in enumerate(append.records, append.expected_version + 1):
                ids.append(append.stream_id)
                versions.append(version)
                topics.append(topic(record.event))
                states.append(self._encode(record))
        alarms = [append for append in appends if append.due_at is not UNSET]
        return ids, versions, topics, states, [a.stream_id for a in alarms], [a.due_at for a in alarms]


def enveloped(record: Record[Event], stream_id: UUID, version: int, position: int) -> Envelope[Event]:
    return Envelope(
        event=record.event,
        version=version,
        position=position,
        recorded_at=record.recorded_at,
        command_id=record.command_id,
        actor=record.actor,
        cause=record.cause,
        stream_id=stream_id,
    )


def topic(event: object) -> str:
    """The event's tag: `CouponTemplate.Created`."""
    return str(type(event).__struct_config__.tag)  # type: ignore[attr-defined]


@contextmanager
def rolled_back_or_lost(connection: Connection[TupleRow]) -> Iterator[None]:
    """Tells what certainly did not happen from what may have: an error that PostgreSQL itself reports, on a
    connection that lives on, means that the transaction was rolled back."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.IntegrityError) as error:
        failure = AnswerLost if connection.closed else AppendRolledBack
        raise failure(first_line(error)) from error
