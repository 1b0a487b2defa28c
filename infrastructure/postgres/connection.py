"""Connections that depend on nothing of their session, and never wait for PostgreSQL for ever."""

from contextlib import suppress
from secrets import randbits
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.abc import PQGen, Query
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from coupon_clock.infrastructure.postgres.binary_cursor import BinaryCursor
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.settings import Settings

STATEMENT_LIMIT_S = 10.0
LONG_STATEMENT_LIMIT_S = 3600.0
"""Of a rebuild, a migration, a verification: what reads or writes whole tables."""
ANSWER_LIMIT_S = 5.0
CONNECT_TIMEOUT_S = 5
FIRST_NAME = 2**62

START_UP = {
    "client_encoding": "UTF8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    # A host that is gone shows within 20 s also where nothing waits for it.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""Of the start-up packet and the socket. All but the encoding can be set in the URL."""

T = TypeVar("T")


class NoAnswer(psycopg.OperationalError):
    """PostgreSQL did not answer in time: the connection is closed, and what it was doing is unknown."""


class LimitedConnection(Connection[TupleRow]):
    """A statement that takes longer than `limit_s` is cancelled; if even that brings no answer, the connection is
    closed and NoAnswer raised. PostgreSQL's own statement_timeout ends no wait for a server that went silent."""

    limit_s = STATEMENT_LIMIT_S

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        return super().wait(self._limited(gen), *args, **options)

    def _limited(self, gen: PQGen[T]) -> PQGen[T]:
        """psycopg resumes a generator when the socket is ready, and every tenth of a second when it is not."""
        cancel_at = monotonic() + self.limit_s
        cancelled = False
        ready: Any = None
        try:
            while True:
                ready = yield gen.send(ready)
                if ready or monotonic() < cancel_at:
                    continue
                if not cancelled:
                    cancelled = True
                    with suppress(psycopg.Error):
                        self.cancel_safe(timeout=ANSWER_LIMIT_S - 1)
                elif monotonic() > cancel_at + ANSWER_LIMIT_S:
                    self.pgconn.finish()
                    raise NoAnswer(f"it did not answer for {self.limit_s + ANSWER_LIMIT_S:g} s")
        except StopIteration as finished:
            return finished.value  # type: ignore[no-any-return]
        except psycopg.errors.QueryCanceled as error:
            if cancelled:
                raise psycopg.errors.QueryCanceled(f"it took longer than {self.limit_s:g} s") from error
            raise


OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "cursor_factory": BinaryCursor,
    # Nothing is prepared without being asked for: a plan that is kept may be of a time when the tables were small.
    # Functions are called by prepared statements, and see to their plans themselves (functions.sql).
    "prepare_threshold": 2**31 - 1,
}


def options(settings: Settings) -> dict[str, Any]:
    """What psycopg.connect takes."""
    given = conninfo_to_dict(settings.database())
    return START_UP | given | {"client_encoding": START_UP["client_encoding"]} | OPTIONS


def set_up(connection: Connection[Any]) -> None:
    """Transactions of several statements are what BEGIN says, whatever the role or the database has by default."""
    name_statements_apart(connection)
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.read_only = False


def name_statements_apart(connection: Connection[Any]) -> None:
    """Gives the statements that are prepared from now on names that no other client has.

    A pooler that knows nothing of prepared statements hands a session on with those of its last client, who may have
    named another statement as we would: on another schema, with the same parameters.
    """
    prepared = connection._prepared
    if prepared._prepared_idx < FIRST_NAME:
        prepared._prepared_idx = FIRST_NAME + randbits(62)


def connect(settings: Settings, limit_s: float = STATEMENT_LIMIT_S) -> Connection[TupleRow]:
    """One autocommitting connection, set up as those of a Database. Raises DatabaseUnavailable."""
    with translate_errors():
        connection = LimitedConnection.connect(**options(settings))
        connection.limit_s = limit_s
        set_up(connection)
        return connection


def execute_script(connection: Connection[Any], script: Query) -> None:
    """Executes several statements at once."""
    with psycopg.Cursor(connection) as cursor:
        cursor.execute(script)
