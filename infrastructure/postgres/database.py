"""One PostgreSQL database and the schema in it: connections that are set up alike, statements that name the schema."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from select import POLLIN, poll
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from psycopg_pool import ConnectionPool, PoolTimeout

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.connection import (
    CONNECT_TIMEOUT_S,
    LimitedConnection,
    connect,
    options,
    set_up,
)
from coupon_clock.infrastructure.postgres.errors import PoolExhausted, translate_errors
from coupon_clock.infrastructure.postgres.time_limit import STATEMENT_LIMIT_S
from coupon_clock.infrastructure.settings import Settings

POOL_CLOSE_S = 1.0
"""For the pool's threads, which may be connecting."""


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

    @property
    def longest_wait(self) -> timedelta | None:
        """For a lock that others hold; None: as the functions of the schema say."""


@dataclass(eq=False)
class OpenedBeforeFork(CouponClockError):
    """This process was forked off process {opened_by}, which had opened the application before: \
open it after the fork, in each process that uses it."""

    opened_by: int


class Database:
    """A pool of autocommitting connections, and connections of one's own. Safe to use from several threads.

    `check` runs on each new connection of the pool, because the same URL can lead to another server after a failover.
    """

    longest_wait: timedelta | None = None

    def __init__(self, settings: Settings, check: Check) -> None:
        self.settings = settings
        self.schema = Schema(settings.database_schema)
        self.sql = self.schema.sql
        self._opened_by = os.getpid()
        self._pool = _Pool(settings, lambda connection: check(connection, self.schema))

    @classmethod
    def open(cls, settings: Settings, check: Check) -> Self:
        """Raises DatabaseUnavailable where the first connection cannot be made, and what `check` raises."""
        with translate_errors(), connect(settings) as connection:
            check(connection, Schema(settings.database_schema))
        return cls(settings, check)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the pool; a connection in use is closed when it is given back. Does nothing after a fork."""
        if not self.is_forked:
            self._pool.close(POOL_CLOSE_S)

    @property
    def is_forked(self) -> bool:
        """Whether this is a fork of the process that opened it: whose locks nobody here may ever release, and whose
        sockets the two share."""
        return os.getpid() != self._opened_by

    def refuse_fork(self) -> None:
        """Raises OpenedBeforeFork."""
        if self.is_forked:
            raise OpenedBeforeFork(self._opened_by)

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        """One of the pool. Raises DatabaseUnavailable, OpenedBeforeFork, and what the check raised."""
        self.refuse_fork()
        with translate_errors(), self._pool.connection() as connection:
            try:
                yield connection
            finally:
                if connection.closed:
                    # Where one went silent, or was closed, the others may be no better.
                    self._pool.drain()

    @property
    def connections_made(self) -> int:
        """How many the pool has made so far: a new one may lead to another server."""
        return self._pool.made

    def connect(self, limit_s: float = STATEMENT_LIMIT_S) -> Connection[TupleRow]:
        """A new one outside the pool. Raises DatabaseUnavailable, OpenedBeforeFork."""
        self.refuse_fork()
        return connect(self.settings, limit_s)


def fetch_one(connection: Connection[TupleRow], statement: bytes | str, *parameters: object) -> TupleRow:
    """Returns the first row of a statement that always has one."""
    row = connection.execute(statement if isinstance(statement, bytes) else statement.encode(), parameters).fetchone()
    assert row is not None
    return row


class _Pool(ConnectionPool[LimitedConnection]):
    """Raises the check's refusal instead of a timeout while new connections are refused."""

    def __init__(self, settings: Settings, check: Callable[[Connection[TupleRow]], None]) -> None:
        self._settings = settings
        self._check_new = check
        self._refusal: CouponClockError | None = None
        self._lent: set[int] = set()
        self._all_lent_at = float("-inf")
        self._opened_by = os.getpid()
        self.made = 0
        super().__init__(
            connection_class=LimitedConnection,
            kwargs=options(settings),
            configure=self._admit,
            min_size=2,
            max_size=settings.database_connections,
            timeout=CONNECT_TIMEOUT_S,
            # The pool doubles its pause after each failure, for as long as this: a server that is back is found soon.
            reconnect_timeout=CONNECT_TIMEOUT_S,
            open=True,
        )

    def __del__(self) -> None:
        """psycopg's own stops the threads: a fork has none of them, and their locks may be held there for ever."""
        if os.getpid() == getattr(self, "_opened_by", None):
            super().__del__()

    def getconn(self, timeout: float | None = None) -> LimitedConnection:
        """Returns one that the server has not closed. After a restart it has closed all, so all are replaced."""
        while True:
            connection = self._got(timeout)
            if not is_closed_by_server(connection):
                self._lent.add(id(connection))
                if len(self._lent) >= self.max_size:
                    self._all_lent_at = monotonic()
                return connection
            connection.close()
            self.putconn(connection)
            self.drain()

    def putconn(self, conn: LimitedConnection) -> None:
        self._lent.discard(id(conn))
        super().putconn(conn)

    def _got(self, timeout: float | None) -> LimitedConnection:
        try:
            return super().getconn(timeout)
        except PoolTimeout:
            if self._refusal is not None:
                raise self._refusal from None
            # Or all were until just now, and one is on its way from hand to hand.
            if len(self._lent) >= self.max_size or monotonic() - self._all_lent_at < CONNECT_TIMEOUT_S:
                raise PoolExhausted(f"all {self.max_size} connections of this process were in use for 5 s") from None
            raise

    def _admit(self, connection: LimitedConnection) -> None:
        self.made += 1
        set_up(connection, self._settings)
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
