"""Commands within a transaction of the caller: what they store is there when, and only if, that commits.

A savepoint around each keeps what a refused one did out of it. What this means for others: docs/transactions.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from coupon_clock.domain.errors import CouponError, OutcomeUnknown
from coupon_clock.infrastructure.database import DatabaseUnavailable, available

# Begins the transaction where the first statement does that; from here on there is one.
SITUATION = """
SELECT current_setting('transaction_isolation'),
       current_setting('search_path'),
       to_regclass(quote_ident(%s) || '.coupon_template_events') IS NOT NULL
"""
SEARCH_PATH = "SELECT set_config('search_path', %s, true)"
SCHEMA_ALONE = "SELECT set_config('search_path', quote_ident(%s), true)"

MENDING = {
    TransactionStatus.ACTIVE: "the connection is busy with another statement: finish that first",
    TransactionStatus.INERROR: "it has failed already: roll it back, and begin again",
    TransactionStatus.UNKNOWN: "the connection is closed: open a new one, and begin again",
}


@dataclass(eq=False)
class UnusableTransaction(CouponError):
    """The command was not executed, because it cannot be in this transaction: {reason}."""

    reason: str


class Joined(NamedTuple):
    """The caller's connection in the place of the pool."""

    only: Connection[TupleRow]

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        yield self.only


@contextmanager
def joined(connection: Connection[Any], schema: str) -> Iterator[Joined]:
    """Lends the caller's connection, with tables of `schema`, for one command.

    Raises UnusableTransaction, DatabaseUnavailable; the transaction is then as it was, unless the connection broke.
    """
    refuse_unusable(connection)
    try:
        with available(), plain(connection) as lent:
            search_path = refuse_unfit(lent, schema)
            with lent.transaction():
                lent.execute(SCHEMA_ALONE, (schema,))
                yield Joined(lent)
                lent.execute(SEARCH_PATH, (search_path,))
    except OutcomeUnknown as lost:
        raise DatabaseUnavailable("the connection broke, and the transaction with it") from lost


@contextmanager
def plain(connection: Connection[Any]) -> Iterator[Connection[TupleRow]]:
    """Whatever rows and cursors the caller likes, ours are tuples meanwhile."""
    rows, cursors = connection.row_factory, connection.cursor_factory
    connection.row_factory, connection.cursor_factory = tuple_row, psycopg.Cursor
    try:
        yield cast("Connection[TupleRow]", connection)
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


def refuse_unfit(connection: Connection[TupleRow], schema: str) -> str:
    """Answers with the caller's search path."""
    ((isolation, search_path, is_there),) = connection.execute(SITUATION, (schema,))
    if isolation != "read committed":
        raise UnusableTransaction(
            f"its isolation is {isolation}, and only READ COMMITTED sees what others stored meanwhile"
        )
    if not is_there:
        raise UnusableTransaction(f"its database has no event log in schema {schema}: is it the right one?")
    return str(search_path)
