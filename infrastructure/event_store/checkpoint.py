"""How far each follower of the log is, kept in PostgreSQL, under a lease: one active process a name."""

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple
from uuid import uuid4

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import Database, fetch_one

LEASE = timedelta(seconds=15)

START = "INSERT INTO {schema}.checkpoint (name, position) VALUES (%s, %s) ON CONFLICT DO NOTHING"

EXISTS = "SELECT EXISTS (SELECT FROM {schema}.checkpoint WHERE name = %s)"

TAKE_LEASE = """
UPDATE {schema}.checkpoint
   SET leased_by = %(me)s, leased_until = clock_timestamp() + %(lease)s
 WHERE name = %(name)s
   AND (leased_by = %(me)s OR leased_until IS NULL OR leased_until < clock_timestamp())
RETURNING position, build, fold_version
"""

# Not only by the holder of the lease: two processes with handlers slower than a lease would stop each other for ever.
ADVANCE = """
UPDATE {schema}.checkpoint
   SET position = %(to)s, leased_by = %(me)s, leased_until = clock_timestamp() + %(lease)s
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
"""

IS_LEASED = "SELECT EXISTS (SELECT FROM {schema}.checkpoint WHERE leased_by = %s AND name = %s)"

RELEASE = """
UPDATE {schema}.checkpoint SET leased_by = NULL, leased_until = NULL WHERE name = %s AND leased_by = %s
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


class LeasedCheckpoint:
    """The checkpoint `name`, as one process takes and moves it. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self.owner = uuid4()
        self._parameters = {"name": name, "me": self.owner, "lease": LEASE}

    def take(self) -> Checkpoint | None:
        """Takes or renews the lease. Returns None while another process has it, and before `start`."""
        with self._database.connection() as connection:
            row = connection.execute(self._database.sql(TAKE_LEASE), self._parameters).fetchone()
        return Checkpoint(*row) if row else None

    def exists(self) -> bool:
        with self._database.connection() as connection:
            return bool(fetch_one(connection, self._database.sql(EXISTS), self._name)[0])

    def start(self, position: int) -> None:
        """Makes it, unless there is one."""
        with self._database.connection() as connection:
            connection.execute(self._database.sql(START), (self._name, position))

    def advance(self, connection: Connection[TupleRow], checkpoint: Checkpoint, position: int) -> None:
        """Within the caller's transaction. Raises CheckpointLost where it is not as it was taken."""
        parameters = self._parameters | checkpoint._asdict() | {"to": position}
        if connection.execute(self._database.sql(ADVANCE), parameters, prepare=True).rowcount != 1:
            raise CheckpointLost(self._name)

    def is_leased(self) -> bool:
        """Whether this process has the lease."""
        with self._database.connection() as connection:
            statement = self._database.sql(IS_LEASED)
            return bool(fetch_one(connection, statement, self.owner, self._name)[0])

    def release(self) -> None:
        """At a clean stop: another process may follow on at once."""
        with self._database.connection() as connection:
            connection.execute(self._database.sql(RELEASE), (self._name, self.owner))
