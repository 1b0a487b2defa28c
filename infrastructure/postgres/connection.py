"""Connections that depend on nothing of their session, and never wait for PostgreSQL for ever."""

from secrets import randbits
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
from psycopg import Connection, ConnectionInfo, IsolationLevel
from psycopg.abc import PQGen, Query
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from coupon_clock.infrastructure.postgres.binary_cursor import BinaryCursor
from coupon_clock.infrastructure.postgres.errors import MissingRight, first_line, translate_errors
from coupon_clock.infrastructure.postgres.rights import grant_for
from coupon_clock.infrastructure.postgres.time_limit import STATEMENT_LIMIT_S, IsAtWork, NoAnswer, limited
from coupon_clock.infrastructure.settings import Settings

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


class LimitedConnection(Connection[TupleRow]):
    """Each wait on it ends (time_limit.py). `is_at_work`: where statements may take long."""

    limit_s = STATEMENT_LIMIT_S
    is_at_work: IsAtWork | None = None
    schema_name = ""

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        try:
            state = next(gen)
            return super().wait(limited(self, gen, state, self.limit_s, self.is_at_work), *args, **options)
        except StopIteration as at_once:  # most rows of a COPY are here already
            return at_once.value  # type: ignore[no-any-return]
        except psycopg.errors.InsufficientPrivilege as error:
            what_helps = grant_for(error, self.info.user, self.schema_name)
            raise MissingRight(f"{first_line(error)}: {what_helps}") from error


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


def set_up(connection: LimitedConnection, settings: Settings) -> None:
    """Transactions of several statements are what BEGIN says, whatever the role or the database has by default."""
    name_statements_apart(connection)
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.read_only = False
    connection.schema_name = settings.database_schema


def name_statements_apart(connection: Connection[Any]) -> None:
    """Gives the statements that are prepared from now on names that no other client has.

    A pooler that knows nothing of prepared statements hands a session on with those of its last client, who may have
    named another statement as we would: on another schema, with the same parameters.
    """
    prepared = connection._prepared
    if prepared._prepared_idx < FIRST_NAME:
        prepared._prepared_idx = FIRST_NAME + randbits(62)


def connect(settings: Settings, limit_s: float = STATEMENT_LIMIT_S) -> Connection[TupleRow]:
    """One autocommitting connection, set up as those of a Database. Where a statement may take longer than usual,
    whether PostgreSQL is at work on it is looked at from outside. Raises DatabaseUnavailable."""
    given = options(settings)
    name = f"{given.get('application_name', 'coupon-clock')[:40]} {uuid4().hex[:12]}"
    watched = limit_s > STATEMENT_LIMIT_S
    with translate_errors():
        connection = LimitedConnection.connect(**given | ({"application_name": name} if watched else {}))
        connection.limit_s = limit_s
        set_up(connection, settings)
        if watched and is_at_work(connection, name):
            connection.is_at_work = seen_from_outside(given, connection.info, name)
        return connection


AT_WORK = """
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_stat_activity
   WHERE application_name = %s AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client')
"""


def is_at_work(connection: Connection[TupleRow], name: str) -> bool:
    """Of a connection itself, False where its name, or what it does, cannot be seen: behind some poolers, and with
    track_activities off."""
    return connection.execute(AT_WORK, (name,)).fetchone() == (True,)


def seen_from_outside(given: dict[str, Any], info: ConnectionInfo, name: str) -> IsAtWork:
    """Over a new connection to the same server."""
    server = {"host": info.host, "hostaddr": info.hostaddr, "port": info.port}
    target = given | {key: value for key, value in server.items() if value}

    def look() -> bool:
        try:
            with LimitedConnection.connect(**target) as connection:
                return is_at_work(connection, name)
        except (psycopg.errors.ConnectionTimeout, NoAnswer):
            return False
        except psycopg.Error:
            return True  # it answers, though not to this question: too many connections, for instance

    return look


def execute_script(connection: Connection[Any], script: Query) -> None:
    """Executes several statements at once."""
    with psycopg.Cursor(connection) as cursor:
        cursor.execute(script)
