"""What can be wrong with PostgreSQL, and psycopg's exceptions turned into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.errors import (
    InsufficientPrivilege,
    InvalidSqlStatementName,
    InvalidTransactionInitiation,
    LockNotAvailable,
    QueryCanceled,
    ReadOnlySqlTransaction,
    SerializationFailure,
)
from psycopg_pool import PoolClosed, PoolTimeout

from coupon_clock.domain.errors import CouponClockError

MAY_BE_ABSENCE = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, psycopg.ProgrammingError)
TIME_IS_UP = (QueryCanceled, LockNotAvailable)


@dataclass(eq=False)
class DatabaseUnavailable(CouponClockError):
    """PostgreSQL cannot be used, and nothing was changed: {reason}. Check COUPON_CLOCK_DATABASE_URL and the server."""

    reason: str


class TimedOut(DatabaseUnavailable):
    """PostgreSQL took too long, and nothing was changed: {reason}."""


class StatementTooLong(TimedOut):
    """A statement used up its time, and nothing was changed: {reason}."""


class PoolExhausted(DatabaseUnavailable):
    """Nothing was changed, because {reason}: set COUPON_CLOCK_DATABASE_CONNECTIONS higher, \
or find out what takes PostgreSQL so long."""


class UnsuitableTransactions(DatabaseUnavailable):
    """Nothing was changed, because transactions are not what they must be here: {reason}."""


# Of a single call, whose transaction is what the role or the database has by default: all others say what they are.
NOT_BY_DEFAULT = (InvalidTransactionInitiation, ReadOnlySqlTransaction, SerializationFailure)
READ_ONLY = "connect to a primary, and ALTER ROLE … SET default_transaction_read_only TO off for the role of the URL"
ISOLATED = "ALTER ROLE … SET default_transaction_isolation TO 'read committed' for the role of the URL"


def unsuitable(error: psycopg.Error) -> UnsuitableTransactions:
    what_to_do = READ_ONLY if isinstance(error, ReadOnlySqlTransaction) else error.diag.message_hint or ISOLATED
    return UnsuitableTransactions(f"{first_line(error)}: {what_to_do}")


class MissingRight(DatabaseUnavailable):
    """Nothing was changed, because a right is missing ({reason}); `coupon-clock migrate --print-roles` prints all \
that an owner, an application and a reader need."""


class PoolerWithoutPreparedStatements(DatabaseUnavailable):
    """Nothing was changed, because a pooler before PostgreSQL keeps no prepared statements ({reason}): \
use PgBouncer 1.21 or newer with max_prepared_statements above 0, or connect to PostgreSQL itself."""


@contextmanager
def translate_errors(*passed_on: type[psycopg.Error]) -> Iterator[None]:
    """Turns what psycopg says when PostgreSQL is away into DatabaseUnavailable: for reads, which may be repeated.

    `passed_on`: what the caller deals with itself. Raises UnsuitableTransactions, MissingRight and
    PoolerWithoutPreparedStatements too.
    """
    try:
        yield
    except passed_on:
        raise
    except InsufficientPrivilege as error:
        raise MissingRight(first_line(error)) from error
    except NOT_BY_DEFAULT as error:
        raise unsuitable(error) from error
    except InvalidSqlStatementName as error:
        raise PoolerWithoutPreparedStatements(first_line(error)) from error
    except (*MAY_BE_ABSENCE, PoolClosed) as error:
        if not _is_absence(error):
            raise
        failure = time_is_up(error) if isinstance(error, TIME_IS_UP) else DatabaseUnavailable
        raise failure(first_line(error)) from error


def time_is_up(error: Exception) -> type[TimedOut]:
    return StatementTooLong if isinstance(error, QueryCanceled) else TimedOut


def _is_absence(error: Exception) -> bool:
    """No answer from a server, or one that says it is not to be used now; an unusable URL has no SQLSTATE either."""
    state = getattr(error, "sqlstate", None)
    return state is None or state[:2] in ("08", "25", "28", "3D", "40", "53", "55", "57")


def first_line(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "no connection became free in time"
    return str(error).strip().partition("\n")[0] or type(error).__name__


class RolledBack(DatabaseUnavailable):
    """PostgreSQL rolled the transaction back ({reason}): try again."""


class DecidedTooLate(RolledBack):
    """PostgreSQL rolled the transaction back, because what it rested on has changed ({reason}): try again."""


@dataclass(eq=False)
class AnswerLost(CouponClockError):
    """Whether the transaction was committed is unknown, because the connection broke ({reason})."""

    reason: str


@contextmanager
def detect_lost_answer(connection: Connection[Any]) -> Iterator[None]:
    """Distinguishes what certainly did not happen from what may have: an error that PostgreSQL itself reports, on a
    connection that lives on, means that the transaction was rolled back.

    Raises TimedOut, RolledBack, UnsuitableTransactions, AnswerLost.
    """
    try:
        yield
    except TIME_IS_UP as error:
        raise time_is_up(error)(first_line(error)) from error
    except (InvalidTransactionInitiation, ReadOnlySqlTransaction) as error:
        raise unsuitable(error) from error
    except SerializationFailure as error:
        raise DecidedTooLate(first_line(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.IntegrityError, psycopg.InternalError) as error:
        failure = AnswerLost if connection.closed else RolledBack
        raise failure(first_line(error)) from error
