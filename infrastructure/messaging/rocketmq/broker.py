"""RocketMQ 5: a topic of type DELAY, received in batches.

It may be away at any time: nothing here waits for it at the start, every call is bounded in time, and connections that
were lost are replaced. The traps of its client are described where they are avoided.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil, floor
from threading import Event, Lock
from typing import Self

from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Delivery, PartlyStored
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.broker_selector import BrokerSelector
from coupon_clock.infrastructure.messaging.rocketmq.connection import MOST_PER_RECEIVE, Connection
from coupon_clock.infrastructure.messaging.rocketmq.errors import DelayAboveCap, DelayRefused
from coupon_clock.infrastructure.messaging.rocketmq.library import require_library
from coupon_clock.infrastructure.messaging.rocketmq.requests import Outgoing
from coupon_clock.infrastructure.messaging.rocketmq.supervisor import Supervisor
from coupon_clock.infrastructure.settings import Settings

log = Log(__name__)

LEAST_RECEIVERS = 4
"""A receive waits at one broker, so there must be as many as brokers, or one is left unasked. How many brokers there
are is known only once they are reached; a receiver too many costs nothing."""
SHORTEST_INVISIBLE = timedelta(seconds=10)
SHORTEST_WAIT = timedelta(seconds=5)
"""The proxy raises shorter ones to these."""
SHORTEST_WINDOW = timedelta(minutes=1)
"""A cap on delays is never taken to be shorter than this."""


class RocketMQBroker:
    """Keeps what was published. Made without any call: a broker that is away shows at the first one."""

    name = "rocketmq"
    forgets = False

    def __init__(self, access: Access, arming_window: timedelta) -> None:
        self.arming_window = arming_window
        self.receivers = LEAST_RECEIVERS
        self._selector = BrokerSelector()
        self._window = Lock()
        self._closed = Event()
        self._stopped_receiving = Event()
        self._sending = Supervisor("sending", partial(Connection.for_sending, access))
        self._receiving = Supervisor("receiving", partial(Connection.for_receiving, access))

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Raises BrokerMisconfigured if the settings or the installation cannot work."""
        access = Access.of(settings)
        require_library()
        return cls(access, settings.arming_window_time)

    def publish(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        """One that was not stored may be nevertheless, if only the answer was lost: repeats are harmless."""
        if not messages:
            return
        with self._sending.connection() as connection:
            failures = connection.send([_outgoing(message, lead) for message in messages])
            failure = next((each for each in failures if each and not isinstance(each, DelayRefused)), None)
            if failure and all(failures):
                raise failure
        failed = [message for message, each in zip(messages, failures, strict=True) if each]
        if failure:
            raise PartlyStored(failed, str(failure))
        if failed:
            self._shrink_window(failed)

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        """At most 32, invisible for at least 10 s, after a wait of at least 5 s: the proxy's own bounds."""
        invisible_s = ceil(max(invisible, SHORTEST_INVISIBLE).total_seconds())
        wait_s = ceil(max(wait, SHORTEST_WAIT).total_seconds())
        if self._stopped_receiving.is_set():
            return []
        try:
            with self._receiving.connection() as connection:
                return self._receive(connection, min(limit, MOST_PER_RECEIVE), invisible_s, wait_s)
        except BrokerUnavailable:
            if self._closed.is_set() or self._stopped_receiving.is_set():
                return []
            raise

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries and (failures := self._receiving.current().acknowledge(deliveries)):
            raise failures[0]

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """They come again within some seconds."""
        if deliveries and (failures := self._receiving.current().give_back(deliveries)):
            raise failures[0]

    def stop_receiving(self) -> None:
        self._stopped_receiving.set()
        if connection := self._receiving.built():
            connection.stop_receiving()

    def close(self) -> None:
        """What was received and not acknowledged is visible again after its invisible time."""
        self._closed.set()
        self._receiving.close()
        self._sending.close()

    def _receive(self, connection: Connection, limit: int, invisible: int, wait: int) -> list[Delivery]:
        """From one of the brokers. If that one fails and another works, the connection is not to blame, and is kept for
        the others; except where nothing works at that address: what restarted there has forgotten this client."""
        routes = connection.routes()
        self.receivers = max(LEAST_RECEIVERS, len(routes))
        try:
            with self._selector.choose(routes) as route:
                return connection.receive(route, limit, invisible, wait)
        except BrokerUnavailable as reason:
            working = self._selector.working(routes)
            if not working or self._closed.is_set():
                raise
            self._selector.report_failure(route, reason)
            if route.address not in {other.address for other in working}:
                self._receiving.renew(connection)
            return []

    def _shrink_window(self, refused: Sequence[ExpiryDue]) -> None:
        """The broker does not say what its cap on delays is: what it refuses is above. Raises DelayAboveCap."""
        ahead = min(message.due_at for message in refused) - datetime.now(UTC)
        with self._window:
            self.arming_window = min(self.arming_window, max(ahead / 2, SHORTEST_WINDOW))
        error = DelayAboveCap(_whole_seconds(ahead), _whole_seconds(self.arming_window))
        log.warning("arming window shrunk", action="shrink_arming_window", why=error)
        raise error


def _outgoing(message: ExpiryDue, lead: timedelta) -> Outgoing:
    """Whole seconds, rounded down: sooner rather than later."""
    return Outgoing(str(message.stream_id), to_wire(message), max(1, floor((message.due_at - lead).timestamp())))


def _whole_seconds(time: timedelta) -> timedelta:
    return timedelta(seconds=round(time.total_seconds()))
