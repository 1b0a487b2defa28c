"""What acts when streams of a log are due: alarms are published, messages come, and the instant is kept.

What being due leads to comes in as `decide` (runtime.py by a decider, aggregates.py by aggregates of the eventsourcing
library).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event as StopEvent
from threading import Thread
from time import monotonic
from typing import Literal
from uuid import UUID

from msgspec import Struct

from coupon_clock.domain import arguments
from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.infrastructure.command_handling.due import Decide, DueHandler, HandledStream
from coupon_clock.infrastructure.command_handling.handler import Overtaken
from coupon_clock.infrastructure.event_store.cluster_identity import failover_detected, remember_cluster
from coupon_clock.infrastructure.event_store.recorder import EventLogRecorder
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.event_store.store import learn_time
from coupon_clock.infrastructure.logs import Failures, Log
from coupon_clock.infrastructure.loop import (
    Counts,
    Died,
    Loop,
    LoopDied,
    Ticks,
    interrupt_main_thread,
    join,
    start,
    start_thread,
)
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, UnreadableMessage, from_wire
from coupon_clock.infrastructure.messaging.rejected import Rejected, RejectedMessages
from coupon_clock.infrastructure.notifier import AppendNotifier
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.processes import HEARTBEAT_S, Heartbeat
from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.infrastructure.scheduling.alarms import Alarms
from coupon_clock.infrastructure.scheduling.due_result import (
    Completed,
    DueCause,
    DueReport,
    DueResult,
    Failed,
    NotDue,
    Retry,
)
from coupon_clock.infrastructure.scheduling.expiry_consumer import ExpiryConsumer
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.infrastructure.scheduling.relay import Relay
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.engine.projector import Projector

Role = Literal["relay", "consumer", "reconciler", "projector"]
ROLES: tuple[Role, ...] = ("relay", "consumer", "reconciler", "projector")

NO_GRACE = timedelta(0)
ENDED_NOW, ENDED_BEFORE = Completed(ended_now=True), Completed(ended_now=False)
RELAY_POLL_S = 0.2
FOLLOW_POLL_S = 0.05
LONGEST_YIELD_S = 0.5
REARM_BATCH = 5_000
LONGEST_STOP_S = 14.0
CLOSE_S = 4.0
"""Of that, for the broker to be closed, and for what that interrupts to end."""
RECEIVED_S = 0.3
"""For messages on their way here."""
FINISH_AHEAD = timedelta(seconds=5)
"""What is due sooner is ended by a process that stops; what is due later is given back, and RocketMQ has it received
again after 3.5 s (measured)."""

log = Log(__name__)


class RolesTornApart(CouponClockError):
    """Without RocketMQ, relay and consumer work only in one process: run both here, or set ROCKETMQ_ENDPOINTS."""


@dataclass(eq=False)
class UnknownRole(CouponClockError):
    """There is no role {name} here: there are {known}."""

    name: str
    known: str


class Parts(Struct, frozen=True):
    """What acts when an alarm is due, and what follows the log. Each has a `run_once`."""

    relay: Relay
    consumer: ExpiryConsumer
    reconciler: Reconciler
    projectors: tuple[Projector, ...]

    def run_once(self) -> Counts:
        """One tick of each, in the order in which an alarm and its end pass them."""
        ended = self.relay.run_once() + self.consumer.run_once() + self.reconciler.run_once()
        return sum((projector.run_once() for projector in self.projectors), ended)


class Threads:
    """Those of one `running`. `stop`: for all but the threads that end what is held, which have `left`."""

    def __init__(self, died: Died) -> None:
        self.stop = StopEvent()
        self.left = StopEvent()
        self.receiving: list[Thread] = []
        self.ending: list[Thread] = []
        self.others: list[Thread] = []
        self.heartbeat: Heartbeat | None = None
        self.deaths: list[LoopDied] = []
        self._died = died

    def note(self, death: LoopDied) -> None:
        self.deaths.append(death)
        if not self.stop.is_set():
            self._died(death)


class Deadlines:
    """Those of one log. Safe to use from several threads.

    `decide`: does what is due on streams that have no prepared ending; `all_prepared`: few of them are like that.
    `projectors`: what the role projector keeps up to date. `notify`: told of each append.
    """

    def __init__(
        self,
        database: Database,
        recorder: EventLogRecorder,
        clock: ServerClock,
        decide: Decide,
        notify: AppendNotifier,
        *,
        all_prepared: bool = False,
        projectors: Sequence[Projector] = (),
    ) -> None:
        self.settings = database.settings
        self.database = database
        self.clock = clock
        self.alarms = Alarms(database)
        self.rejected = RejectedMessages(database)
        self.ticks = Ticks()
        self._projectors = tuple(projectors)
        self._notify = notify
        self._recorder = recorder
        self._due = DueHandler(recorder, clock, decide, notify, all_prepared=all_prepared)

    def learn_time(self) -> datetime:
        """Reads PostgreSQL's time. Raises DatabaseUnavailable."""
        return learn_time(self._recorder, self.clock)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def running(
        self, roles: Sequence[Role] = ROLES, broker: Broker | None = None, died: Died = interrupt_main_thread
    ) -> Iterator[Parts]:
        """As `Application.running`, which see."""
        self.database.refuse_fork()
        arguments.refuse(
            arguments.list_of("roles", roles, str),
            arguments.of_type("broker", broker, Broker) if broker is not None else (),
            arguments.function("died", died),
        )
        check_roles(self.settings, roles)
        broker = broker_for(self.settings) if broker is None else broker
        parts = self.parts(broker)
        threads = Threads(died)
        try:
            self._start(parts, broker, roles, threads)
            log.info("running", action="start", roles=",".join(roles), broker=broker.name)
            yield parts
        except BaseException as error:
            if isinstance(error, Exception) or not threads.deaths:
                raise  # else it is how the program was told of a death
        finally:
            if not self.database.is_forked:
                self._stop(parts, broker, threads)
                log.info("stopped", action="stop", roles=",".join(roles))
        if threads.deaths:
            raise threads.deaths[0]

    def _start(self, parts: Parts, broker: Broker, roles: Sequence[Role], threads: Threads) -> None:
        if "consumer" in roles:
            threads.receiving = start(self._receivers(parts, broker, threads.stop), threads.stop, threads.note)
        for role in roles:
            stop = threads.left if role == "consumer" else threads.stop
            started = start(self._loops(role, parts, stop), stop, threads.note)
            (threads.ending if role == "consumer" else threads.others).extend(started)
        threads.heartbeat = Heartbeat(self.database, list(roles), self.ticks)
        beat = Loop("heartbeat", threads.heartbeat.run_once, HEARTBEAT_S, threads.stop.wait)
        threads.others += start([beat], threads.stop, threads.note)

    def _stop(self, parts: Parts, broker: Broker, threads: Threads) -> None:
        """In bounded time, whatever PostgreSQL and the broker do: what they keep from ending is left to end by
        itself."""
        until = monotonic() + LONGEST_STOP_S
        threads.stop.set()
        self._notify.alarms_changed.notify()
        self._notify.log_grew.notify()
        sides = [
            start_thread("stop-broker", lambda: stop_broker(parts, broker, threads, until), threads.note),
            start_thread("stop-postgresql", lambda: stop_postgresql(parts, threads, until), threads.note),
        ]
        join(sides, until)

    def parts(self, broker: Broker) -> Parts:
        """What acts on this broker, each to be run once or for ever."""
        lead, grace = self.settings.lead_time, timedelta(seconds=self.settings.reconcile_grace)
        consumer = ExpiryConsumer(
            broker, self.alarms, self.rejected, self.handle_due, self.clock, lead, self.settings.max_held
        )
        relay = Relay(self.alarms, broker, self.clock, lead)
        reconciler = Reconciler(self.handle_due, self.alarms, grace)
        return Parts(relay, consumer, reconciler, self._projectors)

    def handle_due(self, stream_ids: Sequence[UUID], cause: DueCause, grace: timedelta = NO_GRACE) -> DueReport:
        """Ends all that was due `grace` ago, soonest first, reads PostgreSQL's time, and reports what came of these
        streams.

        Raises DatabaseUnavailable, UnsafeLog, AnswerLost.
        """
        handled = self._due.handle_due(stream_ids, cause, grace)
        self.learn_time()
        decided = map(due_result, handled.decided.values())
        failures = [result for result in decided if isinstance(result, Failed | Retry)]
        return DueReport(handled.ended, failures, list(map(due_result, handled.asked)))

    # ── the messages ─────────────────────────────────────────────────────────────────────────────

    def rearm(self, progress: Progress = no_progress) -> int:
        """Marks all alarms unarmed, for a broker that lost its store; the relays publish them again.

        Returns how many. Stopped in between, it can be run again. Raises DatabaseUnavailable.
        """
        started_at = self.learn_time()
        rearmed = 0
        while some := self.alarms.rearm(started_at, REARM_BATCH):
            rearmed += some
            progress("rearming", rearmed, None)
        return rearmed

    def retry_rejected(self, messages: Sequence[Rejected]) -> list[DueResult]:
        """Looks at the streams that these messages mean, now; those that are no readable message are Failed."""
        read = [readable(message.body) for message in messages]
        report = self.handle_due([due.stream_id for due in read if isinstance(due, ExpiryDue)], "message")
        results = iter(report.results)
        return [next(results) if isinstance(due, ExpiryDue) else Failed(due) for due in read]

    # ── what the above needs ─────────────────────────────────────────────────────────────────────

    def _rearming_after_failover(self, relay: Relay) -> Callable[[], Counts]:
        """After a restore or a failover the broker may lack what was sent. It shows in new connections only."""
        connections_made = 0

        def run_once() -> Counts:
            nonlocal connections_made
            made = self.database.connections_made
            if made != connections_made:
                self._rearm_after_failover()
                connections_made = made
            return relay.run_once()

        return run_once

    def _rearm_after_failover(self) -> None:
        with self.database.connection() as connection:
            if failover_detected(connection, self.database.schema):
                rearmed = self.rearm()
                log.warning("the log was restored or failed over", action="rearm", alarms=rearmed)
            remember_cluster(connection, self.database.schema)

    def _receivers(self, parts: Parts, broker: Broker, stop: StopEvent) -> list[Loop]:
        failures = Failures(log)
        receive = Loop(
            "consumer", parts.consumer.receive, 0, stop.wait, "receiver", failures=failures, ticks=self.ticks
        )
        return [receive] * broker.receivers

    def _loops(self, role: Role, parts: Parts, stop: StopEvent) -> list[Loop]:
        match role:
            case "relay":
                relay = self._rearming_after_failover(parts.relay)
                return [Loop(role, relay, RELAY_POLL_S, self._notify.alarms_changed.subscribe(), ticks=self.ticks)]
            case "consumer":
                act, acknowledge = parts.consumer.act, parts.consumer.acknowledge
                return [
                    Loop(role, act, 0, stop.wait, ticks=self.ticks),
                    Loop(role, acknowledge, 0, stop.wait, "acknowledger", ticks=self.ticks),
                ]
            case "reconciler":
                reconcile, interval = parts.reconciler.run_once, self.settings.reconcile_interval
                return [Loop(role, reconcile, interval, stop.wait, ticks=self.ticks)]
            case "projector":
                return [
                    Loop(
                        role,
                        yield_to_expiry(projector, parts.consumer),
                        FOLLOW_POLL_S,
                        projector.paced(self._notify.log_grew.subscribe()),
                        f"projector {projector.name}",
                        ticks=self.ticks,
                    )
                    for projector in parts.projectors
                ]


