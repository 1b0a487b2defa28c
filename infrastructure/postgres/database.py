"""One PostgreSQL database and the schema in it: connections that are set up alike, statements that name the schema."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from select import POLLIN, poll
from types import TracebackType
from typing import Any, Protocol, Self

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from psycopg_pool import ConnectionPool, PoolTimeout

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.settings import Settings

STATEMENT_TIMEOUT = "10s"
LOCK_TIMEOUT = "2s"
CONNECT_TIMEOUT_S = 5


class Schema:
    """The schema that holds all tables, and the statements on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._statements: dict[object, bytes] = {}

    def sql(self, statement: str, **names: str) -> bytes:
        """Returns the statement with `{schema}`, and each other of `names`, as a quoted identifier. Composed once."""
        key = (statement, *names.items()) if names else statement
        composed = self._statements.get(key)
        if composed is None:
            identifiers = {placeholder: Identifier(name) for placeholder, name in names.items()}
            composed = SQL(statement).format(schema=Identifier(self.name), **identifiers).as_bytes(None)
            self._statements[key] = composed
        return composed


Check = Callable[[Connection[TupleRow], Schema], None]
"""Raises a CouponClockError where nothing must be written over this new connection."""


class Connections(Protocol):
    """Where statements run: a Database, or one transaction of a caller."""

    def connection(self) -> AbstractContextManager[Connection[TupleRow]]: ...

    def sql(self, statement: str, **names: str) -> bytes: ...


class Database:
    """A pool of autocommitting connections, and connections of one's own. Safe to use from several threads.

    `check` runs on each new connection of the pool, because the same URL can lead to another server after a failover.
    """

    def __init__(self, settings: Settings, check: Check) -> None:
        self.settings = settings
        self.schema = Schema(settings.database_schema)
        self.sql = self.schema.sql
        self._pool = _Pool(settings, lambda connection: check(connection, self.schema))

    @classmethod
    def open(cls, settings: Settings, check: Check) -> Self:
        """Raises DatabaseUnavailable where the first connection cannot be made, and what `check` raises."""
        with connect(settings) as connection:
            check(connection, Schema(settings.database_schema))
        return cls(settings, check)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the pool; a connection in use is closed when it is given back."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        """One of the pool. Raises DatabaseUnavailable, and what the check raised."""
        with translate_errors(), self._pool.connection() as connection:
            yield connection

    def connect(self) -> Connection[TupleRow]:
        """A new one outside the pool. Raises DatabaseUnavailable."""
        return connect(self.settings)


def connect(settings: Settings) -> Connection[TupleRow]:
    """One autocommitting connection, set up as those of a Database. Raises DatabaseUnavailable."""
    with translate_errors():
        connection = psycopg.connect(settings.database(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        set_up(connection)
        return connection


def fetch_one(connection: Connection[TupleRow], statement: bytes | str, *parameters: object) -> TupleRow:
    """Returns the first row of a statement that always has one."""
    row = connection.execute(statement if isinstance(statement, bytes) else statement.encode(), parameters).fetchone()
    assert row is not None
    return row


def set_up(connection: Connection[Any]) -> None:
    """Each statement is planned once a connection: planning an append costs more than doing it. As the tables may be
    small at that time, no such plan may scan them: it would be kept until long after they have grown."""
    connection.execute(
        """
        SELECT set_config('TimeZone', 'UTC', false),
               set_config('statement_timeout', %s, false),
               set_config('lock_timeout', %s, false),
               set_config('plan_cache_mode', 'force_generic_plan', false),
               set_config('enable_seqscan', 'off', false)
        """,
        (STATEMENT_TIMEOUT, LOCK_TIMEOUT),
    )


class _Pool(ConnectionPool[Connection[TupleRow]]):
    """Raises the check's refusal instead of a timeout while new connections are refused."""

    def __init__(self, settings: Settings, check: Callable[[Connection[TupleRow]], None]) -> None:
        self._check_new = check
        self._refusal: CouponClockError | None = None
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
        """Returns one that the server has not closed. After a restart it has closed all, so all are replaced."""
        while True:
            connection = self._got(timeout)
            if not is_closed_by_server(connection):
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
        set_up(connection)
        self._refusal = None
        try:
            self._check_new(connection)
        except CouponClockError as refusal:
            self._refusal = refusal
            raise


def is_closed_by_server(connection: Connection[TupleRow]) -> bool:
    """An idle connection has nothing to read, so whatever is there is its end. Costs no round trip."""
    if connection.closed:
        return True
    socket = poll()
    socket.register(connection.fileno(), POLLIN)
    return bool(socket.poll(0))
