"""Keeps one connection to RocketMQ usable: built when first needed, built anew after a failure.

A client outlives no restart of its broker: the broker has then forgotten the client's settings, refuses its receives,
and hears them again only minutes later.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from time import monotonic

import structlog

from coupon_clock.infrastructure.backoff import Backoff
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection

log = structlog.get_logger()

_CLOSING = 5.0
"""Seconds that close waits for the good-byes."""


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
        """The current one, or a new one once that is due. After a BrokerUnavailable in the block, or in making it,
        the next caller gets another."""
        connection = self._obtained()
        try:
            yield connection
        except BrokerUnavailable as reason:
            self._failed(connection, reason)
            raise
        self._succeeded()

    def current(self) -> Connection:
        """For calls that say nothing about the whole connection when they fail."""
        return self._obtained()

    def renew(self, connection: Connection) -> None:
        """The next caller gets another, without a rest: others work over this one, which still serves their calls."""
        with self._lock:
            if connection is self._current:
                self._current = None
                self._close_aside(connection)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._current is not None:
                self._close_aside(self._current)
            self._current = None
        until = monotonic() + _CLOSING
        for thread in self._closing:
            thread.join(max(0.0, until - monotonic()))

    def _obtained(self) -> Connection:
        with self._lock:
            if self._current is None:
                self._closed.wait(self._backoff.remaining())
                self._current = self._new()
            return self._current

    def _new(self) -> Connection:
        if self._closed.is_set():
            raise Unreachable("it is closed")
        connection = self._build()
        try:
            connection.start()
        except BrokerUnavailable as reason:
            self._lose(connection, reason)
            raise
        return connection

    def _failed(self, connection: Connection, reason: BrokerUnavailable) -> None:
        with self._lock:
            if connection is self._current:
                self._current = None
                self._lose(connection, reason)

    def _lose(self, connection: Connection, reason: BrokerUnavailable) -> None:
        if type(reason) is not self._reported and not self._closed.is_set():
            log.warning("RocketMQ cannot be used", action="broker_lost", purpose=self._purpose, reason=str(reason))
        self._reported = type(reason)
        self._backoff.failed()
        self._close_aside(connection)

    def _succeeded(self) -> None:
        with self._lock:
            if self._reported:
                log.info("RocketMQ can be used again", action="broker_back", purpose=self._purpose)
            self._reported = None
            self._backoff.succeeded()

    def _close_aside(self, connection: Connection) -> None:
        thread = Thread(target=self._finish, args=(connection,), name="rocketmq-closing", daemon=True)
        thread.start()
        self._closing = [*filter(Thread.is_alive, self._closing), thread]

    def _finish(self, connection: Connection) -> None:
        """Other threads' calls over it may still succeed: they have their deadlines."""
        while connection.busy and not self._closed.wait(0.1):
            pass
        try:
            connection.close()
        except Exception as error:
            log.info("a RocketMQ client closed badly", action="broker_closing", reason=str(error))
