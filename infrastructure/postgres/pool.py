"""Connections to PostgreSQL: one pool a process, every connection set up alike, and its errors in our words."""

from contextlib import AbstractContextManager
from select import POLLIN, poll
from typing import Protocol

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from coupon_clock.infrastructure.event_store.migrations import UnsafeLog, refuse_unsafe
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.settings import Settings

STATEMENT_TIMEOUT = "10s"
LOCK_TIMEOUT = "2s"
CONNECT_TIMEOUT_S = 5


class Connections(Protocol):
    """Where a connection comes from: a pool, or a caller who lends one."""

    def connection(self) -> AbstractContextManager[Connection[TupleRow]]: ...


class Pool(ConnectionPool[Connection[TupleRow]]):
    """Autocommitting connections. Each new one is refused while what it leads to is unsafe: `connection()` then raises
    UnsafeLog, because after a failover the same URL can lead to a standby, or to a log that came back shorter."""

    def __init__(self, settings: Settings) -> None:
        self._schema = settings.database_schema
        self._refusal: UnsafeLog | None = None
        super().__init__(
            settings.database(),
            connection_class=Connection[TupleRow],
            kwargs={"autocommit": True, "connect_timeout": CONNECT_TIMEOUT_S},
            configure=self._admit,
            min_size=2,
            max_size=settings.database_connections,
            timeout=CONNECT_TIMEOUT_S,
            # The pool doubles its pause after each failure, for as long as this: a server that is back is found soon.
            reconnect_timeout=CONNECT_TIMEOUT_S,
            open=True,
        )

    def getconn(self, timeout: float | None = None) -> Connection[TupleRow]:
        """One whose server has not hung up. After a restart of the server it has on all, so all are replaced."""
        while True:
            connection = self._got(timeout)
            if not has_hung_up(connection):
                return connection
            connection.close()
            self.putconn(connection)
            self.drain()

    def _got(self, timeout: float | None) -> Connection[TupleRow]:
        try:
            return super().getconn(timeout)
        except PoolTimeout:
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def _admit(self, connection: Connection[TupleRow]) -> None:
        set_up(connection, self._schema)
        self._refusal = None
        try:
            refuse_unsafe(connection)
        except UnsafeLog as refusal:
            self._refusal = refusal
            raise


def connect(settings: Settings) -> Connection[TupleRow]:
    """One autocommitting connection, set up like the pool's. Raises DatabaseUnavailable."""
    with translate_errors():
        connection = psycopg.connect(settings.database(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        set_up(connection, settings.database_schema)
        return connection


def open_pool(settings: Settings) -> Pool:
    """Raises DatabaseUnavailable where the first connection cannot be made, and UnsafeLog."""
    with connect(settings) as connection:
        refuse_unsafe(connection)
    return Pool(settings)


def set_up(connection: Connection[TupleRow], schema: str) -> None:
    """Each statement is planned once a connection: planning an append costs more than doing it. As the tables may be
    small at that time, no such plan may scan them: it would be kept until long after they have grown."""
    connection.execute(
        """
        SELECT set_config('search_path', quote_ident(%s), false),
               set_config('TimeZone', 'UTC', false),
               set_config('statement_timeout', %s, false),
               set_config('lock_timeout', %s, false),
               set_config('plan_cache_mode', 'force_generic_plan', false),
               set_config('enable_seqscan', 'off', false)
        """,
        (schema, STATEMENT_TIMEOUT, LOCK_TIMEOUT),
    )


def has_hung_up(connection: Connection[TupleRow]) -> bool:
    """Whether the server closed this idle connection. It has nothing to say on one, so anything to read is the end of
    it; a look at the socket costs no round trip."""
    if connection.closed:
        return True
    socket = poll()
    socket.register(connection.fileno(), POLLIN)
    return bool(socket.poll(0))
