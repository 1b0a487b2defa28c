"""The in-process broker: the default where no RocketMQ is configured."""

import heapq
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from threading import Condition
from time import monotonic
from typing import NamedTuple

from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire


class MemoryBroker:
    """Delivers within this process and forgets on exit.

    It delivers at once: messages come no earlier than 30 s before they are due, and the consumer holds them anyway.
    Several processes may each have their own: their relays share the work under leases, and what one that died had
    published is published by another when its leases end.
    """

    name = "memory"
    arming_window = timedelta(seconds=30)
    forgets = True
    receivers = 1

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: list[_Queued] = []
        self._numbers = count()
        self._acknowledged: set[int] = set()
        self._closed = False

    def publish(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        with self._changed:
            for message in messages:
                heapq.heappush(self._queue, _Queued(monotonic(), next(self._numbers), to_wire(message)))
            self._changed.notify()

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        deadline = monotonic() + wait.total_seconds()
        with self._changed:
            while not self._closed:
                taken = self._take(limit, monotonic() + invisible.total_seconds())
                next_at = min(deadline, self._queue[0].visible_at) if self._queue else deadline
                if taken or (remaining := next_at - monotonic()) <= 0:
                    return taken
                self._changed.wait(remaining)
            return []

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._acknowledged.update(d.receipt for d in deliveries if isinstance(d.receipt, int))

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        numbers = {delivery.receipt for delivery in deliveries}
        with self._changed:
            now = monotonic()
            self._queue = [q._replace(visible_at=now) if q.number in numbers else q for q in self._queue]
            heapq.heapify(self._queue)
            self._changed.notify()

    def stop_receiving(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.stop_receiving()

    def _take(self, limit: int, visible_again_at: float) -> list[Delivery]:
        taken: list[_Queued] = []
        while len(taken) < limit and self._queue and self._queue[0].visible_at <= monotonic():
            queued = heapq.heappop(self._queue)
            if queued.number in self._acknowledged:
                self._acknowledged.discard(queued.number)
            else:
                taken.append(queued)
        for queued in taken:
            heapq.heappush(self._queue, queued._replace(visible_at=visible_again_at))
        return [Delivery(f"memory-{queued.number}", queued.body, queued.number) for queued in taken]


class _Queued(NamedTuple):
    visible_at: float
    number: int
    body: bytes
