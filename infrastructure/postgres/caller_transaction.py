"""Commands within a transaction of the caller: what they store is there when, and only if, that commits.

A savepoint around each keeps what a refused one did out of it. What this means for others: docs/transactions.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.errors import InsufficientPrivilege
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.infrastructure.postgres.binary_cursor import BinaryCursor
from coupon_clock.infrastructure.postgres.connection import name_statements_apart
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, first_line, translate_errors
from coupon_clock.infrastructure.postgres.rights import grant_for
from coupon_clock.infrastructure.postgres.time_limit import STATEMENT_LIMIT_S, limited

T = TypeVar("T")

# Where the caller has not said anything yet: without it, the savepoint would be a transaction, and commit.
BEGIN = "SELECT"

SITUATION = """
SELECT current_setting('transaction_isolation'),
       current_setting('session_replication_role'),
       current_setting('client_encoding'),
       (SELECT has_schema_privilege(namespace.oid, 'USAGE')
          FROM pg_namespace AS namespace
          JOIN pg_class ON pg_class.relnamespace = namespace.oid AND pg_class.relname = %(table)s
         WHERE namespace.nspname = %(schema)s),
       nullif(least(current_setting('lock_timeout')::interval, %(longest)s), '0')
"""
LONGEST_WAIT = timedelta(seconds=2)
"""As long as any other command (functions.sql), unless the caller's lock_timeout is shorter."""

WHAT_TO_DO = {
    TransactionStatus.ACTIVE: "the connection is busy with another statement: finish that first",
    TransactionStatus.INERROR: "it has failed already: roll it back, and begin again",
    TransactionStatus.UNKNOWN: "the connection is closed: open a new one, and begin again",
}


@dataclass(eq=False)
class UnusableTransaction(CouponClockError):
    """The command was not executed, because it cannot be in this transaction: {reason}."""

    reason: str


class Enlisted(NamedTuple):
    """The caller's connection in the place of the pool."""

    only: Connection[TupleRow]
    schema: Schema
    longest_wait: timedelta | None

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        yield self.only

    def sql(self, statement: str, **names: str) -> bytes:
        return self.schema.sql(statement, **names)


@contextmanager
def enlist(connection: Connection[Any], schema: Schema, table: str) -> Iterator[Enlisted]:
    """Lends the caller's connection for one command; `table` must be in `schema`. Where PostgreSQL is silent, the
    connection is closed: only so does the call end.

    Raises UnusableTransaction, DatabaseUnavailable; the transaction is then as it was, unless the connection broke.
    """
    refuse_unusable(connection)
    name_statements_apart(connection)
    try:
        with (
            translate_errors(InsufficientPrivilege),
            time_limits(connection),
            default_rows_and_cursors(connection) as lent,
        ):
            lent.execute(BEGIN)
            with lent.transaction():
                yield Enlisted(lent, schema, refuse_unfit(lent, schema.name, table))
    except InsufficientPrivilege as error:
        what_helps = grant_for(error, connection.info.user, schema.name)
        raise UnusableTransaction(f"its role may not write the log ({first_line(error)}): {what_helps}") from error
    except OutcomeUnknown as lost:
        raise DatabaseUnavailable("the connection broke, and the transaction with it") from lost


@contextmanager
def time_limits(connection: Connection[Any]) -> Iterator[None]:
    """Meanwhile: psycopg waits for each answer through the connection's method `wait`."""

    def wait(waiting: PQGen[T], *args: Any, **options: Any) -> T:
        try:
            state = next(waiting)
        except StopIteration as at_once:
            return at_once.value  # type: ignore[no-any-return]
        in_time = limited(connection, waiting, state, STATEMENT_LIMIT_S)
        return type(connection).wait(connection, in_time, *args, **options)

    vars(connection)["wait"] = wait
    try:
        yield
    finally:
        del vars(connection)["wait"]


@contextmanager
def default_rows_and_cursors(connection: Connection[Any]) -> Iterator[Connection[TupleRow]]:
    """Meanwhile. One that had no transaction, and is refused, has none afterwards."""
    rows, cursors, status = connection.row_factory, connection.cursor_factory, connection.info.transaction_status
    connection.row_factory, connection.cursor_factory = tuple_row, BinaryCursor
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
    if status in WHAT_TO_DO:
        raise UnusableTransaction(WHAT_TO_DO[status])
    if status == TransactionStatus.IDLE and connection.autocommit:
        raise UnusableTransaction("there is none: begin one, `with connection.transaction(): …`")


def refuse_unfit(connection: Connection[TupleRow], schema: str, table: str) -> timedelta | None:
    """Returns the longest wait for a lock."""
    longest_wait: timedelta | None
    ((isolation, triggers, encoding, may_use, longest_wait),) = connection.execute(
        SITUATION, {"schema": schema, "table": table, "longest": LONGEST_WAIT}
    )
    if encoding in (b"SQL_ASCII", "SQL_ASCII"):
        raise UnusableTransaction("its client_encoding is SQL_ASCII: set it to UTF8")
    if isolation != "read committed":
        raise UnusableTransaction(
            f"its isolation is {isolation}, and only READ COMMITTED sees what others stored meanwhile"
        )
    if triggers == "replica":
        raise UnusableTransaction(
            "its session_replication_role is replica, and the triggers that guard the log would not fire"
        )
    if may_use is None:
        raise UnusableTransaction(f"its database has no event log in schema {schema}: is it the right one?")
    if not may_use:
        raise UnusableTransaction(f"its role may not use the schema {schema}: GRANT it that")
    return longest_wait
