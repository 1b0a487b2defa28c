"""Receives messages ahead of time, holds them until the instant, and has all ended that is due.

Three loops on the held messages: receive, act, acknowledge. A message is acknowledged after what it led to is stored;
one that is lost, repeated or late changes nothing, because the log decides. At the instant only `act` runs: the others
share its interpreter, and can wait.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from threading import Condition, Event

from msgspec.structs import replace

from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.logs import Failures, Log
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messaging.broker import Broker, BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, UnreadableMessage, from_wire, to_wire
from coupon_clock.infrastructure.messaging.rejected import RejectedMessages
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms
from coupon_clock.infrastructure.scheduling.due_result import Completed, DueReport, Failed, HandleDue, NotDue, Retry
from coupon_clock.infrastructure.scheduling.held_messages import HeldMessage, HeldMessages

BATCH = 1_000
RECEIVE = 500
ACKNOWLEDGE = 256
LONG_POLL = timedelta(seconds=5)
ROOM_WAIT_S = 0.1
LONGEST_WITHOUT_TIME_S = 5.0
SOONEST_AGAIN = timedelta(seconds=0.2)
LATEST_AGAIN = timedelta(seconds=2)
"""A stream that could not be handled is left alone for as long as it is overdue, within these bounds."""
NO_WAIT = timedelta(0)
NEVER_SO_EARLY = datetime(1, 1, 1, tzinfo=UTC)
NO_GRACE = timedelta(0)

log = Log(__name__)


class ExpiryConsumer:
    def __init__(
        self,
        broker: Broker,
        alarms: Alarms,
        rejected: RejectedMessages,
        handle_due: HandleDue,
        clock: ServerClock,
        lead: timedelta,
        max_held: int,
    ) -> None:
        self._broker = broker
        self._alarms = alarms
        self._rejected = rejected
        self._handle_due = handle_due
        self._clock = clock
        self._max_held = max_held
        self._lead = lead
        self._longest_hold = max(timedelta(seconds=60), 2 * lead)
        self._invisible = self._longest_hold + timedelta(seconds=10)
        self._held = HeldMessages()
        self._changed = Condition()
        self._acting = 0
        self._finished: list[Delivery] = []
        self._database_is_away = Event()
        self._failures = Failures(log)

    def run_once(self) -> Counts:
        """All three steps once, without waiting: for tests and for a single thread."""
        return self.receive(NO_WAIT) + self.act(0.0) + self.acknowledge(0.0)

    def wait_until_idle(self, longest: float) -> None:
        """For work in the same process that can wait: returns once nothing is due, after `longest` seconds anyhow."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_acting(), longest)

    # ── receive ──────────────────────────────────────────────────────────────────────────────────

    def receive(self, wait: timedelta = LONG_POLL) -> Counts:
        """Holds what comes. Receives nothing while anything is due, there is no room, or PostgreSQL is away."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, ROOM_WAIT_S):
                return Counts()
        deliveries = self._broker.receive(RECEIVE, self._invisible, wait)
        # All are held before any is turned away, which needs PostgreSQL: one bad message spoils no other.
        refused = [(delivery, problem) for delivery in deliveries if (problem := self._hold(delivery))]
        if too_early := [(delivery, problem) for delivery, problem in refused if isinstance(problem, Alarm)]:
            self._alarms.turn_away([alarm for _, alarm in too_early], self._longest_hold)
            self._finish([bodiless(delivery) for delivery, _ in too_early])
        self._reject([(delivery, problem.reason) for delivery, problem in refused if not isinstance(problem, Alarm)])
        return Counts(received=len(deliveries)) if deliveries else Counts()

    def _has_room(self) -> bool:
        return len(self._held) < self._max_held and not self._database_is_away.is_set() and not self._is_acting()

    def _hold(self, delivery: Delivery) -> UnreadableMessage | Alarm | None:
        """Returns why not: it is unreadable, or the alarm that is due too far ahead."""
        try:
            message = from_wire(delivery.body)
        except UnreadableMessage as unreadable:
            return unreadable
        ahead = message.due_at - self._clock.now()
        if ahead > self._longest_hold:
            return Alarm(message.stream_id, message.due_at)
        telemetry.late("delivered", self._lead - ahead)
        with self._changed:
            if self._held.hold(message.stream_id, message.due_at, bodiless(delivery)):
                self._changed.notify_all()
            telemetry.HELD.set(len(self._held))
        return None

    def _reject(self, rejected: Sequence[tuple[Delivery, str]]) -> None:
        if rejected:
            self._rejected.add(rejected)
            (first, reason), *_ = rejected
            number = len(rejected)
            log.warning("rejected", action="reject", messages=number, first=first.message_id, why=reason)
            self._finish([bodiless(delivery) for delivery, _ in rejected])

    # ── act ──────────────────────────────────────────────────────────────────────────────────────

    def act(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Waits up to `wait` seconds for the next instant, and has all ended that is due."""
        due = self._take_due(wait)
        if not due:
            self._keep_time()
            return Counts()
        try:
            return self._settle(due, self._handle(due))
        finally:
            with self._changed:
                self._acting -= 1
                self._changed.notify_all()

    def _take_due(self, wait: float) -> list[HeldMessage]:
        with self._changed:
            first_at, now = self._held.first_at(), self._clock.now()
            if first_at is None or first_at > now:
                self._changed.wait(wait if first_at is None else min(wait, (first_at - now).total_seconds()))
            due = self._held.take_due(self._clock.now(), BATCH)
            self._acting += bool(due)
            telemetry.HELD.set(len(self._held))
            return due

    def _is_acting(self) -> bool:
        return self._acting > 0 or self._held.is_due(self._clock.now())

    def _handle(self, due: Sequence[HeldMessage]) -> DueReport:
        try:
            return self._handle_due(list({held.stream_id: None for held in due}), "message", NO_GRACE)
        except Exception:
            self._database_is_away.set()
            with self._changed:
                self._held.hold_again(due)
            raise

    def _keep_time(self) -> None:
        """All that is handled sets the clock, and shows that PostgreSQL is there; while nothing is due, this does."""
        if self._database_is_away.is_set() or self._clock.age() > LONGEST_WITHOUT_TIME_S:
            self._ask_postgresql()

    def _ask_postgresql(self) -> None:
        """Raises where it is away: receiving then pauses until it is back, and this loop backs off."""
        self._database_is_away.set()
        self._handle_due([], "message", NO_GRACE)
        self._database_is_away.clear()

    def _settle(self, due: Sequence[HeldMessage], report: DueReport) -> Counts:
        """What needs PostgreSQL comes last: if that fails, only that comes again."""
        counts = Counts(ended=report.ended)
        results = dict(zip({held.stream_id: None for held in due}, report.results, strict=True))
        finished: list[Delivery] = []
        again: list[HeldMessage] = []
        rejected: list[tuple[Delivery, str]] = []
        failures: list[Retry] = []
        counted: set[object] = set()
        for held in due:
            match results[held.stream_id]:
                case Completed(ended_now):
                    finished.append(held.delivery)
                    counts["found_ended"] += not ended_now or held.stream_id in counted
                    counted.add(held.stream_id)
                case NotDue(due_at) if due_at != held.due_at:
                    finished.append(held.delivery)
                    counts["found_moved"] += 1
                case NotDue():
                    again.append(held)
                    counts["not_due"] += 1
                case Retry() as failure:
                    again.append(replace(held, act_at=self._clock.now() + self._left_alone(held)))
                    failures.append(failure)
                case Failed(error):
                    body = to_wire(ExpiryDue(held.stream_id, held.due_at))
                    rejected.append((replace(held.delivery, body=body), str(error)))
                    counts["rejected"] += 1
        with self._changed:
            self._held.hold_again(again)
        self._finish(finished)
        self._reject(rejected)
        if failures:
            self._failures.report("not ended", failures[0].error, True, action="handle_due", streams=len(failures))
            self._ask_postgresql()
        self._database_is_away.clear()
        return +counts

    def _left_alone(self, held: HeldMessage) -> timedelta:
        return min(max(SOONEST_AGAIN, self._clock.now() - held.due_at), LATEST_AGAIN)

    # ── acknowledge ──────────────────────────────────────────────────────────────────────────────

    def acknowledge(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Off the critical path, many per call. What cannot be acknowledged comes again, and is found ended.

        Waits up to `wait` seconds for something to acknowledge and for nothing to be due; with none, does it at once.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished and not (wait and self._is_acting()), wait)
            if not self._finished or (wait and self._is_acting()):
                return Counts()
            batch = self._finished[:ACKNOWLEDGE]
            del self._finished[:ACKNOWLEDGE]
        try:
            self._broker.acknowledge(batch)
        except BrokerUnavailable as error:
            self._failures.report("not acknowledged", error, True, action="acknowledge", messages=len(batch))
            return Counts(unacknowledged=len(batch))
        return Counts(acknowledged=len(batch))

    def acknowledge_rest(self) -> None:
        """At a clean stop: as far as the broker takes it."""
        while self.acknowledge(0.0)["acknowledged"]:
            pass

    # ── stop ─────────────────────────────────────────────────────────────────────────────────────

    def leave(self, ahead: timedelta, longest: float) -> None:
        """At a clean stop, when nothing is received any more: gives back what is due later than `ahead` from now, and
        returns when the rest is ended. What cannot be, for PostgreSQL is away or `longest` seconds are over, is given
        back as well.

        Raises BrokerUnavailable.
        """
        with self._changed:
            later = self._held.take_later(self._clock.now() + ahead)
            telemetry.HELD.set(len(self._held))
        self._give_back(later)
        with self._changed:
            self._changed.wait_for(self._has_left, max(0.0, longest))
            rest = self._held.take_later(NEVER_SO_EARLY)
            telemetry.HELD.set(0)
        self._give_back(rest)

    def _has_left(self) -> bool:
        return self._database_is_away.is_set() or not (self._held or self._acting)

    def _give_back(self, messages: Sequence[HeldMessage]) -> None:
        for start in range(0, len(messages), BATCH):
            self._broker.give_back([held.delivery for held in messages[start : start + BATCH]])

    def _finish(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._finished += deliveries
            self._changed.notify_all()


def bodiless(delivery: Delivery) -> Delivery:
    """All that an acknowledgement needs: a body can be large, and messages many."""
    return replace(delivery, body=b"")
