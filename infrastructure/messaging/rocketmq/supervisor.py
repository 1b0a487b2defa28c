"""Keeps one connection to RocketMQ usable: built when first needed, replaced after a failure.

A client outlives no restart of its broker: the broker has then forgotten the client's settings, refuses its receives,
and accepts them again only minutes later.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from time import monotonic

from coupon_clock.infrastructure.backoff import Backoff
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection

log = Log(__name__)

_CLOSING = 5.0
"""Seconds that close waits for connections to end."""


class Supervisor:
    """Safe for several threads. Lost connections are closed in threads of their own, each for a bounded time."""

    def __init__(self, purpose: str, build: Callable[[], Connection]) -> None:
        self._purpose = purpose
        self._build = build
        self._lock = Lock()
        self._closed = Event()
        self._backoff = Backoff(at_once=1)
        self._current: Connection | None = None
        self._closing: list[Thread] = []
        self._reported: type[BrokerUnavailable] | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yields the current one, or a new one once that is due. After a BrokerUnavailable in the block, or in making
        it, the next caller gets another."""
        connection = self.current()
        try:
            yield connection
        except BrokerUnavailable as reason:
            with self._lock:
                if connection is self._current:
                    self._current = None
                    self._lose(connection, reason)
            raise
        with self._lock:
            if self._reported:
                log.info("RocketMQ can be used again", action="broker_back", purpose=self._purpose)
            self._reported = None
            self._backoff.succeeded()

    def current(self) -> Connection:
        """The same, for calls whose failure says nothing about the whole connection."""
        with self._lock:
            if self._current is None:
                self._closed.wait(self._backoff.remaining())
                if self._closed.is_set():
                    raise Unreachable("it is closed")
                connection = self._build()
                try:
                    connection.start()
                except BrokerUnavailable as reason:
                    self._lose(connection, reason)
                    raise
                self._current = connection
            return self._current

    def built(self) -> Connection | None:
        """The current one, if there is one. Never waits."""
        return self._current

    def renew(self, connection: Connection) -> None:
        """The next caller gets another, at once: others work over this one, which still serves their calls."""
        with self._lock:
            if connection is self._current:
                self._current = None
                self._close_in_background(connection)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._current is not None:
                self._close_in_background(self._current)
            self._current = None
        until = monotonic() + _CLOSING
        for thread in self._closing:
            thread.join(max(0.0, until - monotonic()))

    def _lose(self, connection: Connection, reason: BrokerUnavailable) -> None:
        if type(reason) is not self._reported and not self._closed.is_set():
            log.warning("RocketMQ cannot be used", action="broker_lost", purpose=self._purpose, reason=reason)
        self._reported = type(reason)
        self._backoff.failed()
        self._close_in_background(connection)

    def _close_in_background(self, connection: Connection) -> None:
        """Once the calls under way have ended: they have their deadlines, and may still succeed."""

        def close() -> None:
            while connection.busy and not self._closed.wait(0.1):
                pass
            try:
                connection.close()
            except Exception as error:
                log.info("a RocketMQ client closed badly", action="broker_closing", reason=error)

        thread = Thread(target=close, name="rocketmq-closing", daemon=True)
        thread.start()
        self._closing = [*filter(Thread.is_alive, self._closing), thread]
