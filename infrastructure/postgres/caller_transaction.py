"""Commands within a transaction of the caller: what they store is there when, and only if, that commits.

A savepoint around each keeps what a refused one did out of it. What this means for others: docs/transactions.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import Connection
from psycopg.adapt import AdaptersMap
from psycopg.errors import InsufficientPrivilege
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, first_line, translate_errors
from coupon_clock.infrastructure.postgres.pool import LOCK_TIMEOUT

# Where the caller has not said anything yet: without it, the savepoint would be a transaction, and commit.
BEGIN = "SELECT"

SITUATION = """
SELECT current_setting('transaction_isolation'),
       current_setting('session_replication_role'),
       current_setting('client_encoding'),
       (SELECT has_schema_privilege(place.oid, 'USAGE')
          FROM pg_namespace AS place
          JOIN pg_class AS log ON log.relnamespace = place.oid AND log.relname = 'coupon_template_events'
         WHERE place.nspname = %s),
       current_setting('search_path'),
       current_setting('TimeZone'),
       current_setting('lock_timeout')
"""
# PostgreSQL looks among temporary tables first, unless it is told to look there last.
OURS = """
SELECT set_config('search_path', quote_ident(%(schema)s) || ', pg_temp', true),
       set_config('TimeZone', 'UTC', true),
       set_config('lock_timeout',
                  CASE WHEN current_setting('lock_timeout')::interval BETWEEN '1ms' AND %(longest_wait)s::text::interval
                       THEN current_setting('lock_timeout')
                       ELSE %(longest_wait)s::text END,
                  true)
"""
THEIRS = """
SELECT set_config('search_path', %s, true), set_config('TimeZone', %s, true), set_config('lock_timeout', %s, true)
"""

MENDING = {
    TransactionStatus.ACTIVE: "the connection is busy with another statement: finish that first",
    TransactionStatus.INERROR: "it has failed already: roll it back, and begin again",
    TransactionStatus.UNKNOWN: "the connection is closed: open a new one, and begin again",
}


@dataclass(eq=False)
class UnusableTransaction(CouponClockError):
    """The command was not executed, because it cannot be in this transaction: {reason}."""

    reason: str


class Joined(NamedTuple):
    """The caller's connection in the place of the pool."""

    only: Connection[TupleRow]

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        yield self.only


class OurCursor(psycopg.Cursor[TupleRow]):
    """Reads and writes as our own connections do, whatever the caller's has been taught."""

    @property
    def adapters(self) -> AdaptersMap:
        return psycopg.adapters


@contextmanager
def enlist(connection: Connection[Any], schema: str) -> Iterator[Joined]:
    """Lends the caller's connection, with tables of `schema`, for one command.

    Raises UnusableTransaction, DatabaseUnavailable; the transaction is then as it was, unless the connection broke.
    """
    refuse_unusable(connection)
    try:
        with translate_errors(), ours(connection) as lent:
            lent.execute(BEGIN)
            with lent.transaction():
                settings = refuse_unfit(lent, schema)
                lent.execute(OURS, {"schema": schema, "longest_wait": LOCK_TIMEOUT})
                yield Joined(lent)
                lent.execute(THEIRS, settings)
    except InsufficientPrivilege as error:
        raise UnusableTransaction(f"its role may not write the log ({first_line(error)}): GRANT it that") from error
    except OutcomeUnknown as lost:
        raise DatabaseUnavailable("the connection broke, and the transaction with it") from lost


@contextmanager
def ours(connection: Connection[Any]) -> Iterator[Connection[TupleRow]]:
    """With our rows and cursors meanwhile. One that had no transaction, and is refused, has none afterwards."""
    rows, cursors, status = connection.row_factory, connection.cursor_factory, connection.info.transaction_status
    connection.row_factory, connection.cursor_factory = tuple_row, OurCursor
    try:
        yield cast("Connection[TupleRow]", connection)
    except UnusableTransaction:
        if status == TransactionStatus.IDLE:
            connection.rollback()
        raise
    finally:
        connection.row_factory, connection.cursor_factory = rows, cursors


def refuse_unusable(connection: Connection[Any]) -> None:
    if not isinstance(connection, Connection):
        raise UnusableTransaction(f"it is no psycopg.Connection, but a {type(connection).__name__}")
    status = connection.info.transaction_status
    if status in MENDING:
        raise UnusableTransaction(MENDING[status])
    if status == TransactionStatus.IDLE and connection.autocommit:
        raise UnusableTransaction("there is none: begin one, `with connection.transaction(): …`")


def refuse_unfit(connection: Connection[TupleRow], schema: str) -> list[str]:
    """Answers with the caller's settings, as THEIRS takes them."""
    ((isolation, triggers, encoding, may_use, *settings),) = connection.execute(SITUATION, (schema,))
    if encoding in (b"SQL_ASCII", "SQL_ASCII"):
        raise UnusableTransaction("its client_encoding is SQL_ASCII: set it to UTF8")
    if isolation != "read committed":
        raise UnusableTransaction(
            f"its isolation is {isolation}, and only READ COMMITTED sees what others stored meanwhile"
        )
    if triggers == "replica":
        raise UnusableTransaction("its session_replication_role is replica, and followers would skip its events")
    if may_use is None:
        raise UnusableTransaction(f"its database has no event log in schema {schema}: is it the right one?")
    if not may_use:
        raise UnusableTransaction(f"its role may not use the schema {schema}: GRANT it that")
    return settings
