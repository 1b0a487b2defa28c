"""Which broker to receive from next, so that each is asked and one that is down delays no other."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from coupon_clock.infrastructure.backoff import Backoff
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
from coupon_clock.infrastructure.messaging.rocketmq.requests import BrokerRoute

log = Log(__name__)


class _Usage:
    def __init__(self) -> None:
        self.backoff = Backoff(at_once=1)
        self.receivers = 0
        self.asked_at = 0.0
        self.is_reported = False


class BrokerSelector:
    """Remembers of each broker how many receivers wait there and how often it failed. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._usages: dict[str, _Usage] = defaultdict(_Usage)

    @contextmanager
    def choose(self, routes: Sequence[BrokerRoute]) -> Iterator[BrokerRoute]:
        """Yields the route for this block: preferably one not backing off, with few receivers, not asked for long."""

        def preference(route: BrokerRoute) -> tuple[float, int, float]:
            usage = self._usages[route.broker]
            return usage.backoff.remaining(), usage.receivers, usage.asked_at

        with self._lock:
            route = min(routes, key=preference)
            usage = self._usages[route.broker]
            usage.receivers += 1
            usage.asked_at = monotonic()
        try:
            yield route
        except BrokerUnavailable:
            with self._lock:
                usage.receivers -= 1
                usage.backoff.failed()
            raise
        with self._lock:
            usage.receivers -= 1
            usage.backoff.succeeded()
            if usage.is_reported:
                log.info("one RocketMQ broker answers again", action="one_back", broker=route.broker)
            usage.is_reported = False

    def working(self, routes: Sequence[BrokerRoute]) -> list[BrokerRoute]:
        """Those that did not fail when they were asked last."""
        with self._lock:
            return [route for route in routes if not self._usages[route.broker].backoff.failures]

    def report_failure(self, route: BrokerRoute, reason: BrokerUnavailable) -> None:
        """Logs it once, until the broker works again."""
        with self._lock:
            usage = self._usages[route.broker]
            if not usage.is_reported:
                log.warning("one RocketMQ broker fails", action="one_lost", broker=route.broker, reason=reason)
            usage.is_reported = True
