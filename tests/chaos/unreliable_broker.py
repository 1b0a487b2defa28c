"""A broker before the real one that loses, repeats, delays and invents messages while the schedule says so."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Timer
from uuid import uuid4

from chaos.schedule import Fault
from chaos.time_of_run import TimeOfRun
from coupon_clock.infrastructure.messaging.broker import Broker, BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire

AFFECTED = 0.5
"""Of the messages, while it lasts."""
LONGEST_DELAY_S = 4.0
FOREIGN = (b"\x00\xff", b"{}", b'{"type":"ExpiryDue","v":99}', b"[" * 50_000, b'{"type":"Order","id":1}')
MOST_KNOWN = 1_000


class UnreliableBroker:
    """As `Broker`, which see."""

    def __init__(self, broker: Broker, faults: Sequence[Fault], time_of_run: TimeOfRun, random: Random) -> None:
        self._broker = broker
        self._faults = faults
        self._time_of_run = time_of_run
        self._random = random
        self._known: list[ExpiryDue] = []
        self.name, self.forgets, self.receivers = broker.name, broker.forgets, broker.receivers

    @property
    def arming_window(self) -> timedelta:
        return self._broker.arming_window

    def publish(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        self._known = [*messages, *self._known][:MOST_KNOWN]
        affected = [each for each in messages if self._random.random() < AFFECTED]
        rest = [each for each in messages if each not in affected]
        match self._current({"lose messages", "repeat messages", "delay messages"}):
            case "lose messages":
                messages = rest
            case "repeat messages":
                messages = self._random.sample([*messages, *affected], len(messages) + len(affected))
            case "delay messages":
                Timer(self._random.uniform(0, LONGEST_DELAY_S), self._publish_late, (affected, lead)).start()
                messages = rest
        if messages:
            self._broker.publish(messages, lead)

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        deliveries = self._broker.receive(limit, invisible, wait)
        match self._current({"foreign messages", "early messages"}):
            case "foreign messages":
                deliveries.append(invented(self._random.choice(FOREIGN)))
            case "early messages" if self._known:
                early = ExpiryDue(self._random.choice(self._known).stream_id, datetime.now(UTC))
                deliveries.append(invented(to_wire(early)))
        return deliveries

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if real := not_invented(deliveries):
            self._broker.acknowledge(real)

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        if real := not_invented(deliveries):
            self._broker.give_back(real)

    def stop_receiving(self) -> None:
        self._broker.stop_receiving()

    def close(self) -> None:
        self._broker.close()

    def _current(self, kinds: set[str]) -> str | None:
        now = self._time_of_run.now()
        return next(
            (each.kind for each in self._faults if each.kind in kinds and each.at <= now <= each.at + each.lasts), None
        )

    def _publish_late(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        with suppress(BrokerUnavailable):
            self._broker.publish(messages, lead)


def not_invented(deliveries: Sequence[Delivery]) -> list[Delivery]:
    return [each for each in deliveries if each.receipt is not None]


def invented(body: bytes) -> Delivery:
    return Delivery(f"invented-{uuid4()}", body, None)
