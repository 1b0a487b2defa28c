"""What a projection is: all that the projector, a rebuild and a check need to know of rows derived from the log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct
from psycopg import Connection
from psycopg.errors import DatatypeMismatch, FeatureNotSupported, UndefinedColumn, UndefinedTable
from psycopg.rows import TupleRow
from sqlalchemy import Table

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.postgres.database import Schema

Row = TypeVar("Row", bound=Struct)
Key = tuple[Any, ...]


class Projection(Struct, Generic[Row], frozen=True, kw_only=True):
    """Rows that derive from the log (docs/projections.md).

    `name`: of the table and of its checkpoint. `fold_version`: raised with every change of `fold` or `table` that makes
    rows other than the stored ones. `table`: makes the table under a name; its columns are the fields of `row`, in
    order. `key`: the values of the primary key, in its order, of the row that an event changes. `one_row_a_stream`:
    the key is the stream's id, so that a rebuild may read the log by stream, on all cores.
    """

    name: str
    fold_version: int
    table: Callable[[str], Table]
    row: type[Row]
    key: Callable[[Envelope[Any]], Key]
    fold: Callable[[Row | None, Envelope[Any]], Row]
    one_row_a_stream: bool

    @property
    def shadow(self) -> str:
        """What a rebuild fills: the name of its table and of its checkpoint."""
        return f"{self.name}_shadow"


@dataclass(eq=False)
class ReadModelOutdated(CouponClockError):
    """The read model {name} is not what this version reads ({found}): run `coupon-clock rebuild {name}`."""

    name: str
    found: str


class ReadModelTooNew(ReadModelOutdated):
    """The read model {name} was made by a later version ({found}): install that, or go back with \
`coupon-clock rebuild {name}`."""


@dataclass(eq=False)
class ReadModelBehind(CouponClockError):
    """The read model is at position {position}, not yet at {at_least}: is a projector running?"""

    position: int
    at_least: int


CHECKPOINT = "SELECT position, fold_version FROM {schema}.checkpoint WHERE name = %s"


def position(
    connection: Connection[TupleRow], schema: Schema, projection: Projection[Any], table: str | None = None
) -> int:
    """Returns up to where in the log the rows are. Raises ReadModelOutdated where other code made them.

    `table`: by default the live one.
    """
    found = connection.execute(schema.sql(CHECKPOINT), (table or projection.name,)).fetchone()
    if found is None:
        raise ReadModelOutdated(projection.name, "it was never made")
    at, fold_version = found
    if fold_version != projection.fold_version:
        error = ReadModelTooNew if fold_version > projection.fold_version else ReadModelOutdated
        raise error(projection.name, f"fold version {fold_version}, here {projection.fold_version}")
    return int(at)


@contextmanager
def same_shape(projection: Projection[Any]) -> Iterator[None]:
    """Turns what PostgreSQL says of a table with other columns into ReadModelOutdated.

    FeatureNotSupported: a prepared statement whose table was swapped for one with other columns.
    """
    try:
        yield
    except (UndefinedTable, UndefinedColumn, DatatypeMismatch, FeatureNotSupported) as error:
        raise ReadModelOutdated(projection.name, str(error).partition("\n")[0]) from error
