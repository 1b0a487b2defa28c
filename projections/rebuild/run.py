"""A rebuild that is under way: what its steps share, and the lock that makes it the only one of its projection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Literal

from msgspec import Struct
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from coupon_clock.domain import arguments
from coupon_clock.domain.errors import CouponClockError, Problem
from coupon_clock.domain.rules import LARGEST_NUMBER
from coupon_clock.infrastructure.event_store.lease import PATIENCE_S, Held, Lease
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from coupon_clock.infrastructure.postgres.time_limit import LONG_STATEMENT_LIMIT_S
from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.projection import Projection

POLL_S = 0.1

Step = Literal["plan", "claim", "note", "chunk", "replay", "index", "batch", "catch up", "swap"]


def nothing_after(step: Step) -> None:
    """The usual `after_step`."""


class RebuildOptions(Struct, frozen=True, kw_only=True):
    """`resume`: go on with what an interrupted one left, if it left anything. `events_per_s`: at most so many.
    `jobs`: processes, by default one a processor that this process may use, and for two of
    DATABASE_CONNECTIONS, where the log is long enough. `keep_old`: the old table stays, as
    NAME_old. `events_a_chunk`: about so many are folded in one transaction. `swap_patience_s`: seconds to wait for
    those who hold the live table. `takeover_s`: another rebuild that shows no sign of life for so long is taken for
    dead."""

    resume: bool = False
    events_per_s: float | None = None
    jobs: int | None = None
    keep_old: bool = False
    events_a_chunk: int = 10_000
    swap_patience_s: float = 600
    takeover_s: float = PATIENCE_S


NO_OPTIONS = RebuildOptions()
MOST_JOBS = 1_000
LONGEST_WAIT_S = 86_400.0


def option_problems(options: RebuildOptions) -> Iterator[Problem]:
    """What cannot be asked of a rebuild."""
    if wrong_type := list(arguments.of_type("options", options, RebuildOptions)):
        yield from wrong_type
        return
    yield from arguments.of_type("resume", options.resume, bool)
    yield from arguments.of_type("keep_old", options.keep_old, bool)
    if options.events_per_s is not None:
        yield from arguments.number("events_per_s", options.events_per_s, 1, LARGEST_NUMBER)
    if options.jobs is not None:
        yield from arguments.whole_number("jobs", options.jobs, 1, MOST_JOBS)
    yield from arguments.whole_number("events_a_chunk", options.events_a_chunk, 1)
    yield from arguments.number("swap_patience_s", options.swap_patience_s, 0, LONGEST_WAIT_S)
    yield from arguments.number("takeover_s", options.takeover_s, 0, LONGEST_WAIT_S)


class Run(Struct, frozen=True):
    """`connection`: its own. `after_step`: called each time that a
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


# Readers queue behind a lock while it is waited for: so not for long, then they go first and it is tried again.
LONGEST_WAIT = "SET LOCAL lock_timeout = '50ms'"

LIVE_POSITION = "SELECT position FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"
# `build` makes every projector that is under way give up its batch, and begin again at the new position.
TAKE_OVER = """
INSERT INTO {schema}.checkpoint AS live (name, kind, position, fold_version) VALUES (%s, 'projection', %s, %s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, build = live.build + 1, fold_version = excluded.fold_version,
       beyond_log = false, stopped_by = NULL, stopped_at = NULL
"""


def live_position(run: Run) -> int | None:
    """Within a transaction: keeps projectors of the live rows waiting. None where there is no checkpoint."""
    found = run.execute(LIVE_POSITION, run.projection.name).fetchone()
    return None if found is None else int(found[0])


def take_over(run: Run, position: int) -> None:
    """Gives the live rows the shadow's position, in the transaction that gives them its content."""
    run.execute(TAKE_OVER, run.projection.name, position, run.projection.fold_version)
    run.execute("DELETE FROM {schema}.checkpoint WHERE name = %s", run.shadow)
    quarantine.take_over(run.connection, run.store.database.schema, run.projection)


OWN = "SELECT position FROM {schema}.checkpoint WHERE name = %s AND build = %s FOR UPDATE"


@dataclass(eq=False)
class ShadowTakenOver(CouponClockError):
    """Another rebuild of {name} took this one's shadow over: this one stops."""

    name: str


def own(run: Run, build: int) -> int:
    """Within a transaction: keeps the shadow's checkpoint as this run began it, and returns its position.

    Raises ShadowTakenOver where another run has begun it anew.
    """
    found = run.execute(OWN, run.shadow, build).fetchone()
    if found is None:
        raise ShadowTakenOver(run.projection.name)
    return int(found[0])


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
    lease = Lease(store.database, f"rebuild {projection.name}", options.takeover_s)
    await_lease(lease, projection.name)
    try:
        with lease.kept(), store.database.connect(LONG_STATEMENT_LIMIT_S) as connection:
            yield Run(store, projection, connection, options, progress, after_step)
    finally:
        with suppress(DatabaseUnavailable):
            lease.release()


def await_lease(lease: Lease, name: str) -> None:
    """Returns once it is taken, also from a rebuild that died. Raises RebuildRunning as soon as another shows life."""
    first: Held | None = None
    while not lease.take():
        first = first or lease.other
        if first and lease.other and lease.other != first:
            raise RebuildRunning(name, f"{lease.other.who}, since {lease.other.taken_at:%Y-%m-%d %H:%M:%SZ}")
        sleep(POLL_S)


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
