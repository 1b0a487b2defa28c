"""What is decided, apart from where it is stored: the contract between a kind of stream and what runs it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct

NO_COMMAND = UUID(int=0)


class AnyCommand(Protocol):
    @property
    def command_id(self) -> UUID: ...
    @property
    def actor(self) -> str | None: ...
    @property
    def expected_version(self) -> int | None: ...


Event = TypeVar("Event")
State = TypeVar("State")
Command = TypeVar("Command", bound=AnyCommand)


class Decider(Struct, Generic[State, Command, Event], frozen=True, kw_only=True):
    """The pure core of one kind of stream.

    `stream_field`: the field of every command that names its stream, by a UUID.
    `decide`: the events that a command leads to at that time (aware UTC), none when it is already so. Raises a
    CouponClockError where it is refused; what the sender may not see is refused before anything else.
    `has_content_of`: whether these events, stored under the command's id, are what this command would have led to. It
    refuses what `decide` refuses of any command.
    `due_at`: when the stream is to be looked at, None for never; `due_command`: the command that looks, for a stream,
    under an id. It must lead to an event when decided at or after that time, and be harmless before.
    `prepares_ending`: whether what the due time leads to depends on the state alone, so that it may be decided at each
    append, for that time, and stored with the alarm (docs/deadlines.md).
    """

    stream_field: str
    decide: Callable[[State | None, Command, datetime], list[Event]]
    evolve: Callable[[State | None, Event], State]
    has_content_of: Callable[[State | None, Sequence[Event], Command], bool]
    due_at: Callable[[State], datetime | None]
    due_command: Callable[[UUID, UUID], Command]
    prepares_ending: bool = False

    def stream_id(self, command: Command) -> UUID:
        stream_id: UUID = getattr(command, self.stream_field, None)  # type: ignore[assignment]
        return stream_id


def prepared_ending(decider: Decider[State, Command, Event], stream_id: UUID, state: State | None) -> Event | None:
    """Returns the one event that the due time of this state leads to, after which nothing is due any more.

    None where it leads to something else, or the decider fails: then it is decided when the time has come.
    """
    try:
        due_at = None if state is None else decider.due_at(state)
        if due_at is None:
            return None
        events = decider.decide(state, decider.due_command(stream_id, NO_COMMAND), due_at)
        if len(events) != 1 or decider.due_at(decider.evolve(state, events[0])) is not None:
            return None
        return events[0]
    except Exception:
        return None
