"""Connections to PostgreSQL: one pool a process, every connection set up alike, and its errors in our words."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Protocol

import psycopg
from psycopg import Connection
from psycopg.errors import LockNotAvailable, QueryCanceled
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from coupon_clock.domain.errors import CouponError
from coupon_clock.infrastructure.event_store.migrations import UnsafeLog, refuse_unsafe
from coupon_clock.infrastructure.settings import Settings

STATEMENT_TIMEOUT = "10s"
LOCK_TIMEOUT = "2s"
CONNECT_TIMEOUT_S = 5
MAY_BE_ABSENCE = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, psycopg.ProgrammingError)
TIME_IS_UP = (QueryCanceled, LockNotAvailable)


@dataclass(eq=False)
class DatabaseUnavailable(CouponError):
    """PostgreSQL cannot be used, and nothing was changed: {reason}. Check COUPON_CLOCK_DATABASE_URL and the server."""

    reason: str


class TimedOut(DatabaseUnavailable):
    """PostgreSQL took too long, and nothing was changed: {reason}."""


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
    with available():
        connection = psycopg.connect(settings.database(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        set_up(connection, settings.database_schema)
        return connection


def open_pool(settings: Settings) -> Pool:
    """Raises DatabaseUnavailable where the first connection cannot be made, and UnsafeLog."""
    with connect(settings) as connection:
        refuse_unsafe(connection)
    return Pool(settings)


@contextmanager
def available() -> Iterator[None]:
    """Turns what psycopg says when PostgreSQL is away into DatabaseUnavailable: for reads, which may be repeated."""
    try:
        yield
    except (*MAY_BE_ABSENCE, PoolClosed) as error:
        if not _is_absence(error):
            raise
        failure = TimedOut if isinstance(error, TIME_IS_UP) else DatabaseUnavailable
        raise failure(first_line(error)) from error


def _is_absence(error: Exception) -> bool:
    """No answer from a server, or one that says it is not to be used now; an unusable URL has no SQLSTATE either."""
    state = getattr(error, "sqlstate", None)
    return state is None or state[:2] in ("08", "25", "28", "3D", "40", "53", "55", "57")


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


def first_line(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "no connection became free in time"
    return str(error).strip().partition("\n")[0] or type(error).__name__
