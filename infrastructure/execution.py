"""Commands become events: load, decide, append. One command, or many in few transactions.

Knows no coupon: what is decided comes in as a Decider, so that another kind of deadline can run on the same parts.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from msgspec import UNSET, Struct

from coupon_clock.domain.errors import CommandConflict, CouponError, OutcomeUnknown
from coupon_clock.infrastructure.database import DatabaseUnavailable
from coupon_clock.infrastructure.event_store import (
    AnswerLost,
    Append,
    AppendRolledBack,
    Cause,
    Conflict,
    Envelope,
    EventStore,
    Record,
    UnreadableEvent,
    enveloped,
)

CHUNK = 1_000
MOST_TRIES = 20


class AnyCommand(Protocol):
    @property
    def command_id(self) -> UUID: ...
    @property
    def template_id(self) -> UUID: ...
    @property
    def actor(self) -> str | None: ...
    @property
    def expected_version(self) -> int | None: ...


Event = TypeVar("Event")
State = TypeVar("State")
Command = TypeVar("Command", bound=AnyCommand)


class Decider(Struct, Generic[State, Command, Event], frozen=True):
    """The pure core of one kind of stream. `admit` refuses what the sender may not see, before anything else."""

    admit: Callable[[State | None, Command], None]
    decide: Callable[[State | None, Command, datetime], list[Event]]
    evolve: Callable[[State | None, Event], State]
    has_content_of: Callable[[Sequence[Event], Command], bool]
    due_at: Callable[[State], datetime | None]


class Outcome(Struct, Generic[Event], frozen=True):
    """`events`: those of this command, none when it was already so; `version` and `position` after them."""

    template_id: UUID
    version: int
    position: int
    events: tuple[Event, ...]


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

    def execute(self, command: Command, cause: Cause = "command") -> Outcome[Event]:
        """Raises a CouponError: the decider's own, CommandConflict, OutcomeUnknown, DatabaseUnavailable."""
        (outcome,) = self._chunk([command], cause)
        if isinstance(outcome, CouponError):
            raise outcome
        return outcome

    def execute_many(
        self, commands: Sequence[Command], cause: Cause = "command"
    ) -> "list[Outcome[Event] | CouponError]":
        """Outcomes in order; one command that fails spoils no other. Commands of one stream are decided in turn."""
        return [outcome for chunk in chunks(commands) for outcome in self._chunk(chunk, cause)]

    def _chunk(self, commands: Sequence[Command], cause: Cause) -> "list[Outcome[Event] | CouponError]":
        """As one append; what conflicts with others is decided again, alone; what times out is halved."""
        for _ in range(MOST_TRIES):
            try:
                drafts = self._draft(commands, cause)
                conflicts = self._append(drafts)
            except AnswerLost:
                return [OutcomeUnknown(command.command_id) for command in commands]
            except AppendRolledBack as rolled_back:
                return self._halves(commands, cause) or [rolled_back]
            except DatabaseUnavailable as unavailable:
                return [unavailable for _ in commands]
            outcomes = [drafts[command.template_id].outcome(n) for n, command in enumerate(commands)]
            if not conflicts:
                return outcomes
            if len(drafts) > 1:
                return self._decide_again(commands, outcomes, conflicts, cause)
        reason = "other commands kept coming first: send it again"
        return [CommandConflict(command.command_id, command.template_id, reason) for command in commands]

    def _draft(self, commands: Sequence[Command], cause: Cause) -> "dict[UUID, Draft[State, Command, Event]]":
        loaded = self._store.load_many(list({command.template_id: None for command in commands}))
        drafts = {
            stream_id: Draft(self._decider, stream_id, stream, loaded.now, cause)
            for stream_id, stream in loaded.streams.items()
        }
        for number, command in enumerate(commands):
            drafts[command.template_id].take(number, command)
        return drafts

    def _append(self, drafts: "dict[UUID, Draft[State, Command, Event]]") -> set[UUID]:
        """Answers with the streams that conflicted."""
        gaining = [draft for draft in drafts.values() if draft.records]
        appends = [draft.append() for draft in gaining]
        conflicts: set[UUID] = set()
        for draft, answer in zip(gaining, self._store.append(appends), strict=True):
            if isinstance(answer, Conflict):
                conflicts.add(draft.stream_id)
            else:
                draft.place(answer.positions)
        if len(conflicts) < len(appends):
            due_ats = [append.due_at for append in appends if isinstance(append.due_at, datetime)]
            self._appended(min(due_ats, default=None))
        return conflicts

    def _decide_again(
        self,
        commands: Sequence[Command],
        outcomes: "list[Outcome[Event] | CouponError]",
        conflicts: set[UUID],
        cause: Cause,
    ) -> "list[Outcome[Event] | CouponError]":
        for stream_id in conflicts:
            numbers = [n for n, command in enumerate(commands) if command.template_id == stream_id]
            again = self._chunk([commands[n] for n in numbers], cause)
            for number, outcome in zip(numbers, again, strict=True):
                outcomes[number] = outcome
        return outcomes

    def _halves(self, commands: Sequence[Command], cause: Cause) -> "list[Outcome[Event] | CouponError]":
        if len(commands) == 1:
            return []
        middle = len(commands) // 2
        return [*self._chunk(commands[:middle], cause), *self._chunk(commands[middle:], cause)]


