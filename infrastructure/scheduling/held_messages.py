"""Messages that wait for their instant, soonest first. A pure structure: no clock, no lock, no broker."""

import heapq
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from uuid import UUID

from msgspec import Struct

from coupon_clock.infrastructure.messaging.broker import Delivery


class HeldMessage(Struct, frozen=True, order=True, gc=False):
    """To be acted on at `act_at`: `due_at`, or later where that failed before. `number` keeps the heap from comparing
    deliveries. No cycle can go through it, so the garbage collector need not visit the many there are."""

    act_at: datetime
    number: int
    stream_id: UUID
    due_at: datetime
    delivery: Delivery

    @property
    def failed_before(self) -> bool:
        return self.act_at != self.due_at


class HeldMessages:
    def __init__(self) -> None:
        self._heap: list[HeldMessage] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heap)

    def hold(self, stream_id: UUID, due_at: datetime, delivery: Delivery) -> bool:
        """Returns whether it is the first one now."""
        held = HeldMessage(due_at, next(self._numbers), stream_id, due_at, delivery)
        heapq.heappush(self._heap, held)
        return self._heap[0] is held

    def hold_again(self, messages: Iterable[HeldMessage]) -> None:
        for message in messages:
            heapq.heappush(self._heap, message)

    def take_later(self, than: datetime) -> list[HeldMessage]:
        """Takes out those whose time comes later, soonest first."""
        later = sorted(message for message in self._heap if message.act_at > than)
        self._heap = [message for message in self._heap if message.act_at <= than]
        heapq.heapify(self._heap)
        return later

    def first_at(self) -> datetime | None:
        """When the first one is to be acted on, None where nothing is held."""
        return self._heap[0].act_at if self._heap else None

    def is_due(self, now: datetime) -> bool:
        return bool(self._heap) and self._heap[0].act_at <= now

    def take_due(self, now: datetime, limit: int) -> list[HeldMessage]:
        """Takes out up to `limit` whose time has come. Those that failed before come by themselves: they make no other
        late."""
        due: list[HeldMessage] = []
        while self.is_due(now) and len(due) < limit:
            if due and due[0].failed_before != self._heap[0].failed_before:
                break
            due.append(heapq.heappop(self._heap))
        return due
