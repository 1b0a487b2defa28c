"""Streams of events: load, load_many, append. Events go in, envelopes come out; types above the recorder."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from operator import attrgetter
from time import monotonic
from typing import Any, Generic, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from coupon_clock.domain.decider import Event
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.log_reader import RecordedEvent, wait_for_writers
from coupon_clock.infrastructure.event_store.recorder import EventLogRecorder, NewEvents
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.database import Connections, Database
from coupon_clock.infrastructure.postgres.server_clock import ServerClock

NEW_EVENTS = tuple(NewEvents.__annotations__.values())
STREAM_ID = attrgetter("stream_id.int")

Cause = Literal["command", "message", "reconciler"]


class EventFormat(Generic[Event]):
    """Events as they are stored, in JSON. `stored_type`: the union of all event shapes ever written, as msgspec tagged
    structs; an earlier one has an `upcast()`, which returns a later one (docs/events.md)."""

    def __init__(self, stored_type: Any) -> None:
        self.encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(stored_type).decode

    def decode(self, state: bytes) -> Event:
        """Raises msgspec.MsgspecError, UnicodeDecodeError."""
        event: Any = self._decode(state)
        while upcast := getattr(event, "upcast", None):
            event = upcast()
        return event  # type: ignore[no-any-return]


class NewEvent(Struct, Generic[Event], frozen=True, gc=False):
    """An event to be stored, and how it came about."""

    event: Event
    command_id: UUID
    cause: Cause = "command"
    actor: str | None = None


class Envelope(Struct, Generic[Event], frozen=True, gc=False):
    """One stored event: `version` in its stream from 1, `position` in the log; `recorded_at` is PostgreSQL's time when
    it was stored; `command_id` is None where another writer gave none."""

    event: Event
    version: int
    position: int
    recorded_at: datetime
    command_id: UUID | None
    actor: str | None
    cause: Cause
    stream_id: UUID


class Append(Struct, Generic[Event], frozen=True, gc=False):
    """What one stream gains, directly after `expected_version`. `due_at`: UNSET leaves its alarm, None drops it.
    `ending`: the event that this due time leads to, where it is known already."""

    stream_id: UUID
    expected_version: int
    events: Sequence[NewEvent[Event]]
    due_at: datetime | UnsetType | None = UNSET
    ending: Event | None = None


class Appended(Struct, frozen=True, gc=False):
    """The positions of the events, in their order."""

    positions: list[int]


class Conflict(Struct, frozen=True):
    """Another append came first, or the stream became due since it was decided on; nothing of it went in."""

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


@dataclass(eq=False)
class Unstorable(CouponClockError):
    """What was to be stored cannot be ({reason}): correct what decided it."""

    reason: str


class EventStore(Generic[Event]):
    """`stored_type`: every event shape that this log may hold, as EventFormat takes it."""

    def __init__(self, database: Database, clock: ServerClock, stored_type: Any) -> None:
        self.database = database
        self.recorder = EventLogRecorder(database)
        self.clock = clock
        self._format: EventFormat[Event] = EventFormat(stored_type)

    def over(self, connections: Connections) -> "EventStore[Event]":
        """The same log, over other connections."""
        other = copy(self)
        other.recorder = EventLogRecorder(connections)
        return other

    def load(self, stream_id: UUID) -> tuple[list[Envelope[Event]], datetime]:
        """The whole stream and PostgreSQL's time. Raises DatabaseUnavailable, UnreadableEvent."""
        loaded = self.load_many([stream_id])
        stream = loaded.streams[stream_id]
        if isinstance(stream, UnreadableEvent):
            raise stream
        return stream, loaded.now

    def load_readable(self, stream_id: UUID) -> "tuple[list[Envelope[Event]], UnreadableEvent | None]":
        """As much of the stream as can be read, and the first event that cannot. Raises DatabaseUnavailable."""
        _, events = self.recorder.select_streams([stream_id])
        return self.readable(events)

    def readable(self, events: Sequence[Any]) -> "tuple[list[Envelope[Event]], UnreadableEvent | None]":
        """Of one stream, rows with the fields of RecordedEvent: as many as can be read, and the first that cannot."""
        try:
            return list(map(self.envelope, events)), None
        except UnreadableEvent:
            return self._as_far_as_readable(events)

    def _as_far_as_readable(self, events: Sequence[Any]) -> "tuple[list[Envelope[Event]], UnreadableEvent | None]":
        envelopes: list[Envelope[Event]] = []
        for event in events:
            try:
                envelopes.append(self.envelope(event))
            except UnreadableEvent as unreadable:
                return envelopes, unreadable
        return envelopes, None

    def load_many(self, stream_ids: Sequence[UUID]) -> Loaded[Event]:
        """In one round trip. One stream that cannot be read spoils no other. Raises DatabaseUnavailable."""
        started = monotonic()
        now, events = self.recorder.select_streams(stream_ids)
        self.clock.learn(now, started, monotonic())
        streams: dict[UUID, list[Envelope[Event]] | UnreadableEvent] = {stream_id: [] for stream_id in stream_ids}
        for event in events:
            stream = streams[event.stream_id]
            if isinstance(stream, list):
                try:
                    stream.append(self.envelope(event))
                except UnreadableEvent as unreadable:
                    streams[event.stream_id] = unreadable
        return Loaded(streams, now.astimezone(UTC))

    def learn_time(self) -> datetime:
        """Reads PostgreSQL's time, as every load does. Raises DatabaseUnavailable."""
        return learn_time(self.recorder, self.clock)

    def append(
        self,
        appends: Sequence[Append[Event]],
        decided_at: datetime | None = None,
        longest_wait: timedelta | None = None,
        *,
        each_stream: bool = False,
    ) -> list[Appended | Conflict | Busy]:
        """All in one transaction and one round trip, with their alarms; outcomes in order.

        A single stream waits for others who have it under way; of several, those whose alarms others hold are Busy.
        `decided_at`: PostgreSQL's time of the decision; a stream that became due since is a Conflict. None: not asked.
        `longest_wait`: for others who have one of these streams under way; by default the connection's lock timeout.
        `each_stream`: one that waits in vain is left out as Busy, and spoils no other; slower.
        Raises TimedOut where the wait is over, RolledBack or another DatabaseUnavailable (nothing was stored),
        AnswerLost, Unstorable.
        """
        if not appends:
            return []
        try:
            events = self._packed(appends)
        except Exception as error:
            raise Unstorable(repr(error)) from error
        return outcomes(appends, self.recorder.append(events, decided_at, longest_wait, each_stream=each_stream))

    def envelope(self, stored: RecordedEvent) -> Envelope[Event]:
        """Raises UnreadableEvent."""
        stream_id, version, _, state, position, recorded_at, command_id, cause, actor = stored
        try:
            event = self._format.decode(state)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UnreadableEvent(stream_id, version, position, str(error)) from error
        return Envelope(event, version, position, recorded_at, command_id, actor, cause, stream_id)  # type: ignore[arg-type]

    def encoded(self, event: Event) -> tuple[str, bytes]:
        """Topic and state, as this version stores the event."""
        return topic(event), self._format.encode(event)

    def end(self) -> int:
        """The highest position stored so far, 0 in an empty log. Lower ones may still come."""
        position, _ = self.recorder.select_end()
        return position

    def settled_end(self) -> int:
        """The same, once no lower one can come any more: it waits for the writers that are under way."""
        position = self.end()
        wait_for_writers(self.recorder)
        return position

    def _packed(self, appends: Sequence[Append[Event]]) -> NewEvents:
        encode, events, alarms = self._format.encode, [], []
        for append in sorted(appends, key=STREAM_ID):
            version = append.expected_version
            for new in append.events:
                version += 1
                event, command_id, cause, actor = new.event, new.command_id, new.cause, new.actor
                events.append((append.stream_id, version, topic(event), encode(event), command_id, cause, actor))
            if append.due_at is not UNSET:
                ending = append.ending
                prepared = (None, None) if ending is None else (topic(ending), encode(ending))
                alarms.append((append.stream_id, append.due_at, version, *prepared))
        columns = chain(zip(*events, strict=True), zip(*alarms, strict=True) if alarms else repeat((), 5))
        return NewEvents(*map(arrays.packed, NEW_EVENTS, columns))


