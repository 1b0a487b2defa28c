"""Makes a projection anew beside the live one and swaps it in, while commands, queries and projectors run on.

The log up to a decided position is folded into a shadow table; a projector of its own brings the shadow up to date;
then it takes the live table's place. Nothing of the live one changes before that moment, and whatever is interrupted
can be gone on with (docs/projections.md).
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Literal

import structlog
from msgspec import Struct
from psycopg import Connection
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.database import Database, fetch_one
from coupon_clock.infrastructure.postgres.errors import first_line, translate_errors
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.engine.projector import Projector
from coupon_clock.projections.engine.tables import complete, create_bare
from coupon_clock.projections.rebuild import replay
from coupon_clock.projections.rebuild.replay import Pace, Replay
from coupon_clock.projections.rebuild.swap import OldTableInUse, clear_away, exists, holders, swap
from coupon_clock.projections.rebuild.workers import Job, Workers, workers

CATCH_UP_BATCH = 10_000
WORTH_A_PROCESS = 200_000
GAP_PAUSE_S = 0.002
SWAP_PAUSE_S = 0.2
SWAP_PATIENCE_S = 600

REBUILD_LOCK = 1129271119
LOCK = "SELECT pg_try_advisory_lock(%s, hashtext('{schema}.' || %s))"
HOLDER = """
SELECT application_name || ', connected since ' || to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ')
       || ', server process ' || pid
  FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid = %s AND objid::bigint = hashtext('{schema}.' || %s)::bigint & 4294967295 AND granted