class Draft(Generic[State, Command, Event]):
    """One stream, with what a chunk's commands add to it, each decided on the state that the former left."""

    def __init__(
        self,
        decider: Decider[State, Command, Event],
        stream_id: UUID,
        stream: "list[Envelope[Event]] | UnreadableEvent",
        now: datetime,
        cause: Cause,
    ) -> None:
        self.stream_id = stream_id
        self.records: list[Record[Event]] = []
        self._decider = decider
        self._unreadable = stream if isinstance(stream, UnreadableEvent) else None
        self._envelopes = [] if isinstance(stream, UnreadableEvent) else stream
        self._loaded_version = len(self._envelopes)
        self._now = now
        self._cause: Cause = cause
        self._state: State | None = None
        for envelope in self._envelopes:
            self._state = decider.evolve(self._state, envelope.event)
        self._loaded_due_at = self._due_at()
        self._taken: dict[int, CouponError | Taken] = {}

    def take(self, number: int, command: Command) -> None:
        """Decides the command; `outcome(number)` tells how it went, once the append is done."""
        try:
            self._taken[number] = self._decided(command)
        except CouponError as refusal:
            self._taken[number] = refusal

    def append(self) -> Append[Event]:
        due_at = self._due_at()
        return Append(
            self.stream_id,
            self._loaded_version,
            self.records,
            UNSET if due_at == self._loaded_due_at else due_at,
        )

    def place(self, positions: list[int]) -> None:
        """The records are stored: they become envelopes with their positions."""
        for position, record in zip(positions, self.records, strict=True):
            self._envelopes.append(enveloped(record, self.stream_id, len(self._envelopes) + 1, position))

    def outcome(self, number: int) -> "Outcome[Event] | CouponError":
        taken = self._taken[number]
        if isinstance(taken, CouponError):
            return taken
        if taken.version > len(self._envelopes):
            return CommandConflict(taken.command_id, self.stream_id, "another append came first")
        own = self._envelopes[taken.version - taken.count : taken.version]
        last = self._envelopes[taken.version - 1]
        return Outcome(self.stream_id, taken.version, last.position, tuple(envelope.event for envelope in own))

    def _decided(self, command: Command) -> "Taken":
        if self._unreadable is not None:
            raise self._unreadable
        self._decider.admit(self._state, command)
        earlier = list(self._recorded_under(command.command_id))
        if earlier:
            return self._repeated(command, earlier)
        version = self._loaded_version + len(self.records)
        if command.expected_version not in (None, version):
            reason = f"it expected version {command.expected_version}, the template is at {version}"
            raise CommandConflict(command.command_id, command.template_id, reason)
        events = self._decider.decide(self._state, command, self._now)
        for event in events:
            self.records.append(Record(event, self._now, command.command_id, self._cause, command.actor))
            self._state = self._decider.evolve(self._state, event)
        return Taken(command.command_id, version + len(events), len(events))

    def _recorded_under(self, command_id: UUID) -> Iterator[tuple[int, Event]]:
        """Version and event of all that a command led to, stored or in this draft."""
        for envelope in self._envelopes:
            if envelope.command_id == command_id:
                yield envelope.version, envelope.event
        for version, record in enumerate(self.records, self._loaded_version + 1):
            if record.command_id == command_id:
                yield version, record.event

    def _repeated(self, command: Command, earlier: list[tuple[int, Event]]) -> "Taken":
        if not self._decider.has_content_of([event for _, event in earlier], command):
            raise CommandConflict(command.command_id, command.template_id, "the id was used for another command")
        return Taken(command.command_id, earlier[-1][0], len(earlier))

    def _due_at(self) -> datetime | None:
        return None if self._state is None else self._decider.due_at(self._state)


class Taken(Struct, frozen=True):
    """A decided command: `version` after its `count` events."""

    command_id: UUID
    version: int
    count: int


def chunks(commands: Sequence[Command]) -> Iterator[list[Command]]:
    rest = iter(commands)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
