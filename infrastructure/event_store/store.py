"""Streams of events in PostgreSQL: load, load_many, append. Events go in, envelopes come out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import psycopg
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.errors import (
    TIME_IS_UP,
    DatabaseUnavailable,
    TimedOut,
    first_line,
    translate_errors,
)
from coupon_clock.infrastructure.postgres.pool import Connections
from coupon_clock.infrastructure.postgres.server_clock import ServerClock

LOAD = """
SELECT clock.now, log.originator_id, log.originator_version, log.notification_id, log.state
  FROM (SELECT coupon_clock_now() AS now) AS clock
  LEFT JOIN coupon_template_events AS log ON log.originator_id = ANY(%b)
 ORDER BY log.originator_id, log.originator_version
"""

APPEND = """
SELECT stream_id, version, log_position
  FROM coupon_clock_append(%b, %b, %b, %b, %b, %b, %b)
"""
APPEND_EACH = """
SELECT stream_id, version, log_position
  FROM coupon_clock_append_each(%b, %b, %b, %b, %b, %b, %b)
"""

Event = TypeVar("Event")
Cause = Literal["command", "message", "reconciler"]


class Record(Struct, Generic[Event], frozen=True, omit_defaults=True, gc=False):
    """What is stored of an event: itself, and how it came about."""

    event: Event
    recorded_at: datetime
    command_id: UUID
    cause: Cause = "command"
    actor: str | None = None


class RecordFormat(Generic[Event]):
    """Records as they are stored, in JSON. `stored_type`: the union of all event shapes ever written, as msgspec
    tagged structs; an earlier one has an `upcast()`, which answers with a later one (docs/events.md)."""

    def __init__(self, stored_type: Any) -> None:
        self.encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Record[stored_type]).decode

    def decode(self, state: bytes) -> Record[Event]:
        """Raises msgspec.MsgspecError, UnicodeDecodeError."""
        record: Record[Any] = self._decode(state)
        while upcast := getattr(record.event, "upcast", None):
            record = replace(record, event=upcast())
        return record


class Envelope(Struct, Generic[Event], frozen=True, gc=False):
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


class Append(Struct, Generic[Event], frozen=True, gc=False):
    """What one stream gains, directly after `expected_version`. `due_at`: UNSET leaves its alarm, None drops it."""

    stream_id: UUID
    expected_version: int
    records: Sequence[Record[Event]]
    due_at: datetime | UnsetType | None = UNSET


class Appended(Struct, frozen=True, gc=False):
    """The positions of the records, in their order."""

    positions: list[int]


class Conflict(Struct, frozen=True):
    """Another append came first; nothing of this stream went in."""

    stream_id: UUID
    expected_version: int
    actual_version: int


class Busy(Struct, frozen=True):
    """Somebody has the stream under way; nothing of it went in."""


class Loaded(NamedTuple, Generic[Event]):
    """Envelopes by stream, oldest first, or why a stream cannot be read; and PostgreSQL's time just after."""

    streams: "dict[UUID, list[Envelope[Event]] | UnreadableEvent]"
    now: datetime


@dataclass(eq=False)
class UnreadableEvent(CouponClockError):
    """Event {version} of stream {stream_id}, at position {position}, cannot be read by this version: {reason}."""

    stream_id: UUID
    version: int
    position: int
    reason: str


class AppendRolledBack(DatabaseUnavailable):
    """PostgreSQL rolled the events back ({reason}): try again."""


@dataclass(eq=False)
class Unstorable(CouponClockError):
    """What was to be stored cannot be ({reason}): mend what decided it."""

    reason: str


@dataclass(eq=False)
class AnswerLost(CouponClockError):
    """Whether the events were stored is unknown, because the connection broke ({reason})."""

    reason: str


