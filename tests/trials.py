"""A trial that is due twice: it reminds, then it ends."""

from datetime import datetime
from uuid import UUID, uuid4

from msgspec import Struct

from coupon_clock.domain.decider import Decider


class Begun(Struct, frozen=True, tag="Trial.Begun"):
    remind_at: datetime
    end_at: datetime


class Reminded(Struct, frozen=True, tag="Trial.Reminded"):
    pass


class Over(Struct, frozen=True, tag="Trial.Over"):
    pass


Event = Begun | Reminded | Over


class Begin(Struct, frozen=True, kw_only=True):
    trial_id: UUID
    remind_at: datetime
    end_at: datetime
    command_id: UUID
    actor: str | None = None
    expected_version: int | None = None


class Look(Struct, frozen=True, kw_only=True):
    trial_id: UUID
    command_id: UUID
    actor: str | None = None
    expected_version: int | None = None


class Trial(Struct, frozen=True):
    remind_at: datetime
    end_at: datetime
    last: Event


def begin(remind_at: datetime, end_at: datetime) -> Begin:
    return Begin(trial_id=uuid4(), remind_at=remind_at, end_at=end_at, command_id=uuid4())


def decide(trial: Trial | None, command: Begin | Look, now: datetime) -> list[Event]:
    if trial is None:
        return [Begun(command.remind_at, command.end_at)] if isinstance(command, Begin) else []
    due = due_at(trial)
    if due is None or now < due:
        return []
    return [Reminded() if isinstance(trial.last, Begun) else Over()]


def evolve(trial: Trial | None, event: Event) -> Trial:
    if isinstance(event, Begun):
        return Trial(event.remind_at, event.end_at, event)
    assert trial is not None
    return Trial(trial.remind_at, trial.end_at, event)


def due_at(trial: Trial) -> datetime | None:
    match trial.last:
        case Begun():
            return trial.remind_at
        case Reminded():
            return trial.end_at
    return None


TRIALS = Decider(
    stream_field="trial_id",
    decide=decide,
    evolve=evolve,
    has_content_of=lambda trial, events, command: True,
    due_at=due_at,
    due_command=lambda trial_id, command_id: Look(trial_id=trial_id, command_id=command_id),
)
