"""The in-process API, and the only place where the parts are wired together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from threading import Event as StopEvent
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID, uuid4

import structlog
from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain import rules
from coupon_clock.domain.commands import (
    ChangeValidity,
    Command,
    CreateCouponTemplate,
    ExpireCouponTemplate,
    IncreaseStock,
    ShopCommand,
    TerminateCouponTemplate,
)
from coupon_clock.domain.coupon_template import CouponTemplate, decide, due_at, evolve, existing, fold, has_content_of
from coupon_clock.domain.discount import FixedAmount, Percentage, ThresholdAmount
from coupon_clock.domain.errors import CouponError, CouponTemplateNotFound, ReadModelBehind
from coupon_clock.domain.events import ConsumeRule, Ended, Event, ReceiveRule, StoredEvent
from coupon_clock.domain.validity import Validity
from coupon_clock.infrastructure import schema, telemetry
from coupon_clock.infrastructure.alarms import Alarms
from coupon_clock.infrastructure.broker import Broker, MemoryBroker
from coupon_clock.infrastructure.database import Pool, available, connect, open_pool
from coupon_clock.infrastructure.deadline import Answer, Done, NotDue, TryAgain, Unanswerable
from coupon_clock.infrastructure.event_store import Cause, Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.execution import Decider, Execution, Outcome
from coupon_clock.infrastructure.expiry_consumer import ExpiryConsumer
from coupon_clock.infrastructure.follower import Batch, Follower
from coupon_clock.infrastructure.loop import Bell, Counts, Loop
from coupon_clock.infrastructure.messages import ExpiryDue, UnreadableMessage, from_wire
from coupon_clock.infrastructure.reconciler import Reconciler
from coupon_clock.infrastructure.rejected import Rejected, RejectedMessages
from coupon_clock.infrastructure.relay import Relay
from coupon_clock.infrastructure.server_clock import ServerClock
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections import read_model, shop_months, tables
from coupon_clock.projections.alarm_table import mend_alarms
from coupon_clock.projections.check import Report, check
from coupon_clock.projections.projection import Projection
from coupon_clock.projections.projection import position as rows_are_at
from coupon_clock.projections.projector import Projector
from coupon_clock.projections.read_model import TEMPLATE_ROWS, Filters, Page, TemplateView
from coupon_clock.projections.rebuild import Progress, RebuildOptions, Rebuilt, in_silence, rebuild
from coupon_clock.projections.registry import PROJECTIONS, projection_named
from coupon_clock.projections.rehearsal import Rehearsed, rehearse
from coupon_clock.projections.shop_months import SHOP_MONTHS, MonthsPage
from coupon_clock.projections.stored_rows import Difference
from coupon_clock.projections.verify import ALARM, Part, verify

__all__ = [
    "Application",
    "ChangeValidity",
    "ConsumeRule",
    "CreateCouponTemplate",
    "Envelope",
    "Filters",
    "FixedAmount",
    "IncreaseStock",
    "Outcome",
    "Page",
    "Percentage",
    "ReceiveRule",
    "Settings",
    "TemplateView",
    "TerminateCouponTemplate",
    "ThresholdAmount",
    "Validity",
]

Role = Literal["relay", "consumer", "reconciler", "projector"]
ROLES: tuple[Role, ...] = ("relay", "consumer", "reconciler", "projector")

RELAY_POLL_S = 0.2
FOLLOW_POLL_S = 0.05
READ_POLL_S = 0.005
LONGEST_STOP_S = 15
LONGEST_REST_S = 0.5
REARM_BATCH = 5_000

NO_FILTERS = Filters()
NO_OPTIONS = RebuildOptions()
ALL_STREAMS = Part()

log = structlog.get_logger()


class RolesTornApart(CouponError):
    """Without RocketMQ, relay and consumer work only in one process: run both here, or set ROCKETMQ_ENDPOINTS."""


class Application:
    """Coupon templates that end on time. Safe to use from several threads."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self.settings = settings
        self.pool = pool
        self._clock = ServerClock()
        self.store: EventStore[Event] = EventStore(pool, self._clock, StoredEvent)
        self._alarms_changed = Bell()
        self._log_grew = Bell()
        self.alarms = Alarms(pool)
        self.rejected = RejectedMessages(pool)
        self._execution = Execution(self.store, COUPON_TEMPLATES, self._appended)
        self._closing = StopEvent()

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Checks the schema; starts nothing. Raises UnusableSettings, DatabaseUnavailable, SchemaMissing, UnsafeLog."""
        settings = settings or Settings.load()
        pool = open_pool(settings)
        try:
            with available(), pool.connection() as connection:
                schema.check(connection)
                app = cls(settings, pool)
                app._heal_after_a_move(connection)
        except BaseException:
            pool.close()
            raise
        return app

    @staticmethod
    def migrate(settings: Settings) -> list[int]:
        """Makes or updates the tables; answers with the numbers of the migrations that ran."""
        with connect(settings) as connection:
            numbers = schema.migrate(connection)
            for projection in PROJECTIONS:
                tables.create(connection, projection)
            return numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self.pool.close()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def execute(self, command: ShopCommand) -> Outcome[Event]:
        """Its events are stored when this returns. Raises a CouponError: InvalidCommand, CouponTemplateNotFound,
        CouponTemplateOver, CommandConflict, OutcomeUnknown (send the same command again), DatabaseUnavailable."""
        return self._execution.execute(command)

    def execute_many(self, commands: Sequence[ShopCommand]) -> list[Outcome[Event] | CouponError]:
        """Outcomes or errors in order, in few transactions: one that fails spoils no other."""
        return self._execution.execute_many(commands)

    # ── queries ──────────────────────────────────────────────────────────────────────────────────

    def find(
        self, shop_number: int, template_id: UUID, at_least: int | None = None, timeout: float = 5.0
    ) -> TemplateView:
        """From the read model, once it is at position `at_least`, waiting for that up to `timeout` seconds.

        Raises CouponTemplateNotFound, ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        self._wait_for(TEMPLATE_ROWS, at_least, timeout)
        with available(), self.pool.connection() as connection:
            view = read_model.find(connection, shop_number, template_id)
        if view is None:
            raise CouponTemplateNotFound(template_id, shop_number)
        return view

    def page(
        self,
        shop_number: int,
        filters: Filters = NO_FILTERS,
        after: UUID | None = None,
        limit: int = 50,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> Page:
        """One shop's templates in order of their ids, up to `limit` (at most 1,000) after the cursor.

        Raises ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        self._wait_for(TEMPLATE_ROWS, at_least, timeout)
        with available(), self.pool.connection() as connection:
            return read_model.page(connection, shop_number, filters, after, limit)

    def shop_months(
        self,
        shop_number: int,
        before: date | None = None,
        limit: int = 12,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> MonthsPage:
        """What happened in one shop, month by month, the latest first, up to `limit` (at most 1,000) before the cursor.

        Raises ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        self._wait_for(SHOP_MONTHS, at_least, timeout)
        with available(), self.pool.connection() as connection:
            return shop_months.page(connection, shop_number, before, limit)

    def history(self, shop_number: int, template_id: UUID) -> list[Envelope[Event]]:
        """All that happened to a template, oldest first. Raises CouponTemplateNotFound, DatabaseUnavailable."""
        envelopes, _, _ = self._load(shop_number, template_id)
        return envelopes

    def is_usable(self, shop_number: int, template_id: UUID, at: datetime | None = None) -> bool:
        """From the log: the state as it is now, judged at that (aware) time, by default PostgreSQL's now.

        Raises CouponTemplateNotFound, DatabaseUnavailable.
        """
        _, template, now = self._load(shop_number, template_id)
        return template.is_usable(at or now)

    # ── reactions ────────────────────────────────────────────────────────────────────────────────

    def follow(
        self,
        name: str,
        handler: Callable[[list[Envelope[Event]]], object],
        batch: int = 500,
        start: int | Literal["now"] = 0,
        stop: StopEvent | None = None,
    ) -> None:
        """Hands every event to `handler`, in position order and at least once, until `stop` is set or the app closes.

        A durable checkpoint keeps the place; `start` counts the first time only. A batch whose handler raises is
        repeated whole, with back-off. A second process with the same name waits.
        """

        def deliver(batch: Batch[Event]) -> None:
            handler(batch.envelopes)
            with available(), self.pool.connection() as connection:
                batch.advance(connection)

        follower = Follower(self.pool, self.store, name, deliver, batch, start)
        wait = follower.paced(self._log_grew.listener())
        Loop(name, follower.run_once, FOLLOW_POLL_S, wait).run_forever(stop or self._closing)
        if not self._closing.is_set():
            follower.release()

    # ── the read model, from the log ─────────────────────────────────────────────────────────────

    def rebuild(
        self, name: str = TEMPLATE_ROWS.name, options: RebuildOptions = NO_OPTIONS, progress: Progress = in_silence
    ) -> Rebuilt:
        """Replays the log into new rows of that projection and swaps them in. `progress(step, done, total)`, in events.

        Raises UnknownProjection, RebuildRunning, ShadowOfOtherFold, SwapBlocked, UnreadableEvent, DatabaseUnavailable;
        the live rows are then as they were.
        """
        return rebuild(self.settings, self.pool, self.store, projection_named(name), options, progress)

    def rehearse(self, name: str = TEMPLATE_ROWS.name, progress: Progress = in_silence) -> Rehearsed:
        """Reads and folds what a rebuild would, and writes nothing. Raises as `rebuild` does."""
        return rehearse(self.settings, self.store, projection_named(name), progress)

    def mend_alarms(self) -> int:
        """Brings the alarm table in place to what the log says; answers how many alarms were wrong.

        Raises UnreadableEvent, DatabaseUnavailable.
        """
        return mend_alarms(self.settings, self.pool, self.store)

    def verify(self, name: str | None = None, part: Part = ALL_STREAMS) -> Iterator[Difference]:
        """Every difference between the log and what derives from it, in one snapshot: the projection `name`, or
        "alarm", by default all; of a part of the streams, all that can be verified in parts.

        Raises UnknownProjection, NotInParts, ReadModelOutdated, UnreadableEvent, DatabaseUnavailable.
        """
        if name == ALARM:
            return verify(self.settings, self.store, [], True, part)
        if name is not None:
            return verify(self.settings, self.store, [projection_named(name)], False, part)
        projections = [p for p in PROJECTIONS if part.is_all or p.one_row_a_stream]
        return verify(self.settings, self.store, projections, True, part)

    def check(self) -> Report:
        """Proves from the log alone that what ended did so once, last and not early, and says how late.

        Raises DatabaseUnavailable, UnreadableEvent.
        """
        overdue_after = self.settings.sweep_grace + self.settings.sweep_interval
        return check(self.settings, self.store, timedelta(seconds=overdue_after))

    # ── the messages ─────────────────────────────────────────────────────────────────────────────

    def rearm(self, progress: Callable[[int], object]) -> int:
        """Marks all alarms unarmed, for a broker that lost its store; the relays publish them again.

        Answers how many. Stopped in between, it can be run again. Raises DatabaseUnavailable.
        """
        started_at = self.store.learn_time()
        rearmed = 0
        while some := self.alarms.rearm(started_at, REARM_BATCH):
            rearmed += some
            progress(rearmed)
        return rearmed

    def _heal_after_a_move(self, connection: Connection[TupleRow]) -> None:
        """After a restore or a failover the broker may lack what this log says was sent."""
        self.store.learn_time()
        if schema.has_moved(connection):
            rearmed = self.rearm(lambda done: None)
            log.warning("the log was restored or failed over", action="rearm", alarms=rearmed)
        schema.remember_place(connection)

    def retry_rejected(self, messages: Sequence[Rejected]) -> list[Answer]:
        """Looks at the templates that these messages mean, now; those that are no readable message are Unanswerable."""
        read = [readable(message.body) for message in messages]
        answers = iter(self.look_at([due.stream_id for due in read if isinstance(due, ExpiryDue)], "message"))
        return [next(answers) if isinstance(due, ExpiryDue) else Unanswerable(due) for due in read]

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def running(self, roles: Sequence[Role] = ROLES, broker: Broker | None = None) -> Iterator[None]:
        """These loops in threads, until the block ends; what is in hand is finished first.

        `broker`: by default the one of the settings; closed at the end. Raises RolesTornApart, BrokerMisconfigured.
        """
        check_roles(self.settings, roles)
        broker = broker or broker_for(self.settings)
        parts = self.clockwork(broker)
        stop = StopEvent()
        receivers = self._start(parts.receivers(broker, stop) if "consumer" in roles else [], stop)
        others = self._start([loop for role in roles for loop in self._loops(role, parts, stop)], stop)
        log.info("running", action="start", roles=list(roles), broker=broker.name, broker_forgets=broker.forgets)
        try:
            yield
        finally:
            stop.set()
            self._alarms_changed.ring()
            self._log_grew.ring()
            join(others)
            parts.finish()
            broker.close()
            join(receivers)
            log.info("stopped", action="stop", roles=list(roles))

    def clockwork(self, broker: Broker) -> "Clockwork":
        """The parts that end templates, on this broker, each to be run once or for ever."""
        settings = self.settings
        grace = timedelta(seconds=settings.sweep_grace)
        return Clockwork(
            Relay(self.alarms, broker, self._clock, settings.lead_time),
            ExpiryConsumer(
                broker, self.alarms, self.rejected, self.look_at, self._clock, settings.lead_time, settings.max_held
            ),
            Reconciler(self.alarms, self.look_at, grace),
            tuple(Projector(self.pool, self.store, projection) for projection in PROJECTIONS),
        )

    def look_at(self, stream_ids: Sequence[UUID], cause: Cause) -> list[Answer]:
        """Ends those of these templates that are due, in few transactions; none given, it only reads the time."""
        if not stream_ids:
            self.store.learn_time()
        commands = [ExpireCouponTemplate(command_id=uuid4(), template_id=stream_id) for stream_id in stream_ids]
        outcomes = self._execution.execute_many(commands, cause)
        unchanged = [o.template_id for o in outcomes if isinstance(o, Outcome) and not o.events]
        due_ats = self._due_ats(unchanged)
        self._observe_lateness(outcomes, cause)
        return [answer(outcome, due_ats) for outcome in outcomes]

    def _due_ats(self, stream_ids: Sequence[UUID]) -> dict[UUID, datetime | None]:
        if not stream_ids:
            return {}
        states = {
            stream_id: fold(envelope.event for envelope in stream)
            for stream_id, stream in self.store.load_many(stream_ids).streams.items()
            if not isinstance(stream, UnreadableEvent)
        }
        return {stream_id: due_at(state) for stream_id, state in states.items() if state}

    def _observe_lateness(self, outcomes: Sequence[Outcome[Event] | CouponError], cause: Cause) -> None:
        now = self._clock.now()
        for outcome in outcomes:
            if isinstance(outcome, Outcome):
                for event in outcome.events:
                    if isinstance(event, Ended):
                        telemetry.LATENESS.labels(cause).observe((now - event.ended_at).total_seconds())

    def _loops(self, role: Role, parts: "Clockwork", stop: StopEvent) -> list[Loop]:
        match role:
            case "relay":
                return [Loop(role, parts.relay.run_once, RELAY_POLL_S, self._alarms_changed.listener())]
            case "consumer":
                return [Loop(role, step, 0, stop.wait) for step in (parts.consumer.act, parts.consumer.acknowledge)]
            case "reconciler":
                return [Loop(role, parts.reconciler.run_once, self.settings.sweep_interval, stop.wait)]
            case "projector":
                return [
                    Loop(
                        role,
                        standing_aside(projector, parts.consumer),
                        FOLLOW_POLL_S,
                        projector.paced(self._log_grew.listener()),
                    )
                    for projector in parts.projectors
                ]

    def _start(self, loops: Sequence[Loop], stop: StopEvent) -> list[Thread]:
        threads = [
            Thread(target=loop.run_forever, args=(stop,), name=f"coupon-clock-{loop.role}", daemon=True)
            for loop in loops
        ]
        for thread in threads:
            thread.start()
        return threads

    # ── what the above needs ─────────────────────────────────────────────────────────────────────

    def _appended(self, earliest_due_at: datetime | None) -> None:
        self._log_grew.ring()
        if earliest_due_at is not None:
            self._alarms_changed.ring()

    def _load(self, shop_number: int, template_id: UUID) -> tuple[list[Envelope[Event]], CouponTemplate, datetime]:
        envelopes, now = self.store.load(template_id)
        template = fold(envelope.event for envelope in envelopes)
        if template is None or template.shop_number != shop_number:
            raise CouponTemplateNotFound(template_id, shop_number)
        return envelopes, template, now

    def _wait_for(self, projection: Projection[Any], at_least: int | None, timeout: float) -> None:
        """Until its rows are that far. Raises ReadModelBehind, ReadModelOutdated."""
        deadline = monotonic() + timeout
        while True:
            with available(), self.pool.connection() as connection:
                position = rows_are_at(connection, projection)
            if at_least is None or position >= at_least:
                return
            if monotonic() >= deadline:
                raise ReadModelBehind(position, at_least)
            sleep(READ_POLL_S)


class Clockwork(Struct, frozen=True):
    """The parts that end templates and show it. Each has a `run_once`."""

    relay: Relay
    consumer: ExpiryConsumer
    reconciler: Reconciler
    projectors: tuple[Projector, ...]

    def run_once(self) -> Counts:
        """One tick of each, in the order in which a coupon passes them."""
        counts = self.relay.run_once() + self.consumer.run_once() + self.reconciler.run_once()
        return sum((projector.run_once() for projector in self.projectors), counts)

    def receivers(self, broker: Broker, stop: StopEvent) -> list[Loop]:
        return [Loop("consumer", self.consumer.receive, 0, stop.wait) for _ in range(broker.receivers)]

    def finish(self) -> None:
        """At a clean stop: acknowledges what is done, and frees what other processes may take over."""
        try:
            while self.consumer.acknowledge(0.0):
                pass
            self.relay.release()
            for projector in self.projectors:
                projector.release()
        except CouponError as error:
            log.warning("not released", action="stop", why=str(error))


def standing_aside(projector: Projector, consumer: ExpiryConsumer) -> Callable[[], Counts]:
    """Endings first: both need the interpreter, and rows can wait for the moment that a thousand ends take."""

    def run_once() -> Counts:
        consumer.stand_aside(LONGEST_REST_S)
        return projector.run_once()

    return run_once


def join(threads: Sequence[Thread]) -> None:
    for thread in threads:
        thread.join(LONGEST_STOP_S)


# ── the domain, as the parts see it ──────────────────────────────────────────────────────────────


def admit(state: CouponTemplate | None, command: Command) -> None:
    """Another shop's template is "not found", whatever the command; a Create decides for itself.

    Types first: a shop number that is no number must not pass for another shop's.
    """
    if not isinstance(command, CreateCouponTemplate):
        rules.refuse(rules.form_problems(command))
        existing(state, command)


COUPON_TEMPLATES = Decider(admit, decide, evolve, has_content_of, due_at)


def readable(body: bytes) -> ExpiryDue | UnreadableMessage:
    try:
        return from_wire(body)
    except UnreadableMessage as unreadable:
        return unreadable


def answer(outcome: Outcome[Event] | CouponError, due_ats: Mapping[UUID, datetime | None]) -> Answer:
    """What a look came to, in the loops' words. `due_ats`: of the streams that did not change."""
    match outcome:
        case CouponTemplateNotFound() | UnreadableEvent():
            return Unanswerable(outcome)
        case CouponError():
            return TryAgain(outcome)
    if outcome.events:
        return Done(ended_now=True)
    due = due_ats.get(outcome.template_id)
    return NotDue(due) if due else Done(ended_now=False)


def broker_for(settings: Settings) -> Broker:
    """RocketMQ where its endpoints are set, else the in-process one. Raises BrokerMisconfigured."""
    if not settings.rocketmq_endpoints:
        return MemoryBroker()
    from coupon_clock.infrastructure.rocketmq import RocketMQBroker  # its client is an extra, and slow to import

    return RocketMQBroker.open(settings)


def check_roles(settings: Settings, roles: Sequence[Role]) -> None:
    if not settings.rocketmq_endpoints and ("relay" in roles) != ("consumer" in roles):
        raise RolesTornApart