class EventStore(Generic[Event]):
    """`stored_type`: every event shape that this log may hold, as RecordFormat takes it."""

    def __init__(self, connections: Connections, clock: ServerClock, stored_type: Any) -> None:
        self._connections = connections
        self._clock = clock
        self._format: RecordFormat[Event] = RecordFormat(stored_type)

    def over(self, connections: Connections) -> "EventStore[Event]":
        """The same log, over other connections."""
        other = copy(self)
        other._connections = connections
        return other

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
        with translate_errors(), self._connections.connection() as connection:
            rows = connection.execute(LOAD, (arrays.uuids(stream_ids),), prepare=True, binary=True).fetchall()
        now: datetime = rows[0][0]
        self._clock.learn(now, started, monotonic())
        streams: dict[UUID, list[Envelope[Event]] | UnreadableEvent] = {stream_id: [] for stream_id in stream_ids}
        for _, stream_id, version, position, state in rows:
            if stream_id is None:
                break
            self._extend(streams, stream_id, version, position, state)
        return Loaded(streams, now)

    def learn_time(self) -> datetime:
        """Reads PostgreSQL's time, as every load does. Raises DatabaseUnavailable."""
        return self.load_many([]).now

    def append(
        self, appends: Sequence[Append[Event]], longest_wait: timedelta | None = None
    ) -> list[Appended | Conflict | Busy]:
        """All in one transaction and one round trip, with their alarms; answers in order.

        `longest_wait`: for others who have one of these streams under way; by default the connection's lock timeout.
        Raises TimedOut where it is over, AppendRolledBack or another DatabaseUnavailable (nothing was stored),
        AnswerLost, Unstorable.
        """
        if not appends:
            return []
        return answers(appends, self._called(APPEND, appends, longest_wait))

    def append_each(
        self, appends: Sequence[Append[Event]], longest_wait: timedelta
    ) -> list[Appended | Conflict | Busy]:
        """As `append`, but one that waits in vain is left out, and spoils no other. Slower."""
        return answers(appends, self._called(APPEND_EACH, appends, longest_wait))

    def _called(
        self, function: str, appends: Sequence[Append[Event]], longest_wait: timedelta | None
    ) -> list[TupleRow]:
        try:
            parameters = (*self._columns(appends), longest_wait)
        except Exception as error:
            raise Unstorable(repr(error)) from error
        with translate_errors(), self._connections.connection() as connection, rolled_back_or_lost(connection):
            return connection.execute(function, parameters, prepare=True, binary=True).fetchall()

    def envelope(self, stream_id: UUID, version: int, position: int, state: bytes) -> Envelope[Event]:
        """Raises UnreadableEvent."""
        try:
            return enveloped(self._format.decode(state), stream_id, version, position)
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

    def _columns(self, appends: Sequence[Append[Event]]) -> tuple[object, ...]:
        ids: list[UUID] = []
        versions: list[int] = []
        topics: list[str] = []
        states: list[bytes] = []
        for append in sorted(appends, key=lambda append: append.stream_id.int):
            for version, record in enumerate(append.records, append.expected_version + 1):
                ids.append(append.stream_id)
                versions.append(version)
                topics.append(topic(record.event))
                states.append(self._format.encode(record))
        alarms = [(append.stream_id, append.due_at) for append in appends if not isinstance(append.due_at, UnsetType)]
        return (
            arrays.uuids(ids),
            arrays.bigints(versions),
            arrays.texts(topics),
            arrays.byteas(states),
            arrays.uuids([stream_id for stream_id, _ in alarms]),
            arrays.timestamps([due_at for _, due_at in alarms]),
        )


def enveloped(record: Record[Event], stream_id: UUID, version: int, position: int) -> Envelope[Event]:
    return Envelope(
        record.event, version, position, record.recorded_at, record.command_id, record.actor, record.cause, stream_id
    )


def answers(appends: Sequence[Append[Event]], rows: Sequence[TupleRow]) -> list[Appended | Conflict | Busy]:
    """`rows`: stream, version, position of what went in, in the order of versions; of a stream left out, the version
    that it has and no position, or neither."""
    positions: dict[UUID, list[int]] = {}
    actual: dict[UUID, int | None] = {}
    for stream_id, version, position in rows:
        if position is None:
            actual[stream_id] = version
        else:
            positions.setdefault(stream_id, []).append(position)
    return [
        left_out(append, actual[append.stream_id])
        if append.stream_id in actual
        else Appended(positions[append.stream_id])
        for append in appends
    ]


def left_out(append: Append[Event], actual_version: int | None) -> Conflict | Busy:
    if actual_version is None:
        return Busy()
    return Conflict(append.stream_id, append.expected_version, actual_version)


def topic(event: object) -> str:
    """The event's tag: `CouponTemplate.Created`."""
    return str(type(event).__struct_config__.tag)  # type: ignore[attr-defined]


@contextmanager
def rolled_back_or_lost(connection: Connection[TupleRow]) -> Iterator[None]:
    """Tells what certainly did not happen from what may have: an error that PostgreSQL itself reports, on a
    connection that lives on, means that the transaction was rolled back."""
    try:
        yield
    except TIME_IS_UP as error:
        raise TimedOut(first_line(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.IntegrityError, psycopg.InternalError) as error:
        failure = AnswerLost if connection.closed else AppendRolledBack
        raise failure(first_line(error)) from error
