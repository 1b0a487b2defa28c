"""Commands become events: load, decide, append. One command, or many in few transactions.

Knows no coupon: what is decided comes in as a Decider, so that another kind of deadline can run on the same parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from time import monotonic
from typing import Generic
from uuid import UUID

from msgspec import UNSET, Struct

from coupon_clock.domain.decider import Command, Decider, Event, State
from coupon_clock.domain.errors import CommandConflict, CouponClockError, InvalidCommand, OutcomeUnknown, Problem
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
from coupon_clock.infrastructure.postgres.errors import AnswerLost, DatabaseUnavailable, RolledBack, TimedOut

CHUNK = 1_000
PATIENCE_S = 10
"""How long one call goes on deciding again what others overtook, and halving what times out."""
DUE_WAIT = timedelta(milliseconds=200)
"""Longest wait of a look for somebody who has one of its streams under way: all that are due wait with it."""
EACH_WAIT = timedelta(milliseconds=5)
"""The same for each stream by itself, once the batch has waited in vain."""


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
    """Stream {stream_id} cannot be decided on, because its decider raised {reason}: mend that, and try again."""

    stream_id: UUID
    reason: str


class Overtaken(CommandConflict):
    """Command {command_id} on stream {stream_id} was overtaken by others again and again: send it again."""


class Execution(Generic[State, Command, Event]):
    """`appended` is called after every append that stored something, with the earliest new due time, if any."""

    def __init__(
        self,
        store: EventStore[Event],
        decider: Decider[State, Command, Event],
        appended: Callable[[datetime | None], None],
    ) -> None:
        self._store = store
        self._decider = decider
        self._appended = appended

    def execute(self, command: Command, cause: Cause = "command") -> Executed[Event]:
        """Raises a CouponClockError: the decider's, CommandConflict, OutcomeUnknown, DatabaseUnavailable, UnsafeLog."""
        (outcome,) = self.execute_many([command], cause)
        if isinstance(outcome, CouponClockError):
            raise outcome
        return outcome

    def execute_many(
        self, commands: Sequence[Command], cause: Cause = "command"
    ) -> "list[Executed[Event] | CouponClockError]":
        """Outcomes in order; one command that fails spoils no other. Commands of one stream are decided in turn."""
        attempt = Attempt(self._store, self._decider, self._appended, cause)
        given = [(command, self._has_address(command)) for command in commands]
        addressed = [command for command, has_address in given if has_address]
        outcomes = iter([outcome for chunk in chunks(addressed) for outcome in attempt.outcomes(chunk)])
        return [next(outcomes) if has_address else self._without_address(command) for command, has_address in given]

    def _has_address(self, command: Command) -> bool:
        """Streams are loaded before anything is decided: one id of another type would spoil the whole chunk."""
        return isinstance(self._decider.stream_id(command), UUID)

    def _without_address(self, command: Command) -> InvalidCommand:
        return InvalidCommand([Problem(self._decider.stream_field, self._decider.stream_id(command), "must be a UUID")])


