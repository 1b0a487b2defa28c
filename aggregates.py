"""Deadlines for aggregates of the eventsourcing library: `DeadlineApplication` handles them when they are due.

Each save writes the alarms of what it saves in the same transaction. When one is due, the loops load the aggregate,
call its `handle_due()` and save it (docs/eventsourcing.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any, ClassVar
from uuid import UUID, uuid4

from eventsourcing.application import AggregateNotFoundError, Application, ProcessingEvent, project_aggregate
from eventsourcing.persistence import IntegrityError, Mapper, OperationalError, Recording, StoredEvent
from eventsourcing.utils import EnvType

from coupon_clock.deadlines import Deadlines, Parts, Role
from coupon_clock.domain import arguments
from coupon_clock.domain.errors import CouponClockError, InvalidArgument, Problem
from coupon_clock.infrastructure.command_handling.due import DueCause, HandledStream, NothingDecided
from coupon_clock.infrastructure.event_store.recorder import DueStream, EventLogRecorder, NewAlarm
from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.infrastructure.loop import Died, interrupt_main_thread
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.notifier import AppendNotifier
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, RolledBack
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.maintenance.explain import Explanation, Streams, explain
from coupon_clock.maintenance.verify.promise import Judged, PromiseReport, Violation, verify_promise
from coupon_clock.persistence import Factory

__all__ = ["AggregateFailed", "DeadlineApplication", "NoDeadlinesThere"]

Projector = Callable[[Any, Iterable[Any]], Any]
"""Takes an aggregate, or None, and its next events; returns the aggregate after them."""

ROLES: tuple[Role, ...] = ("relay", "consumer", "reconciler")
SAVED_AT_ONCE = 4
"""Aggregates that are handled at the same time, each in a transaction of its own: twice as fast as one by one."""


@dataclass(eq=False)
class AggregateFailed(CouponClockError):
    """Aggregate {stream_id} is due and could not be handled, because {reason}: correct its handle_due()."""

    stream_id: UUID
    reason: str


class NoDeadlinesThere(CouponClockError):
    """Deadlines are kept in our log only: set PERSISTENCE_MODULE to coupon_clock.persistence."""


class DeadlineApplication(Application[UUID]):
    """An application whose aggregates may have a deadline: a `due_at`, aware or None, and a `handle_due()`.

    `handle_due()` is called once `due_at` has come, by PostgreSQL's clock, never before. It must lead to an event after
    which `due_at` is later or None; what it returns is saved, or the aggregate itself where it returns None. A class
    that is to have other bases too, such as ProcessApplication, names this one first.

    `projector`: makes an aggregate of its events, as for `repository.get`, where these do not mutate it by themselves.
    """

    env: ClassVar[dict[str, str]] = {"PERSISTENCE_MODULE": "coupon_clock.persistence"}
    projector: ClassVar[Projector] = staticmethod(project_aggregate)

    def __init__(self, env: EnvType | None = None) -> None:
        """Raises NoDeadlinesThere, and what the factory raises."""
        super().__init__(env)
        if not isinstance(self.factory, Factory):
            self.close()
            raise NoDeadlinesThere
        self._appended = AppendNotifier()
        self._threads = ThreadPoolExecutor(SAVED_AT_ONCE, thread_name_prefix="handle-due")
        database = self.factory.database()
        log = EventLogRecorder(database)
        self.deadlines = Deadlines(database, log, ServerClock(), self._handle_all, self._appended)
        self.deadlines.learn_time()

    def running(
        self, roles: Sequence[Role] = ROLES, broker: Broker | None = None, died: Died = interrupt_main_thread
    ) -> AbstractContextManager[Parts]:
        """Handles what is due, in threads, for as long as the block lasts; as Runtime.running."""
        return self.deadlines.running(roles, broker, died)

    def verify_promise(self) -> PromiseReport:
        """Proves from the log alone that what was due was handled, not early, and says how late.

        Raises DatabaseUnavailable.
        """
        log = AggregateLog(self.deadlines.database, self.mapper)
        return verify_promise(log, self.deadlines.settings.reconciled_within, partial(judge, type(self).projector))

    def explain(self, aggregate_id: UUID) -> Explanation:
        """Returns what happened to an aggregate, what comes next and by whom, and what keeps it from being handled.

        Raises InvalidArgument, DatabaseUnavailable.
        """
        arguments.refuse(arguments.of_type("aggregate_id", aggregate_id, UUID))
        log = AggregateLog(self.deadlines.database, self.mapper)
        return explain(Streams(log.database, log.load, partial(due_after, type(self).projector)), aggregate_id)

    def close(self) -> None:
        if hasattr(self, "_threads"):
            self._threads.shutdown()
        super().close()

    # ── alarms ───────────────────────────────────────────────────────────────────────────────────

    def _record(self, processing_event: ProcessingEvent[UUID]) -> list[Recording[UUID]]:
        """The library's hook: whatever is saved passes here, once."""
        alarms = list(self._alarms(processing_event))
        processing_event.saved_kwargs["alarms"] = alarms
        recordings = super()._record(processing_event)
        if recordings:
            self._appended(min((alarm.due_at for alarm in alarms if alarm.due_at), default=None))
        return recordings

    def _alarms(self, processing_event: ProcessingEvent[UUID]) -> Iterator[NewAlarm]:
        """Of each aggregate, after its last event. Raises InvalidArgument, NothingDecided."""
        handled: DueStream | None = processing_event.saved_kwargs.pop("handled", None)
        for aggregate_id in dict.fromkeys(event.originator_id for event in processing_event.events):
            events = [event for event in processing_event.events if event.originator_id == aggregate_id]
            version = events[-1].originator_version
            aggregate: Any = processing_event.aggregates.get(aggregate_id)
            if aggregate is None or aggregate.version != version:
                aggregate = type(self).projector(self._before(events[0]), events)
            if hasattr(aggregate, "due_at"):
                due_at = due_time(aggregate)
                if handled and handled.stream_id == aggregate_id and due_at and due_at <= handled.due_at:
                    raise NothingDecided(aggregate_id, handled.due_at)
                yield NewAlarm(aggregate_id, due_at, version)

    def _before(self, event: Any) -> Any:
        """The aggregate as it was before an event that is to be saved, None where it is the first."""
        try:
            return self.repository.get(
                event.originator_id, version=event.originator_version - 1, projector_func=type(self).projector
            )
        except AggregateNotFoundError:
            return None

    # ── what is due ──────────────────────────────────────────────────────────────────────────────

    def _handle_all(self, due: Sequence[DueStream], cause: DueCause) -> list[HandledStream]:
        return list(self._threads.map(partial(self._handle, cause=cause), due))

    def _handle(self, due: DueStream, cause: DueCause) -> HandledStream:
        try:
            aggregate: Any = self.repository.get(due.stream_id, projector_func=type(self).projector)
            due_at = due_time(aggregate)
            if due_at is None or due_at > due.due_at:
                return HandledStream(due_at=due_at)
            changed = aggregate.handle_due()
            objects = (aggregate,) if changed is None else changed if isinstance(changed, list | tuple) else (changed,)
            how = {"cause": cause, "command_id": uuid4(), "decided_at": due.due_at}
            if not self.save(*objects, handled=due, **how):
                raise NothingDecided(due.stream_id, due_at)
            return HandledStream(ended=True, late_by=self.deadlines.clock.now() - due_at)
        except AggregateNotFoundError:
            return HandledStream()
        except Exception as error:
            return HandledStream(error=reason_of(error, due.stream_id))


