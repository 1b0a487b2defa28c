"""Which broker to receive from next, so that each is asked and one that is down delays no other."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from coupon_clock.infrastructure.broker import BrokerUnavailable
from coupon_clock.infrastructure.rocketmq_client.backoff import Backoff
from coupon_clock.infrastructure.rocketmq_client.requests import Lane


class _Usage:
    def __init__(self) -> None:
        self.backoff = Backoff()
        self.receivers = 0
        self.asked_at = 0.0


class Lanes:
    """Remembers of each broker how many receivers wait there and how often it failed. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._usages: dict[str, _Usage] = defaultdict(_Usage)

    @contextmanager
    def choose(self, lanes: Sequence[Lane]) -> Iterator[Lane]:
        """The one for this block: rather one that needs no rest, with few receivers, not asked for long."""
        with self._lock:
            lane = min(lanes, key=self._rank)
            usage = self._usages[lane.broker]
            usage.receivers += 1
            usage.asked_at = monotonic()
        try:
            yield lane
        except BrokerUnavailable:
            self._leave(usage, usage.backoff.failed)
            raise
        self._leave(usage, usage.backoff.succeeded)

    def any_works(self, lanes: Sequence[Lane]) -> bool:
        with self._lock:
            return any(not self._usages[lane.broker].backoff.failures for lane in lanes)

    def _leave(self, usage: _Usage, note: Callable[[], None]) -> None:
        with self._lock:
            usage.receivers -= 1
            note()

    def _rank(self, lane: Lane) -> tuple[float, int, float]:
        usage = self._usages[lane.broker]
        return usage.backoff.remaining(), usage.receivers, usage.asked_at
