"""Receives messages ahead of time, holds them until the instant, and looks at what is due, all at once.

Three loops on one heap of held messages: receive, act, acknowledge. A message is acknowledged after what it led to
is stored; one that is lost, repeated or late changes nothing, because the log decides. At the instant only `act` runs:
the others share its interpreter, and can wait.
"""

import heapq
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count
from threading import Condition, Event
from uuid import UUID

import structlog
from msgspec import Struct
from msgspec.structs import replace

from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messaging.broker import Broker, BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, UnreadableMessage, from_wire
from coupon_clock.infrastructure.messaging.rejected import RejectedMessages
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms
from coupon_clock.infrastructure.scheduling.due_result import Completed, DueResult, Failed, HandleDue, NotDue, Retry

BATCH = 1_000
RECEIVE = 500
ACKNOWLEDGE = 256
LONG_POLL = timedelta(seconds=5)
ROOM_WAIT_S = 0.1
LONGEST_WITHOUT_TIME_S = 5.0
SOONEST_AGAIN = timedelta(seconds=0.2)
LATEST_AGAIN = timedelta(seconds=2)
"""A stream that could not be looked at is left alone for as long as it is overdue, within these bounds."""
NO_WAIT = timedelta(0)

log = structlog.get_logger()


class Held(Struct, frozen=True, order=True, gc=False):
    """One message waiting for its instant.

    Of many that are due at once the last id comes first: the reconciler comes from the other end, so that both meet
    once instead of doing the same work. `number` keeps the heap from comparing messages. No cycle can go through it, so
    the garbage collector need not visit the many there are.
    """

    due_at: datetime
    place: int
    number: int
    message: ExpiryDue
    delivery: Delivery


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
        self._longest_hold = max(timedelta(seconds=60), 2 * lead)
        self._invisible = self._longest_hold + timedelta(seconds=10)
        self._held: list[Held] = []
        self._numbers = count()
        self._changed = Condition()
        self._looking = 0
        self._finished: list[Delivery] = []
        self._database_is_away = Event()

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
        if not self._has_room():
            return Counts()
        deliveries = self._broker.receive(RECEIVE, self._invisible, wait)
        others = [delivery for delivery in deliveries if not self._hold(delivery)]
        for delivery in others:
            self._turn_away(delivery)
        return Counts(received=len(deliveries)) if deliveries else Counts()

    def _has_room(self) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    len(self._held) < self._max_held and not self._database_is_away.is_set() and not self._is_acting()
                ),
                ROOM_WAIT_S,
            )

    def _hold(self, delivery: Delivery) -> bool:
        """Unless it is unreadable, or due too far ahead. Nothing here can fail, so one bad message spoils no other."""
        try:
            message = from_wire(delivery.body)
        except UnreadableMessage:
            return False
        if message.due_at - self._clock.now() > self._longest_hold:
            return False
        held = Held(message.due_at, -message.stream_id.int, next(self._numbers), message, delivery)
        with self._changed:
            heapq.heappush(self._held, held)
            telemetry.HELD.set(len(self._held))
            if self._held[0] is held:
                self._changed.notify_all()
        return True

    def _turn_away(self, delivery: Delivery) -> None:
        try:
            message = from_wire(delivery.body)
        except UnreadableMessage as unreadable:
            self._set_aside(delivery, unreadable.reason)
            return
        self._alarms.release([Alarm(message.stream_id, message.due_at)])
        self._finish([delivery])

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        self._rejected.add(delivery, reason)
        log.warning("message set aside", action="reject", message_id=delivery.message_id, why=reason)
        self._finish([delivery])

    # ── act ──────────────────────────────────────────────────────────────────────────────────────

    def act(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Waits up to `wait` seconds for the next instant, and looks at all that are due."""
        due = self._take_due(wait)
        if not due:
            self._keep_time()
            return Counts()
        try:
            return self._look(due)
        finally:
            with self._changed:
                self._looking -= 1
                self._changed.notify_all()

    def _look(self, due: Sequence[Held]) -> Counts:
        answers = self._answers(due)
        counts = self._settle(due, answers)
        failures = [answer for answer in answers.values() if isinstance(answer, Retry)]
        if failures:
            log.warning("again", action="look", streams=len(failures), first=str(failures[0].error))
            self._ask_postgresql()
        self._database_is_away.clear()
        return counts

    def _take_due(self, wait: float) -> list[Held]:
        with self._changed:
            if not self._is_due():
                self._changed.wait(self._until_next(wait))
            due: list[Held] = []
            now = self._clock.now()
            while self._held and self._held[0].due_at <= now and len(due) < BATCH:
                if due and is_again(due[0]) != is_again(self._held[0]):
                    break
                due.append(heapq.heappop(self._held))
            self._looking += bool(due)
            telemetry.HELD.set(len(self._held))
            return due

    def _is_due(self) -> bool:
        return bool(self._held) and self._held[0].due_at <= self._clock.now()

    def _is_acting(self) -> bool:
        return self._looking > 0 or self._is_due()

    def _until_next(self, wait: float) -> float:
        if not self._held:
            return wait
        return max(0.0, min(wait, (self._held[0].due_at - self._clock.now()).total_seconds()))

    def _answers(self, due: Sequence[Held]) -> dict[UUID, DueResult]:
        stream_ids = list({held.message.stream_id: None for held in due})
        try:
            return dict(zip(stream_ids, self._handle_due(stream_ids, "message"), strict=True))
        except Exception:
            self._database_is_away.set()
            self._hold_again(due)
            raise

    def _keep_time(self) -> None:
        """Every look teaches the clock, and shows that PostgreSQL is there; while nothing is due, an empty one does."""
        if self._database_is_away.is_set() or self._clock.age() > LONGEST_WITHOUT_TIME_S:
            self._ask_postgresql()

    def _ask_postgresql(self) -> None:
        """Raises where it is away: receiving then pauses until it is back, and this loop backs off."""
        self._database_is_away.set()
        self._handle_due([], "message")
        self._database_is_away.clear()

    def _settle(self, due: Sequence[Held], answers: Mapping[UUID, DueResult]) -> Counts:
        """What needs PostgreSQL comes last: if that fails, only that comes again."""
        counts = Counts()
        finished: list[Delivery] = []
        again: list[Held] = []
        aside: list[tuple[Delivery, str]] = []
        ended: set[UUID] = set()
        for held in due:
            stream_id = held.message.stream_id
            match answers[stream_id]:
                case Completed(ended_now):
                    finished.append(held.delivery)
                    counts["ended" if ended_now and stream_id not in ended else "found_ended"] += 1
                    ended.add(stream_id)
                case NotDue(due_at) if due_at != held.message.due_at:
                    finished.append(held.delivery)
                    counts["found_moved"] += 1
                case NotDue():
                    again.append(held)
                    counts["not_due"] += 1
                case Retry():
                    again.append(replace(held, due_at=self._clock.now() + self._left_alone(held.message)))
                case Failed(error):
                    aside.append((held.delivery, str(error)))
                    counts["rejected"] += 1
        self._hold_again(again)
        self._finish(finished)
        for delivery, reason in aside:
            self._set_aside(delivery, reason)
        return counts

    def _left_alone(self, message: ExpiryDue) -> timedelta:
        return min(max(SOONEST_AGAIN, self._clock.now() - message.due_at), LATEST_AGAIN)

    def _hold_again(self, due: Sequence[Held]) -> None:
        with self._changed:
            for held in due:
                heapq.heappush(self._held, held)

    # ── acknowledge ──────────────────────────────────────────────────────────────────────────────

    def acknowledge(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Off the critical path, many per call. What cannot be acknowledged comes again, and is found ended.

        Waits up to `wait` seconds for something to acknowledge and for nothing to be due; with none, does it at once.
        """
        batch = self._take_finished(wait)
        if not batch:
            return Counts()
        try:
            self._broker.acknowledge(batch)
        except BrokerUnavailable as error:
            log.warning("not acknowledged", action="acknowledge", messages=len(batch), why=str(error))
            return Counts(unacknowledged=len(batch))
        return Counts(acknowledged=len(batch))

    def _take_finished(self, wait: float) -> list[Delivery]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._finished and not (wait and self._is_acting()), wait):
                return []
            batch = self._finished[:ACKNOWLEDGE]
            del self._finished[:ACKNOWLEDGE]
            return batch

    def _finish(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._finished += deliveries
            self._changed.notify_all()


def is_again(held: Held) -> bool:
    """Whether its stream could not be looked at before. Such are looked at by themselves, to make no other late."""
    return held.due_at != held.message.due_at