"""

DECIDE = """
INSERT INTO {schema}.checkpoint AS earlier (name, position, fold_version)
VALUES (%(shadow)s, %(position)s, %(fold_version)s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, fold_version = excluded.fold_version, build = earlier.build + 1,
       leased_by = NULL, leased_until = NULL
"""
# The one that died may still hold its lease. `build` keeps it from going on, if it did not die after all.
TAKE_UP = """
UPDATE {schema}.checkpoint
   SET leased_by = NULL, leased_until = NULL, build = build + 1
 WHERE name = %s
RETURNING fold_version
"""

POSITION = "SELECT position FROM {schema}.checkpoint WHERE name = %s"

Step = Literal["replaying", "indexing", "catching up", "swapping"]
Progress = Callable[[Step, int, int], object]
"""`progress(step, done, total)`, in events."""

log = structlog.get_logger()


def in_silence(step: Step, done: int, total: int) -> None:
    """Progress that nobody watches."""


class RebuildOptions(Struct, frozen=True, kw_only=True):
    """`resume`: go on with what an interrupted one left, if it left anything. `events_per_s`: at most so many.
    `jobs`: processes, by default one a core where the log is long enough. `keep_old`: the old table stays, as
    NAME_old."""

    resume: bool = False
    events_per_s: float | None = None
    jobs: int | None = None
    keep_old: bool = False


class Rebuilt(Struct, frozen=True):
    """`position`: up to where the rows went when they became live; `events` were folded by this run in `seconds`."""

    projection: str
    position: int
    events: int
    seconds: float


@dataclass(eq=False)
class RebuildRunning(CouponClockError):
    """Another rebuild of {name} is running ({who}): wait for it, or stop it."""

    name: str
    who: str


@dataclass(eq=False)
class ShadowOfOtherFold(CouponClockError):
    """The interrupted rebuild of {name} had fold version {found}, here it is {needed}: begin anew, without --resume."""

    name: str
    found: int
    needed: int


@dataclass(eq=False)
class SwapBlocked(CouponClockError):
    """{name} is ready to be swapped in, but transactions held the live table for too long (server processes {pids}): \
end them, then run `coupon-clock rebuild {name} --resume`."""

    name: str
    pids: str


def rebuild(
    store: EventStore[Event],
    projection: Projection[Any],
    options: RebuildOptions,
    progress: Progress,
) -> Rebuilt:
    """Until the new rows are live. Raises RebuildRunning, ShadowOfOtherFold, SwapBlocked, OldTableInUse (of the rebuild
    before), UnreadableEvent, DatabaseUnavailable; the live ones are then as they were."""
    started = monotonic()
    with translate_errors(), only_rebuild(store.database, projection) as connection:
        helpers = further_processes(options, projection, store.end())
        work = Rebuild(store, projection, options, progress, connection)
        with workers(helpers) as others:
            work.prepare()
            if exists(connection, store.database.schema, f"{projection.shadow}_chunk"):
                work.replay(others)
                work.complete()
        position = work.swap_in()
        try:
            clear_away(connection, store.database.schema, projection, options.keep_old)
        except OldTableInUse as error:
            log.warning("live, but the old table stays", action="rebuild", why=str(error))
    return Rebuilt(projection.name, position, work.events, monotonic() - started)


def further_processes(options: RebuildOptions, projection: Projection[Any], events: int) -> int:
    """Besides this one. Where nothing is asked for, a short log is done before another process has started."""
    if not projection.one_row_a_stream:
        return 0
    if options.jobs is not None:
        return options.jobs - 1
    return (os.cpu_count() or 1) - 1 if events >= WORTH_A_PROCESS else 0


@contextmanager
def only_rebuild(database: Database, projection: Projection[Any]) -> Iterator[Connection[TupleRow]]:
    """The connection that holds the right to rebuild; all that decides goes through it, so that losing it ends it."""
    with database.connect() as connection:
        who = f"coupon-clock rebuild on {socket.gethostname()}, process {os.getpid()}"
        connection.execute("SELECT set_config('application_name', left(%s, 63), false)", (who,))
        if not fetch_one(connection, database.sql(LOCK), REBUILD_LOCK, projection.name)[0]:
            found = connection.execute(database.sql(HOLDER), (REBUILD_LOCK, projection.name)).fetchone()
            raise RebuildRunning(projection.name, found[0] if found else "just ending")
        connection.execute("SET statement_timeout = 0")
        yield connection


class Rebuild:
    """One run, step by step; after an interruption each step can be the first one."""

    def __init__(
        self,
        store: EventStore[Event],
        projection: Projection[Any],
        options: RebuildOptions,
        progress: Progress,
        connection: Connection[TupleRow],
    ) -> None:
        self._store = store
        self._schema = store.database.schema
        self._projection = projection
        self._options = options
        self._progress = progress
        self._connection = connection
        self._shadow = projection.shadow
        self.events = 0

    # ── a shadow at a decided position ───────────────────────────────────────────────────────────

    def prepare(self) -> None:
        """Decides up to which position the log is replayed, or takes up what an interrupted run decided."""
        clear_away(self._connection, self._schema, self._projection, keep=False)
        if self._options.resume and self._taken_up():
            return
        position = self._store.settled_end() if self._projection.one_row_a_stream else 0
        table = self._projection.table(self._shadow)
        decided = {"shadow": self._shadow, "position": position, "fold_version": self._projection.fold_version}
        with self._connection.transaction():
            drop = "DROP TABLE IF EXISTS {schema}.{shadow}, {schema}.{chunk}"
            self._connection.execute(self._schema.sql(drop, shadow=self._shadow, chunk=f"{self._shadow}_chunk"))
            create_bare(self._connection, self._schema, table)
            if self._projection.one_row_a_stream:
                replay.plan(self._connection, self._schema, self._shadow)
            else:
                complete(self._connection, self._schema, table)
            self._connection.execute(self._schema.sql(DECIDE), decided)

    def _taken_up(self) -> bool:
        found = self._connection.execute(self._schema.sql(TAKE_UP), (self._shadow,)).fetchone()
        if found is None or not exists(self._connection, self._schema, self._shadow):
            return False
        (fold_version,) = found
        if fold_version != self._projection.fold_version:
            raise ShadowOfOtherFold(self._projection.name, fold_version, self._projection.fold_version)
        return True

    # ── its rows ─────────────────────────────────────────────────────────────────────────────────

    def replay(self, others: Workers) -> None:
        """Folds all chunks, together with the others."""
        position = self._position()
        rate = self._options.events_per_s
        share = rate / (len(others) + 1) if rate else None
        replay.free(self._connection, self._schema, self._shadow)
        others.begin(job(self._store.database.settings, self._projection, position, share))
        self._replay_chunks(position, share)
        others.wait()
        replay.free(self._connection, self._schema, self._shadow)  # of those that died
        self._replay_chunks(position, share)

    def _replay_chunks(self, position: int, events_per_s: float | None) -> None:
        worker = Replay(self._connection, self._store, self._projection, position)
        pace = Pace(events_per_s, sleep)
        self._tell_replayed()
        while (events := worker.run_once()) is not None:
            self._tell_replayed()
            pace.passed(events)

    def _tell_replayed(self) -> None:
        self._progress("replaying", *replay.progress(self._connection, self._schema, self._shadow))

    def complete(self) -> None:
        """Keys, indexes and statistics; without its chunks the shadow counts as replayed."""
        events, _ = replay.progress(self._connection, self._schema, self._shadow)
        self.events += events
        self._progress("indexing", events, events)
        with self._connection.transaction():
            complete(self._connection, self._schema, self._projection.table(self._shadow))
            self._connection.execute(self._schema.sql("DROP TABLE {schema}.{chunk}", chunk=f"{self._shadow}_chunk"))

    # ── up to date, and live ─────────────────────────────────────────────────────────────────────

    def swap_in(self) -> int:
        projector = Projector(self._store, self._projection, self._shadow, CATCH_UP_BATCH)
        give_up_at = monotonic() + SWAP_PATIENCE_S
        while True:
            self._catch_up(projector)
            try:
                position = swap(self._connection, self._schema, self._projection)
            except LockNotAvailable as error:
                self._wait_for_readers(give_up_at, error)
            else:
                if position is not None:
                    return position

    def _catch_up(self, projector: Projector) -> None:
        end = self._store.end()
        pace = Pace(self._options.events_per_s, sleep)
        while True:
            followed = projector.run_once()["followed"]
            position = self._position()
            self._progress("catching up", position, max(position, end))
            self.events += followed
            if not followed and position >= end:
                return
            pace.passed(followed)
            if not followed:
                sleep(GAP_PAUSE_S)

    def _wait_for_readers(self, give_up_at: float, error: LockNotAvailable) -> None:
        pids = holders(self._connection, self._schema, self._projection)
        if monotonic() > give_up_at:
            raise SwapBlocked(self._projection.name, pids)
        log.info("waiting for readers", action="swap", server_processes=pids, why=first_line(error))
        sleep(SWAP_PAUSE_S)

    def _position(self) -> int:
        return int(fetch_one(self._connection, self._schema.sql(POSITION), self._shadow)[0])


def job(settings: Settings, projection: Projection[Any], position: int, events_per_s: float | None) -> Job:
    return Job(settings.database(), settings.database_schema, projection.name, position, events_per_s)
