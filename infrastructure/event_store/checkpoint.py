"""How far each follower of the log is, kept in PostgreSQL. It moves by compare-and-set."""

from dataclasses import dataclass
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import Database, fetch_one

READ = "SELECT position, build, fold_version FROM {schema}.checkpoint WHERE name = %s"

START = """
INSERT INTO {schema}.checkpoint AS other (name, position) VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE SET position = other.position
RETURNING position, build, fold_version
"""

ADVANCE = """
UPDATE {schema}.checkpoint
   SET position = %(to)s
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
"""


class Checkpoint(NamedTuple):
    """How far a follower is; `build` counts rebuilds of what it writes, `fold_version` the code that writes it."""

    position: int
    build: int = 1
    fold_version: int = 1


@dataclass(eq=False)
class CheckpointLost(CouponClockError):
    """Another process follows as {name} now: this one steps back."""

    name: str


class StoredCheckpoint:
    """The checkpoint `name`. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    def read(self) -> Checkpoint | None:
        """Returns None before `start`."""
        with self._database.connection() as connection:
            row = connection.execute(self._database.sql(READ), (self._name,)).fetchone()
        return Checkpoint(*row) if row else None

    def start(self, position: int) -> Checkpoint:
        """Makes it, and returns it as it is then."""
        with self._database.connection() as connection:
            return Checkpoint(*fetch_one(connection, self._database.sql(START), self._name, position))

    def advance(self, connection: Connection[TupleRow], checkpoint: Checkpoint, position: int) -> None:
        """Within the caller's transaction. Raises CheckpointLost where it is not as it was read."""
        parameters = checkpoint._asdict() | {"name": self._name, "to": position}
        if connection.execute(self._database.sql(ADVANCE), parameters).rowcount != 1:
            raise CheckpointLost(self._name)
