"""Receives messages ahead of time, holds them until the instant, and looks at what is due, all at once.

Three loops on one heap of held messages: receive, act, acknowledge. A message is acknowledged after what it led to
is stored; one that is lost, repeated or late changes nothing, because the log decides.
"""

import heapq
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count
from threading import Condition, Event
from typing import NamedTuple
from uuid import UUID

import structlog

from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.alarms import Alarm, Alarms
from coupon_clock.infrastructure.broker import Broker, BrokerUnavailable, Delivery
from coupon_clock.infrastructure.deadline import Answer, Done, LookAt, NotDue, TryAgain, Unanswerable
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messages import ExpiryDue, UnreadableMessage, from_wire
from coupon_clock.infrastructure.rejected import RejectedMessages
from coupon_clock.infrastructure.server_clock import ServerClock

BATCH = 1_000
RECEIVE = 500
ACKNOWLEDGE = 256
LONG_POLL = timedelta(seconds=5)
ROOM_WAIT_S = 0.1
LONGEST_WITHOUT_TIME_S = 5.0
NO_WAIT = timedelta(0)

log = structlog.get_logger()


class Held(NamedTuple):
    """One message waiting for its instant; `number` keeps the heap from comparing deliveries."""

    due_at: datetime
    number: int
    message: ExpiryDue
    delivery: Delivery


class ExpiryConsumer:
    def __init__(
        self,
        broker: Broker,
        alarms: Alarms,
        rejected: RejectedMessages,
        look_at: LookAt,
        clock: ServerClock,
        lead: timedelta,
        max_held: int,
    ) -> None:
        self._broker = broker
        self._alarms = alarms
        self._rejected = rejected
        self._look_at = look_at
        self._clock = clock
        self._max_held = max_held
        self._longest_hold = max(timedelta(seconds=60), 2 * lead)
        self._invisible = self._longest_hold + timedelta(seconds=10)
        self._held: list[Held] = []
        self._numbers = count()
        self._changed = Condition()
        self._finished: list[Delivery] = []
        self._any_finished = Event()
        self._database_is_away = Event()

    def run_once(self) -> Counts:
        """All three steps once, without waiting: for tests and for a single thread."""
        return self.receive(NO_WAIT) + self.act(0.0) + self.acknowledge(0.0)

    # ── receive ──────────────────────────────────────────────────────────────────────────────────

    def receive(self, wait: timedelta = LONG_POLL) -> Counts:
        """Holds what comes. Receives nothing while there is no room, or PostgreSQL is away."""
        if not self._has_room():
            return Counts()
        deliveries = self._broker.receive(RECEIVE, self._invisible, wait)
        counts = Counts(received=len(deliveries)) if deliveries else Counts()
        for delivery in deliveries:
            self._accept(delivery)
        return counts

    def _has_room(self) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._held) < self._max_held and not self._database_is_away.is_set(), ROOM_WAIT_S
            )

    def _accept(self, delivery: Delivery) -> None:
        try:
            message = from_wire(delivery.body)
        except UnreadableMessage as unreadable:
            self._set_aside(delivery, unreadable.reason)
            return
        if message.due_at - self._clock.now() > self._longest_hold:
            self._alarms.release([Alarm(message.stream_id, message.due_at)])
            self._finish(delivery)
        else:
            self._hold(message, delivery)

    def _hold(self, message: ExpiryDue, delivery: Delivery) -> None:
        with self._changed:
            heapq.heappush(self._held, Held(message.due_at, next(self._numbers), message, delivery))
            telemetry.HELD.set(len(self._held))
            if self._held[0].delivery is delivery:
                self._changed.notify_all()

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        self._rejected.add(delivery, reason)
        log.warning("message set aside", action="reject", message_id=delivery.message_id, why=reason)
        self._finish(delivery)

    # ── act ──────────────────────────────────────────────────────────────────────────────────────

    def act(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Waits up to `wait` seconds for the next instant, and looks at all that are due."""
        due = self._take_due(wait)
        if not due:
            self._keep_time()
            return Counts()
        answers = self._answers(due)
        counts = Counts()
        for held in due:
            counts += self._settle(held, answers[held.message.stream_id])
        self._pause_while_away([answer for answer in answers.values() if isinstance(answer, TryAgain)])
        return counts

    def _take_due(self, wait: float) -> list[Held]:
        with self._changed:
            if not self._held or self._held[0].due_at > self._clock.now():
                self._changed.wait(self._until_next(wait))
            due: list[Held] = []
            now = self._clock.now()
            while self._held and self._held[0].due_at <= now and len(due) < BATCH:
                due.append(heapq.heappop(self._held))
            telemetry.HELD.set(len(self._held))
            return due

    def _until_next(self, wait: float) -> float:
        if not self._held:
            return wait
        return max(0.0, min(wait, (self._held[0].due_at - self._clock.now()).total_seconds()))

    def _answers(self, due: Sequence[Held]) -> dict[UUID, Answer]:
        stream_ids = list({held.message.stream_id: None for held in due})
        try:
            return dict(zip(stream_ids, self._look_at(stream_ids, "message"), strict=True))
        except Exception:
            self._database_is_away.set()
            self._hold_again(due)
            raise

    def _keep_time(self) -> None:
        """Every look teaches the clock; while nothing is due, an empty one does."""
        if self._clock.age() > LONGEST_WITHOUT_TIME_S:
            self._look_at([], "message")

    def _settle(self, held: Held, answer: Answer) -> Counts:
        match answer:
            case Done(ended_now):
                self._finish(held.delivery)
                return Counts(ended=1) if ended_now else Counts(found_ended=1)
            case NotDue(due_at) if due_at == held.message.due_at:
                self._hold_again([held])
            case NotDue():
                self._finish(held.delivery)
                return Counts(found_moved=1)
            case Unanswerable(error):
                self._set_aside(held.delivery, str(error))
                return Counts(rejected=1)
            case TryAgain():
                self._hold_again([held])
        return Counts()

    def _hold_again(self, due: Sequence[Held]) -> None:
        with self._changed:
            for held in due:
                heapq.heappush(self._held, held)

    def _pause_while_away(self, failures: Sequence[TryAgain]) -> None:
        """Raises the first failure, so that the loop backs off; receiving pauses until a look succeeds."""
        if failures:
            self._database_is_away.set()
            raise failures[0].error
        self._database_is_away.clear()

    # ── acknowledge ──────────────────────────────────────────────────────────────────────────────

    def acknowledge(self, wait: float = ROOM_WAIT_S) -> Counts:
        """Off the critical path, many per call. What cannot be acknowledged comes again, and is found ended."""
        self._any_finished.wait(wait)
        with self._changed:
            batch, self._finished = self._finished[:ACKNOWLEDGE], self._finished[ACKNOWLEDGE:]
            if not self._finished:
                self._any_finished.clear()
        if not batch:
            return Counts()
        try:
            self._broker.acknowledge(batch)
        except BrokerUnavailable as error:
            log.warning("not acknowledged", action="acknowledge", messages=len(batch), why=str(error))
            return Counts(unacknowledged=len(batch))
        return Counts(acknowledged=len(batch))

    def _finish(self, delivery: Delivery) -> None:
        with self._changed:
            self._finished.append(delivery)
            self._any_finished.set()
