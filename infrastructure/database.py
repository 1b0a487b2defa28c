"""Connections to PostgreSQL: one pool a process, every connection set up alike, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from coupon_clock.domain.errors import CouponError
from coupon_clock.infrastructure.settings import Settings

STATEMENT_TIMEOUT = "10s"
LOCK_TIMEOUT = "2s"
CONNECT_TIMEOUT_S = 5
OLDEST_POSTGRESQL = 150_000

Pool = ConnectionPool[Connection[TupleRow]]


class DatabaseUnavailable(CouponError):
    """PostgreSQL cannot be used, and nothing was changed: {reason}. Check COUPON_CLOCK_DATABASE_URL and the server."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def connect(settings: Settings) -> Connection[TupleRow]:
    """One autocommitting connection, set up like the pool's. Raises DatabaseUnavailable."""
    with available():
        connection = psycopg.connect(settings.database(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        _set_up(connection, settings.database_schema)
        return connection


def open_pool(settings: Settings) -> Pool:
    """Raises DatabaseUnavailable where the first connection cannot be made."""
    connect(settings).close()
    return ConnectionPool(
        settings.database(),
        connection_class=Connection[TupleRow],
        kwargs={"autocommit": True, "connect_timeout": CONNECT_TIMEOUT_S},
        configure=lambda connection: _set_up(connection, settings.database_schema),
        check=_replace_if_closed,
        min_size=2,
        max_size=settings.database_connections,
        timeout=CONNECT_TIMEOUT_S,
        open=True,
    )


@contextmanager
def available() -> Iterator[None]:
    """Turns what psycopg says when PostgreSQL is away into DatabaseUnavailable: for reads, which may be repeated."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.ProgrammingError, PoolClosed) as error:
        if not _is_absence(error):
            raise
        raise DatabaseUnavailable(first_line(error)) from error


def _is_absence(error: Exception) -> bool:
    """No answer from a server, or one that says it is not to be used now; an unusable URL has no SQLSTATE either."""
    state = getattr(error, "sqlstate", None)
    return state is None or state[:2] in ("08", "28", "3D", "53", "57")


def _set_up(connection: Connection[TupleRow], schema: str) -> None:
    connection.execute(
        """
        SELECT set_config('search_path', %s, false),
               set_config('TimeZone', 'UTC', false),
               set_config('statement_timeout', %s, false),
               set_config('lock_timeout', %s, false)
        """,
        (schema, STATEMENT_TIMEOUT, LOCK_TIMEOUT),
    )


def _replace_if_closed(connection: Connection[TupleRow]) -> None:
    """The pool replaces a connection that raises here. A look at the socket costs no round trip."""
    connection.fileno()
    if connection.closed or connection.pgconn.status != psycopg.pq.ConnStatus.OK:
        raise psycopg.OperationalError("the connection was lost")


def first_line(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "no connection became free in time"
    return str(error).strip().partition("\n")[0] or type(error).__name__