class Attempt(Generic[State, Command, Event]):
    """One call's way to its outcomes, with an end to its patience."""

    def __init__(
        self,
        store: EventStore[Event],
        decider: Decider[State, Command, Event],
        appended: Callable[[datetime | None], None],
        cause: Cause,
    ) -> None:
        self._store = store
        self._decider = decider
        self._appended = appended
        self._cause = cause
        self._stream_id = decider.stream_id
        self._longest_wait = None if cause == "command" else DUE_WAIT
        self._give_up_at = monotonic() + PATIENCE_S

    def outcomes(self, commands: Sequence[Command]) -> "list[Executed[Event] | CouponClockError]":
        """As one append; streams that others overtook are decided again, without the rest."""
        outcomes = self._tried(commands)
        while overtaken := [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Overtaken)]:
            if not self._is_patient():
                break
            again = self._tried([commands[n] for n in overtaken])
            for number, outcome in zip(overtaken, again, strict=True):
                outcomes[number] = outcome
        return outcomes

    def _tried(self, commands: Sequence[Command]) -> "list[Executed[Event] | CouponClockError]":
        try:
            drafts = self._drafts(commands)
            self._append([draft for draft in drafts.values() if draft.new_events])
        except (RolledBack, TimedOut, Unstorable) as rolled_back:
            return self._halved(commands, rolled_back)
        except (DatabaseUnavailable, UnsafeLog) as unavailable:
            return [unavailable for _ in commands]
        return [drafts[self._stream_id(command)].outcome(n, command) for n, command in enumerate(commands)]

    def _drafts(self, commands: Sequence[Command]) -> "Mapping[UUID, Draft[State, Command, Event]]":
        loaded = self._store.load_many(list({self._stream_id(command): None for command in commands}))
        drafts = {
            stream_id: Draft(self._decider, stream_id, stream, loaded.now, self._cause)
            for stream_id, stream in loaded.streams.items()
        }
        for number, command in enumerate(commands):
            drafts[self._stream_id(command)].take(number, command)
        return drafts

    def _append(self, drafts: "Sequence[Draft[State, Command, Event]]") -> None:
        appends = [draft.append() for draft in drafts]
        answers = self._answers(appends)
        for draft, answer in zip(drafts, answers, strict=True):
            draft.answer = answer
        stored = [append for append, answer in zip(appends, answers, strict=True) if isinstance(answer, Appended)]
        if stored:
            due_ats = [append.due_at for append in stored if isinstance(append.due_at, datetime)]
            self._appended(min(due_ats, default=None))

    def _answers(self, appends: Sequence[Append[Event]]) -> Sequence[Appended | Conflict | Busy | AnswerLost]:
        try:
            return self._stored(appends)
        except AnswerLost as lost:
            return [lost for _ in appends]

    def _stored(self, appends: Sequence[Append[Event]]) -> Sequence[Appended | Conflict | Busy]:
        try:
            return self._store.append(appends, self._longest_wait)
        except TimedOut:
            if len(appends) == 1:
                raise
            return self._store.append(appends, EACH_WAIT, each_stream=True)

    def _halved(self, commands: Sequence[Command], why: CouponClockError) -> "list[Executed[Event] | CouponClockError]":
        """Each half by itself, until the culprit is alone."""
        if len(commands) == 1 or not self._is_patient():
            return [why for _ in commands]
        middle = len(commands) // 2
        return [*self._tried(commands[:middle]), *self._tried(commands[middle:])]

    def _is_patient(self) -> bool:
        return monotonic() < self._give_up_at