def due_time(aggregate: Any) -> datetime | None:
    """Raises InvalidArgument."""
    due_at = getattr(aggregate, "due_at", None)
    if due_at is not None and not (isinstance(due_at, datetime) and due_at.utcoffset() is not None):
        raise InvalidArgument([Problem("due_at", due_at, "must be an aware datetime or none")])
    return due_at


def reason_of(error: Exception, stream_id: UUID) -> CouponClockError:
    """What others did meanwhile, or PostgreSQL, passes; the rest is the aggregate's own."""
    match error:
        case CouponClockError():
            return error
        case IntegrityError():
            return RolledBack("somebody else saved it meanwhile")
        case OperationalError():
            return error.__cause__ if isinstance(error.__cause__, CouponClockError) else DatabaseUnavailable(str(error))
    failure = AggregateFailed(stream_id, repr(error))
    failure.__cause__ = error
    return failure


# ── the promise, from the log ────────────────────────────────────────────────────────────────────


class AggregateLog:
    """The log of an application of the library, as `verify_promise` reads it."""

    def __init__(self, database: Database, mapper: Mapper[UUID]) -> None:
        self.database = database
        self._mapper = mapper

    def load(self, aggregate_id: UUID) -> tuple[list[Envelope[Any]], UnreadableEvent | None]:
        """As much of the aggregate as can be read, and the first event that cannot."""
        _, rows = EventLogRecorder(self.database).select_streams([aggregate_id])
        return self.readable(rows)

    def readable(self, rows: Sequence[Any]) -> tuple[list[Envelope[Any]], UnreadableEvent | None]:
        """Of one stream, as EventStore.readable."""
        envelopes: list[Envelope[Any]] = []
        for stream_id, version, topic, state, position, recorded_at, command_id, cause, actor in rows:
            try:
                event = self._mapper.to_domain_event(StoredEvent(stream_id, version, topic, bytes(state)))
            except Exception as error:
                return envelopes, UnreadableEvent(stream_id, version, position, repr(error))
            envelopes.append(Envelope(event, version, position, recorded_at, command_id, actor, cause, stream_id))
        return envelopes, None


def due_after(projector: Projector, envelopes: Sequence[Envelope[Any]]) -> datetime | None:
    return due_time(projector(None, [envelope.event for envelope in envelopes]))


def judge(projector: Projector, stream_id: UUID, envelopes: Sequence[Envelope[Any]]) -> Judged:
    """Events of one save are stored under one id; those that the loops saved have another cause than a command."""
    judged, aggregate = Judged(), None
    for (cause, _), saved in groupby(envelopes, key=lambda envelope: (envelope.cause, envelope.command_id)):
        events = list(saved)
        if cause != "command":
            first, due_at = events[0], due_time(aggregate)
            if due_at is None or first.recorded_at < due_at:
                early = "nothing was due" if due_at is None else f"{due_at - first.recorded_at} early"
                judged.violations.append(Violation(stream_id, first.position, f"it was handled: {early}"))
            else:
                judged.lateness.append((cause, first.recorded_at - due_at))
            judged.ended.append(type(first.event).__qualname__)
        aggregate = projector(aggregate, [envelope.event for envelope in events])
    judged.due_at = due_time(aggregate)
    return judged
