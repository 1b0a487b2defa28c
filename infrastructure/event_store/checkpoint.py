"""How far each projection and each follower is, kept in PostgreSQL. It moves by compare-and-set."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError, InvalidArgument, Problem
from coupon_clock.infrastructure.postgres.database import Database, fetch_one

Kind = Literal["projection", "follower"]

LONGEST_ERROR = 1_000

STORED = """
kind, beyond_log, position, build, fold_version,
ARRAY(SELECT skipped.position FROM {schema}.skipped_event AS skipped
       WHERE skipped.follower = stored.name AND skipped.position > stored.position)
"""
READ = f"SELECT {STORED} FROM {{schema}}.checkpoint AS stored WHERE name = %s"

START = f"""
INSERT INTO {{schema}}.checkpoint AS stored (name, kind, position) VALUES (%s, %s, %s)
    ON CONFLICT (name) DO UPDATE SET position = stored.position
RETURNING {STORED}
"""

ADVANCE = """
UPDATE {schema}.checkpoint
   SET position = %(to)s, stopped_by = NULL, stopped_at = NULL
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
   AND NOT beyond_log
"""

STOP = """
UPDATE {schema}.checkpoint
   SET stopped_by = %(error)s, stopped_at = coalesce(stopped_at, clock_timestamp())
 WHERE name = %(name)s AND stopped_by IS DISTINCT FROM %(error)s
"""


class Checkpoint(NamedTuple):
    """How far a follower is; `build` counts rebuilds of what it writes, `fold_version` the code that writes it.
    `skipped`: positions ahead that a person had it pass over."""

    position: int
    build: int = 1
    fold_version: int = 1
    skipped: frozenset[int] = frozenset()


@dataclass(eq=False)
class CheckpointLost(CouponClockError):
    """Another process follows as {name} now: this one steps back."""

    name: str


@dataclass(eq=False)
class CheckpointBeyondLog(CouponClockError):
    """The checkpoint of {name} is at {position}, and the log was found to end before: it was restored to an earlier \
time. Bring back what {name} made of the events that are gone, and then run: {command}"""

    name: str
    position: int
    command: str


RESTART: dict[Kind, str] = {
    "follower": "coupon-clock followers restart {name} POSITION",
    "projection": "coupon-clock rebuild {name}",
}


class StoredCheckpoint:
    """The checkpoint `name`. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, name: str, kind: Kind) -> None:
        self._database = database
        self._name = name
        self._kind = kind

    def read(self) -> Checkpoint | None:
        """Returns None before `start`. Raises CheckpointBeyondLog, InvalidArgument where the name is taken."""
        with self._database.connection() as connection:
            row = connection.execute(self._database.sql(READ), (self._name,)).fetchone()
        return None if row is None else self._checked(row)

    def start(self, position: int) -> Checkpoint:
        """Makes it, and returns it as it is then. Raises as `read` does."""
        with self._database.connection() as connection:
            return self._checked(fetch_one(connection, self._database.sql(START), self._name, self._kind, position))

    def advance(self, connection: Connection[TupleRow], checkpoint: Checkpoint, position: int) -> None:
        """Within the caller's transaction. Raises CheckpointLost where it is not as it was read."""
        parameters = checkpoint._asdict() | {"name": self._name, "to": position}
        if connection.execute(self._database.sql(ADVANCE), parameters).rowcount != 1:
            raise CheckpointLost(self._name)

    def stop(self, error: str) -> None:
        """Notes what keeps it where it is."""
        parameters = {"name": self._name, "error": error[:LONGEST_ERROR].replace("\0", "")}
        with self._database.connection() as connection:
            connection.execute(self._database.sql(STOP), parameters)

    def _checked(self, row: TupleRow) -> Checkpoint:
        kind, beyond_log, position, build, fold_version, skipped = row
        if kind != self._kind:
            raise InvalidArgument([Problem("name", self._name, f"is the name of a {kind} already")])
        if beyond_log:
            raise CheckpointBeyondLog(self._name, position, RESTART[self._kind].format(name=self._name))
        return Checkpoint(position, build, fold_version, frozenset(skipped))