class Draft(Generic[State, Command, Event]):
    """One stream, with what a chunk's commands add to it, each decided on the state that the former left.

    `answer`: what came of appending `new_events`, if there were any.
    """

    __slots__ = (
        "_broken",
        "_cause",
        "_decider",
        "_due_at",
        "_envelopes",
        "_loaded_due_at",
        "_loaded_version",
        "_now",
        "_state",
        "_stream_id",
        "_taken",
        "answer",
        "new_events",
    )

    def __init__(
        self,
        decider: Decider[State, Command, Event],
        stream_id: UUID,
        stream: "list[Envelope[Event]] | UnreadableEvent",
        now: datetime,
        cause: Cause,
    ) -> None:
        self.new_events: list[NewEvent[Event]] = []
        self.answer: Appended | Conflict | Busy | AnswerLost | None = None
        self._decider = decider
        self._stream_id = stream_id
        self._broken: CouponClockError | None = stream if isinstance(stream, UnreadableEvent) else None
        self._envelopes = [] if isinstance(stream, UnreadableEvent) else stream
        self._loaded_version = self._envelopes[-1].version if self._envelopes else 0
        self._now = now
        self._cause: Cause = cause
        self._state: State | None = None
        self._due_at: datetime | None = None
        try:
            self._become(self._state, [envelope.event for envelope in self._envelopes])
        except Exception as bug:
            self._broken = failed(stream_id, bug)
        self._loaded_due_at = self._due_at
        self._taken: dict[int, Taken[Event] | CouponClockError] = {}

    def take(self, number: int, command: Command) -> None:
        """Decides the command; `outcome(number, …)` tells how it went, once the append is done."""
        try:
            self._taken[number] = self._decided(command)
        except CouponClockError as refusal:
            self._taken[number] = refusal
        except Exception as bug:
            self._taken[number] = failed(self._stream_id, bug)

    def append(self) -> Append[Event]:
        due_at = self._due_at if self._due_at != self._loaded_due_at else UNSET
        return Append(self._stream_id, self._loaded_version, self.new_events, due_at)

    def outcome(self, number: int, command: Command) -> "Executed[Event] | CouponClockError":
        if isinstance(self.answer, Conflict):
            return Overtaken(command.command_id, self._stream_id, "other commands kept coming first")
        if isinstance(self.answer, AnswerLost):
            return OutcomeUnknown(command.command_id)
        if isinstance(self.answer, Busy):
            return TimedOut("somebody else has the stream under way")
        taken = self._taken[number]
        if isinstance(taken, CouponClockError):
            return taken
        position = self._position(taken.version)
        return Executed(
            self._stream_id, taken.version, position, taken.events, self._now, taken.was_due_at, taken.repeated
        )

    def _decided(self, command: Command) -> "Taken[Event]":
        if self._broken is not None:
            raise self._broken
        self._decider.admit(self._state, command)
        refuse_unreadable(command.command_id, command.actor, command.expected_version)
        earlier = list(self._recorded_under(command.command_id))
        if earlier:
            return self._repeated(command, earlier)
        version = self._loaded_version + len(self.new_events)
        if command.expected_version not in (None, version):
            reason = f"it expected version {command.expected_version}, the stream is at {version}"
            raise CommandConflict(command.command_id, self._stream_id, reason)
        was_due_at = self._due_at
        events = self._decider.decide(self._state, command, self._now)
        self._become(self._state, events)
        self.new_events += [NewEvent(event, command.command_id, self._cause, command.actor) for event in events]
        return Taken(version + len(events), tuple(events), was_due_at)

    def _become(self, state: State | None, events: Sequence[Event]) -> None:
        """All of it or, where the decider fails, nothing."""
        for event in events:
            state = self._decider.evolve(state, event)
        self._due_at = None if state is None else self._decider.due_at(state)
        self._state = state

    def _recorded_under(self, command_id: UUID) -> Iterator[tuple[int, Event]]:
        """Version and event of all that a command led to, stored or in this draft."""
        for envelope in self._envelopes:
            if envelope.command_id == command_id:
                yield envelope.version, envelope.event
        for version, new in enumerate(self.new_events, self._loaded_version + 1):
            if new.command_id == command_id:
                yield version, new.event

    def _repeated(self, command: Command, earlier: list[tuple[int, Event]]) -> "Taken[Event]":
        events = tuple(event for _, event in earlier)
        if not self._decider.has_content_of(events, command):
            raise CommandConflict(command.command_id, self._stream_id, "the id was used for another command")
        return Taken(earlier[-1][0], events, self._due_at, repeated=True)

    def _position(self, version: int) -> int:
        if version > self._loaded_version:
            assert isinstance(self.answer, Appended)
            return self.answer.positions[version - self._loaded_version - 1]
        return next((e.position for e in reversed(self._envelopes) if e.version == version), 0)


class Taken(Struct, Generic[Event], frozen=True, gc=False):
    """A decided command: the stream's `version` after its `events`, and when it was due before them.

    `repeated`: it was decided earlier, and the stream is due then now.
    """

    version: int
    events: tuple[Event, ...]
    was_due_at: datetime | None
    repeated: bool = False


def failed(stream_id: UUID, bug: Exception) -> DeciderFailed:
    failure = DeciderFailed(stream_id, repr(bug))
    failure.__cause__ = bug
    return failure


def refuse_unreadable(command_id: object, actor: object, expected_version: object) -> None:
    """What would be stored with each event, and never be read again; or be compared with a version, and is none.

    Raises InvalidCommand.
    """
    problems = []
    if not isinstance(command_id, UUID):
        problems.append(Problem("command_id", command_id, "must be a UUID"))
    if not (actor is None or isinstance(actor, str)):
        problems.append(Problem("actor", actor, "must be a text or none"))
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


def chunks(commands: Sequence[Command]) -> Iterator[list[Command]]:
    rest = iter(commands)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
