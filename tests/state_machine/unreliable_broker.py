"""The in-process broker at its worst: messages get lost, come twice, late, in another order, or from somebody else."""

from collections.abc import Sequence
from datetime import timedelta
from random import Random

from coupon_clock.infrastructure.messaging.broker import Delivery, PartlyStored, Unreachable
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue


class UnreliableBroker:
    """A MemoryBroker behind a bad line. `forgets`: whether a crash of the process takes its messages along."""

    name = "unreliable"
    arming_window = MemoryBroker.arming_window
    receivers = 1

    def __init__(self, forgets: bool) -> None:
        self.forgets = forgets
        self.is_down = False
        self.takes_half = False
        self._inner = MemoryBroker()
        self._order: Random | None = None
        self._late: list[Delivery] = []
        self._ever: list[ExpiryDue] = []
        self._unacknowledged: dict[int, ExpiryDue] = {}
        self._taken = 0

    # ── a broker ─────────────────────────────────────────────────────────────────────────────────

    def publish(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        if self.is_down:
            raise Unreachable("it is down")
        taken = messages[: len(messages) // 2] if self.takes_half else messages
        self._ever += taken
        self._put(taken)
        if len(taken) < len(messages):
            raise PartlyStored(messages[len(taken) :], "it takes half")

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        if self.is_down:
            raise Unreachable("it is down")
        deliveries = self._late + self._inner.receive(limit, invisible, wait)
        self._late = []
        if self._order is not None:
            self._order.shuffle(deliveries)
            now = self._order.randint(0, len(deliveries))
            deliveries, self._late = deliveries[:now], deliveries[now:]
        return deliveries

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if self.is_down:
            raise Unreachable("it is down")
        self._inner.acknowledge(deliveries)
        for delivery in deliveries:
            self._unacknowledged.pop(delivery.receipt, None)  # type: ignore[call-overload]

    def close(self) -> None:
        self._inner.close()

    # ── at its worst ─────────────────────────────────────────────────────────────────────────────

    def lose(self) -> None:
        """All that it has."""
        self._inner, self._late, self._taken = MemoryBroker(), [], 0
        self._unacknowledged = {}

    def repeat(self, seed: int) -> None:
        """Some of what was ever sent, also long ago."""
        if self._ever:
            self._put(Random(seed).choices(self._ever, k=3))

    def reorder(self, seed: int | None) -> None:
        """From now on, or no longer; what is held back comes with a later call."""
        self._order = None if seed is None else Random(seed)

    def add_strange(self, message: ExpiryDue) -> None:
        self._put([message])

    def after_crash(self) -> None:
        """What was delivered and not acknowledged comes again, unless it is forgotten."""
        again = [] if self.forgets else list(self._unacknowledged.values())
        self.lose()
        self._put(again)

    def _put(self, messages: Sequence[ExpiryDue]) -> None:
        """MemoryBroker counts what it takes, and a receipt is that number."""
        for message in messages:
            self._unacknowledged[self._taken] = message
            self._taken += 1
        self._inner.publish(messages, timedelta(0))
