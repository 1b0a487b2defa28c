"""A rebuild that is under way: what its steps share, and the lock that makes it the only one of its projection."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from msgspec import Struct
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.projections.engine.projection import Projection

REBUILD_LOCK = 1129271119
LOCK = "SELECT pg_try_advisory_lock(%s, hashtext('{schema}.' || %s))"
UNLOCK = "SELECT pg_advisory_unlock(%s, hashtext('{schema}.' || %s))"
HOLDER = """
SELECT application_name || ', connected since ' || to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ')
       || ', server process ' || pid
  FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid = %s AND objid::bigint = hashtext('{schema}.' || %s)::bigint & 4294967295 AND granted
"""

Step = Literal["plan", "claim", "note", "chunk", "replay", "index", "batch", "catch up", "swap"]


def nothing_after(step: Step) -> None:
    """The usual `after_step`."""


class RebuildOptions(Struct, frozen=True, kw_only=True):
    """`resume`: go on with what an interrupted one left, if it left anything. `events_per_s`: at most so many.
    `jobs`: processes, by default one a core where the log is long enough. `keep_old`: the old table stays, as
    NAME_old. `events_a_chunk`: about so many are folded in one transaction. `swap_patience_s`: seconds to wait for
    those who hold the live table."""

    resume: bool = False
    events_per_s: float | None = None
    jobs: int | None = None
    keep_old: bool = False
    events_a_chunk: int = 10_000
    swap_patience_s: float = 600


NO_OPTIONS = RebuildOptions()


class Run(Struct, frozen=True):
    """`connection` holds the right to rebuild, so that losing it ends the run. `after_step`: called each time that a
    step is done, "note" within the transaction of its chunk; what it raises interrupts the rebuild there."""

    store: EventStore[Any]
    projection: Projection[Any]
    connection: Connection[TupleRow]
    options: RebuildOptions = NO_OPTIONS
    progress: Progress = no_progress
    after_step: Callable[[Step], object] = nothing_after

    @property
    def shadow(self) -> str:
        return self.projection.shadow

    def execute(self, statement: str, *parameters: object, **names: str) -> Cursor[TupleRow]:
        """`names`: as `Schema.sql` fills them in."""
        return self.connection.execute(self.store.database.sql(statement, **names), parameters)


@dataclass(eq=False)
class RebuildRunning(CouponClockError):
    """Another rebuild of {name} is running ({who}): wait for it, or stop it."""

    name: str
    who: str


@contextmanager
def only_run(
    store: EventStore[Any],
    projection: Projection[Any],
    options: RebuildOptions = NO_OPTIONS,
    progress: Progress = no_progress,
    after_step: Callable[[Step], object] = nothing_after,
) -> Iterator[Run]:
    """The one rebuild of this projection, over a connection of its own. Raises RebuildRunning, DatabaseUnavailable."""
    with store.database.connect() as connection:
        who = f"coupon-clock rebuild on {socket.gethostname()}, process {os.getpid()}"
        connection.execute("SELECT set_config('application_name', left(%s, 63), false)", (who,))
        if not fetch_one(connection, store.database.sql(LOCK), REBUILD_LOCK, projection.name)[0]:
            found = connection.execute(store.database.sql(HOLDER), (REBUILD_LOCK, projection.name)).fetchone()
            raise RebuildRunning(projection.name, found[0] if found else "just ending")
        connection.execute("SET statement_timeout = 0")
        try:
            yield Run(store, projection, connection, options, progress, after_step)
        finally:
            # Not left to the end of the session, which the server notices a moment after the next rebuild may begin.
            if not connection.closed:
                connection.execute(store.database.sql(UNLOCK), (REBUILD_LOCK, projection.name))


class Pace:
    """Keeps to so many events a second, None for as fast as it goes."""

    def __init__(self, events_per_s: float | None, wait: Callable[[float], object]) -> None:
        self._events_per_s = events_per_s
        self._wait = wait
        self._started = monotonic()
        self._events = 0

    def passed(self, events: int) -> None:
        self._events += events
        if self._events_per_s:
            ahead = self._events / self._events_per_s - (monotonic() - self._started)
            if ahead > 0:
                self._wait(ahead)
