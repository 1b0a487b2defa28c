"""Commands become events: load, decide, append, settle, notify. One command, or many in few transactions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from time import monotonic
from typing import Any, Generic
from uuid import UUID

from msgspec import UNSET, Struct
from msgspec.structs import replace

from coupon_clock.domain.decider import Command, Decider, Event, State, prepared_ending
from coupon_clock.domain.errors import CommandConflict, CouponClockError, InvalidCommand, OutcomeUnknown, Problem
from coupon_clock.infrastructure.event_store.recorder import TooMuchAtOnce
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.event_store.store import (
    Append,
    Appended,
    Busy,
    Cause,
    Conflict,
    Envelope,
    EventStore,
    NewEvent,
    UnreadableEvent,
    Unstorable,
)
from coupon_clock.infrastructure.postgres.errors import (
    AnswerLost,
    DatabaseUnavailable,
    DecidedTooLate,
    RolledBack,
    TimedOut,
)

CHUNK = 1_000
PATIENCE_S = 15.0
"""How long a chunk is tried again from its first failure on, longer than a statement may take: conflicts are decided
again, what times out is halved."""
LONGEST_ACTOR = 200
EACH_WAIT = timedelta(milliseconds=5)
"""Longest wait for each stream by itself, once a batch has waited in vain."""

Notify = Callable[[datetime | None], None]
"""Called after each append that stored something, with the earliest due time that it set, if any."""


class Executed(Struct, Generic[Event], frozen=True, gc=False):
    """What a command came to. `events`: its own, none when it was already so; `version` and `position` after them.

    It was decided at `decided_at`, by PostgreSQL's clock, on a stream that was due at `was_due_at`, if ever; or it is
    `repeated`, and has its first outcome.
    """

    stream_id: UUID
    version: int
    position: int
    events: tuple[Event, ...]
    decided_at: datetime
    was_due_at: datetime | None
    repeated: bool = False


@dataclass(eq=False)
class DeciderFailed(CouponClockError):
    """Stream {stream_id} cannot be decided on, because its decider raised {reason}: correct it, and try again."""

    stream_id: UUID
    reason: str


class Overtaken(CommandConflict):
    """Command {command_id} on stream {stream_id} was overtaken by others again and again: send it again."""


class StreamBusy(TimedOut):
    """Somebody else has the stream under way, and nothing was changed: {reason}."""


Outcomes = list[Executed[Event] | CouponClockError]


class CommandHandler(Generic[State, Command, Event]):
    """Safe to use from several threads."""

    def __init__(
        self,
        store: EventStore[Event],
        decider: Decider[State, Command, Event],
        notify: Notify,
        *,
        chunk: int = CHUNK,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._decider = decider
        self._notify = notify
        self._chunk = chunk
        self._patience_s = patience_s

    def handle(self, command: Command, cause: Cause = "command") -> Executed[Event]:
        """Raises a CouponClockError: the decider's, CommandConflict, OutcomeUnknown, DatabaseUnavailable, UnsafeLog."""
        (outcome,) = self.handle_many([command], cause)
        if isinstance(outcome, CouponClockError):
            raise outcome
        return outcome

    def handle_many(
        self, commands: Sequence[Command], cause: Cause = "command", longest_wait: timedelta | None = None
    ) -> Outcomes[Event]:
        """Outcomes in order; one command that fails spoils no other. Commands of one stream are decided in turn.

        `longest_wait`: for others who have one of the streams under way.
        """
        commands = list(commands)
        outcomes: dict[int, Executed[Event] | CouponClockError] = {
            n: problem for n, command in enumerate(commands) if (problem := self._addressing_problem(command))
        }
        addressed = (n for n in range(len(commands)) if n not in outcomes)
        while chunk := list(islice(addressed, self._chunk)):
            settled = self._settled([commands[n] for n in chunk], cause, longest_wait)
            outcomes.update(zip(chunk, settled, strict=True))
        return [outcomes[n] for n in range(len(commands))]

    def _settled(self, commands: Sequence[Command], cause: Cause, longest_wait: timedelta | None) -> Outcomes[Event]:
        """As one append; streams that others overtook are decided again, without the rest. Those that others hold come
        last, each alone, and wait."""
        outcomes = self.attempt(commands, cause, longest_wait)
        give_up_at = monotonic() + self._patience_s
        while (unsettled := self._unsettled(commands, outcomes)) and monotonic() < give_up_at:
            again = self.attempt([commands[n] for n in unsettled], cause, longest_wait)
            for n, outcome in zip(unsettled, again, strict=True):
                outcomes[n] = outcome
        return outcomes

    def _unsettled(self, commands: Sequence[Command], outcomes: Outcomes[Event]) -> list[int]:
        """The numbers of what is tried again next: all that were overtaken, else one stream that was busy."""
        if overtaken := [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Overtaken)]:
            return overtaken
        busy = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, StreamBusy)]
        return [n for n in busy if self.stream_id(commands[n]) == self.stream_id(commands[busy[0]])]

    def attempt(
        self,
        commands: Sequence[Command],
        cause: Cause = "command",
        longest_wait: timedelta | None = None,
        give_up_at: float | None = None,
    ) -> Outcomes[Event]:
        """The five steps, once. A batch that is too large, or fails as a whole, is halved: until the culprit is alone,
        or, some time after the first failure, it is `give_up_at`.

        Of several, commands on a stream that somebody else has under way come back as StreamBusy, and those that others
        came before as Overtaken.
        """
        try:
            loaded = self._store.load_many(list({self.stream_id(command): None for command in commands}))  # 1. load
            streams = {
                stream_id: Stream(self._decider, stream_id, events, loaded.now)
                for stream_id, events in loaded.streams.items()
            }
            decided = [streams[self.stream_id(command)].decide(command) for command in commands]  # 2. decide
            changed = [stream for stream in streams.values() if stream.new_events]
            appends = [stream.append(cause) for stream in changed]
            results = self._appended(appends, loaded.now, longest_wait)  # 3. append
        except TooMuchAtOnce:
            return self._in_parts(commands, cause, longest_wait, give_up_at)
        except (RolledBack, TimedOut, Unstorable) as failure:
            give_up_at = give_up_at or monotonic() + self._patience_s
            if len(commands) > 1 and monotonic() < give_up_at:
                return self._in_parts(commands, cause, longest_wait, give_up_at)
            if isinstance(failure, DecidedTooLate):
                return [Overtaken(each.command_id, self.stream_id(each), str(failure)) for each in commands]
            return [failure for _ in commands]
        except (DatabaseUnavailable, UnsafeLog) as unavailable:
            return [unavailable for _ in commands]
        for stream, result in zip(changed, results, strict=True):  # 4. settle
            stream.result = result
        if due_ats := [stream.due_at for stream in changed if isinstance(stream.result, Appended)]:  # 5. notify
            self._notify(min((due_at for due_at in due_ats if due_at), default=None))
        return [streams[self.stream_id(c)].outcome(c, d) for c, d in zip(commands, decided, strict=True)]

    def _in_parts(
        self,
        commands: Sequence[Command],
        cause: Cause,
        longest_wait: timedelta | None,
        give_up_at: float | None,
    ) -> Outcomes[Event]:
        """Halved by streams, so that the commands of each stay together and in order; those of one by one."""
        streams = list(dict.fromkeys(map(self.stream_id, commands)))
        if len(streams) == 1:
            return self._one_by_one(commands, cause, longest_wait, give_up_at)
        first = set(streams[: len(streams) // 2])
        outcomes: dict[int, Executed[Event] | CouponClockError] = {}
        for is_first in (True, False):
            half = [n for n, command in enumerate(commands) if (self.stream_id(command) in first) is is_first]
            attempted = self.attempt([commands[n] for n in half], cause, longest_wait, give_up_at)
            outcomes.update(zip(half, attempted, strict=True))
        return [outcomes[n] for n in range(len(commands))]

    def _one_by_one(
        self,
        commands: Sequence[Command],
        cause: Cause,
        longest_wait: timedelta | None,
        give_up_at: float | None,
    ) -> Outcomes[Event]:
        """Of one stream. What comes after one that may still be tried again must not come before it."""
        outcomes: Outcomes[Event] = []
        for number, command in enumerate(commands):
            outcomes += self.attempt([command], cause, longest_wait, give_up_at)
            if isinstance(outcomes[-1], Overtaken | OutcomeUnknown | DatabaseUnavailable):
                outcomes += [as_for_another(outcomes[-1], later.command_id) for later in commands[number + 1 :]]
                break
        return outcomes

    def _appended(
        self, appends: Sequence[Append[Event]], decided_at: datetime, longest_wait: timedelta | None
    ) -> Sequence[Appended | Conflict | Busy | AnswerLost]:
        try:
            return self._store.append(appends, decided_at, longest_wait)
        except TimedOut:
            if len(appends) == 1:
                raise
            return self._store.append(appends, decided_at, EACH_WAIT, each_stream=True)
        except AnswerLost as lost:
            return [lost for _ in appends]

    def stream_id(self, command: Command) -> UUID:
        return self._decider.stream_id(command)

    def _addressing_problem(self, command: Command) -> InvalidCommand | None:
        """Streams are loaded before anything is decided: one id of another type would spoil the whole chunk."""
        stream_id: object = self._decider.stream_id(command)
        if isinstance(stream_id, UUID):
            return None
        return InvalidCommand([Problem(self._decider.stream_field, stream_id, "must be a UUID")])


class Stream(Generic[State, Command, Event]):
    """One stream of a batch, and what the commands of the batch add to it, each decided on what the former left.

    `result`: what came of appending `new_events`, if there were any.
    """

    __slots__ = (
        "_broken",
        "_decider",
        "_envelopes",
        "_loaded_due_at",
        "_loaded_version",
        "_now",
        "_state",
        "_stream_id",
        "due_at",
        "new_events",
        "result",
    )

    def __init__(
        self,
        decider: Decider[State, Command, Event],
        stream_id: UUID,
        envelopes: list[Envelope[Event]] | UnreadableEvent,
        now: datetime,
    ) -> None:
        self.new_events: list[tuple[Event, Command]] = []
        self.result: Appended | Conflict | Busy | AnswerLost | None = None
        self.due_at: datetime | None = None
        self._decider = decider
        self._stream_id = stream_id
        self._broken: CouponClockError | None = envelopes if isinstance(envelopes, UnreadableEvent) else None
        self._envelopes = [] if isinstance(envelopes, UnreadableEvent) else envelopes
        self._loaded_version = self._envelopes[-1].version if self._envelopes else 0
        self._now = now
        self._state: State | None = None
        try:
            self._become([envelope.event for envelope in self._envelopes])
        except Exception as bug:
            self._broken = decider_failed(stream_id, bug)
        self._loaded_due_at = self.due_at

    def decide(self, command: Command) -> Executed[Event] | CouponClockError:
        """Its position is known once the append is done: `outcome` tells."""
        if self._broken is not None:
            return self._broken
        try:
            return self._decided(command)
        except CouponClockError as refusal:
            return refusal
        except Exception as bug:
            return decider_failed(self._stream_id, bug)

    def append(self, cause: Cause) -> Append[Event]:
        events = [NewEvent(event, command.command_id, cause, command.actor) for event, command in self.new_events]
        ending = None
        if self._decider.prepares_ending and self.due_at is not None:
            ending = prepared_ending(self._decider, self._stream_id, self._state)
        unchanged = self.due_at == self._loaded_due_at and (self.due_at is None or not self._decider.prepares_ending)
        return Append(self._stream_id, self._loaded_version, events, UNSET if unchanged else self.due_at, ending)

    def outcome(
        self, command: Command, decided: Executed[Event] | CouponClockError
    ) -> Executed[Event] | CouponClockError:
        match self.result:
            case Conflict():
                return Overtaken(command.command_id, self._stream_id, "other commands kept coming first")
            case AnswerLost():
                return OutcomeUnknown(command.command_id)
            case Busy():
                return StreamBusy("try again")
        if isinstance(decided, CouponClockError):
            return decided
        return replace(decided, position=self._position(decided.version))

    def _decided(self, command: Command) -> Executed[Event]:
        refuse_unstorable(command.command_id, command.actor, command.expected_version)
        version = self._loaded_version + len(self.new_events)
        if earlier := list(self._recorded_under(command.command_id)):
            events = tuple(event for _, event in earlier)
            if not self._decider.has_content_of(self._state, events, command):
                raise CommandConflict(command.command_id, self._stream_id, "the id was used for another command")
            return Executed(self._stream_id, earlier[-1][0], 0, events, self._now, self.due_at, repeated=True)
        was_due_at = self.due_at
        new = self._decider.decide(self._state, command, self._now)
        if command.expected_version not in (None, version):
            reason = f"it expected version {command.expected_version}, the stream is at {version}"
            raise CommandConflict(command.command_id, self._stream_id, reason)
        self._become(new)
        self.new_events += [(event, command) for event in new]
        return Executed(self._stream_id, version + len(new), 0, tuple(new), self._now, was_due_at)

    def _become(self, events: Sequence[Event]) -> None:
        """All of it or, where the decider fails, nothing."""
        state = self._state
        for event in events:
            state = self._decider.evolve(state, event)
        self.due_at = None if state is None else self._decider.due_at(state)
        self._state = state

    def _recorded_under(self, command_id: UUID) -> Iterator[tuple[int, Event]]:
        """Version and event of all that a command led to, stored or in this batch."""
        for envelope in self._envelopes:
            if envelope.command_id == command_id:
                yield envelope.version, envelope.event
        for version, (event, command) in enumerate(self.new_events, self._loaded_version + 1):
            if command.command_id == command_id:
                yield version, event

    def _position(self, version: int) -> int:
        if version > self._loaded_version:
            assert isinstance(self.result, Appended)
            return self.result.positions[version - self._loaded_version - 1]
        return next((e.position for e in reversed(self._envelopes) if e.version == version), 0)


def as_for_another(failure: CouponClockError, command_id: UUID) -> CouponClockError:
    match failure:
        case Overtaken():
            return Overtaken(command_id, failure.stream_id, failure.reason)
        case OutcomeUnknown():
            return OutcomeUnknown(command_id)
    return failure


def decider_failed(stream_id: UUID, bug: Exception) -> DeciderFailed:
    failure = DeciderFailed(stream_id, repr(bug))
    failure.__cause__ = bug
    return failure


def refuse_unstorable(command_id: Any, actor: Any, expected_version: Any) -> None:
    """What would be stored with each event and cannot be, or is compared with a version and is none.

    Raises InvalidCommand.
    """
    problems = []
    if not isinstance(command_id, UUID):
        problems.append(Problem("command_id", command_id, "must be a UUID"))
    if not (actor is None or isinstance(actor, str)):
        problems.append(Problem("actor", actor, "must be a text or none"))
    elif actor and len(actor) > LONGEST_ACTOR:
        problems.append(Problem("actor", actor, f"must have at most {LONGEST_ACTOR} characters"))
    elif actor and not is_storable(actor):
        problems.append(Problem("actor", actor, "must not contain NUL or half of a surrogate pair"))
    if not (expected_version is None or type(expected_version) is int):
        problems.append(Problem("expected_version", expected_version, "must be a whole number or none"))
    if problems:
        raise InvalidCommand(problems)


def is_storable(text: str) -> bool:
    """A text of PostgreSQL holds any character but NUL; UTF-8 has no lone surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
