"""Processes that run loops, each a row that all can read: who is there, with which roles, and whether its loops get on.

A row tells of a process that cannot tell itself: its heartbeat stops.
"""

import os
import socket
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from coupon_clock.infrastructure.loop import Counts, Ticks
from coupon_clock.infrastructure.postgres.database import Database, Schema

HEARTBEAT_S = 10.0
DEAD_AFTER = timedelta(seconds=30)
FORGOTTEN_AFTER = timedelta(days=1)
HUNG_AFTER_S = 60.0
"""Longer than any tick takes that PostgreSQL or the broker keeps waiting."""

BEAT = """
WITH forgotten AS (
     DELETE FROM {schema}.process WHERE heartbeat_at < clock_timestamp() - %(forgotten_after)s)
INSERT INTO {schema}.process (instance, host, pid, roles, version, loops)
VALUES (%(instance)s, %(host)s, %(pid)s, %(roles)s, %(version)s, %(loops)s)
    ON CONFLICT (instance) DO UPDATE SET heartbeat_at = clock_timestamp(), loops = excluded.loops
"""
END = "DELETE FROM {schema}.process WHERE instance = %s"
LIST = """
SELECT instance, host, pid, roles, version, started_at, heartbeat_at,
       heartbeat_at < clock_timestamp() - %s AS is_dead, loops
  FROM {schema}.process
 ORDER BY started_at
"""


class Process(NamedTuple):
    """`loops`: for how long each had been in one tick, in seconds, at the heartbeat."""

    instance: UUID
    host: str
    pid: int
    roles: list[str]
    version: str
    started_at: datetime
    heartbeat_at: datetime
    is_dead: bool
    loops: dict[str, float]

    @property
    def hung(self) -> list[str]:
        """Loops that do not get on though the process is there."""
        return [] if self.is_dead else [loop for loop, seconds in self.loops.items() if seconds > HUNG_AFTER_S]


class Heartbeat:
    """Of this process, for as long as it runs these loops."""

    def __init__(self, database: Database, roles: list[str], ticks: Ticks) -> None:
        self._database = database
        self._ticks = ticks
        self._row = {
            "instance": uuid4(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "roles": roles,
            "version": our_version(),
            "forgotten_after": FORGOTTEN_AFTER,
        }

    def run_once(self) -> Counts:
        """Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            connection.execute(self._database.sql(BEAT), self._row | {"loops": Jsonb(self._ticks.in_hand())})
        return Counts()

    def end(self) -> None:
        """At a clean stop: no row is left of a process that is not missed. Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            connection.execute(self._database.sql(END), (self._row["instance"],))


def roles_run(processes: Iterable[Process]) -> Counter[str]:
    """How many of them run each role; the dead run none."""
    return Counter(role for process in processes if not process.is_dead for role in process.roles)


def our_version() -> str:
    try:
        return version("coupon-clock")
    except PackageNotFoundError:
        return "unknown"


def all_processes(connection: Connection[TupleRow], schema: Schema) -> list[Process]:
    """Those that run, and those that ended without a word in the last day."""
    with connection.cursor(row_factory=class_row(Process)) as cursor:
        return cursor.execute(schema.sql(LIST), (DEAD_AFTER,)).fetchall()