def learn_time(recorder: EventLogRecorder, clock: ServerClock) -> datetime:
    """Reads PostgreSQL's time. Raises DatabaseUnavailable."""
    started = monotonic()
    now, _ = recorder.select_streams([])
    clock.learn(now, started, monotonic())
    return now.astimezone(UTC)


def outcomes(
    appends: Sequence[Append[Event]], rows: Sequence[tuple[UUID, int | None, int | None]]
) -> list[Appended | Conflict | Busy]:
    """`rows`: as the recorder's `append` returns them."""
    positions: dict[UUID, list[int]] = {}
    left_out: dict[UUID, int | None] = {}
    for stream_id, version, position in rows:
        if position is None:
            left_out[stream_id] = version
        else:
            positions.setdefault(stream_id, []).append(position)

    def outcome(append: Append[Event]) -> Appended | Conflict | Busy:
        if append.stream_id not in left_out:
            return Appended(positions[append.stream_id])
        actual_version = left_out[append.stream_id]
        if actual_version is None:
            return Busy()
        return Conflict(append.stream_id, append.expected_version, actual_version)

    return [outcome(append) for append in appends]


def topic(event: object) -> str:
    """The event's tag, such as `Order.Placed`."""
    return str(type(event).__struct_config__.tag)  # type: ignore[attr-defined]