def yield_to_expiry(projector: Projector, consumer: ExpiryConsumer) -> Callable[[], Counts]:
    """Endings first: both need the interpreter, and rows can wait for the moment that a thousand ends take."""

    def run_once() -> Counts:
        consumer.wait_until_idle(LONGEST_YIELD_S)
        return projector.run_once()

    return run_once


def stop_broker(parts: Parts, broker: Broker, threads: Threads, until: float) -> None:
    """Ends what is due soon, and gives back the rest, which other processes then receive."""
    consumer = parts.consumer
    join(threads.receiving, monotonic() + RECEIVED_S)
    broker.stop_receiving()
    join(threads.receiving, monotonic() + RECEIVED_S)
    with failure_logged("held messages are not given back"):
        consumer.leave(FINISH_AHEAD, until - CLOSE_S - monotonic())
    threads.left.set()
    join(threads.ending, until - CLOSE_S)
    with failure_logged("not acknowledged"):
        consumer.acknowledge_rest()
    join(threads.others, until - CLOSE_S)
    broker.close()


def stop_postgresql(parts: Parts, threads: Threads, until: float) -> None:
    """Frees what other processes may take over."""
    join(threads.others, until)
    with failure_logged("the process is still listed"):
        if threads.heartbeat:
            threads.heartbeat.end()
    with failure_logged("alarms are not released"):
        parts.relay.release()
    for projector in parts.projectors:
        with failure_logged("a projection is not released"):
            projector.release()


@contextmanager
def failure_logged(what: str) -> Iterator[None]:
    try:
        yield
    except CouponClockError as error:
        log.warning(what, action="stop", why=error)
    except Exception as error:
        log.error(what, trace=error, action="stop")


def due_result(handled: HandledStream) -> DueResult:
    """The outcome of a command, in the loops' terms."""
    match handled.error:
        case DatabaseUnavailable() | OutcomeUnknown() | Overtaken() | UnsafeLog():
            return Retry(handled.error)
        case CouponClockError():
            return Failed(handled.error)
    if handled.ended:
        return ENDED_NOW
    return ENDED_BEFORE if handled.due_at is None else NotDue(handled.due_at)


def readable(body: bytes) -> ExpiryDue | UnreadableMessage:
    try:
        return from_wire(body)
    except UnreadableMessage as unreadable:
        return unreadable


def broker_for(settings: Settings) -> Broker:
    """RocketMQ where its endpoints are set, else the in-process one. Raises BrokerMisconfigured."""
    if not settings.rocketmq_endpoints:
        return MemoryBroker()
    from coupon_clock.infrastructure.messaging.rocketmq.broker import (
        RocketMQBroker,  # its client is an extra, and slow to import
    )

    return RocketMQBroker.open(settings)


def check_roles(settings: Settings, roles: Sequence[str]) -> None:
    if unknown := set(roles) - set(ROLES):
        raise UnknownRole(", ".join(sorted(unknown)), ", ".join(ROLES))
    if not settings.rocketmq_endpoints and ("relay" in roles) != ("consumer" in roles):
        raise RolesTornApart
