"""Further processes that take part in a replay: Python folds on one core a process.

A worker gets its job in one line on its standard input, and stops when that is closed, also when the process at the
other end died. One that fails says why on its standard output, and only leaves its chunks to the others.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from time import sleep

import msgspec
from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import StoredEvent
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.processors import usable_processors
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.rebuild.replay import free, replay_chunks, replayed
from coupon_clock.projections.rebuild.run import Pace, Run
from coupon_clock.projections.registry import projection_named

WORTH_A_PROCESS = 200_000
CONNECTIONS_A_PROCESS = 2
LONGEST_STOP_S = 30

log = Log(__name__)


class Job(Struct, frozen=True):
    """What a worker is to do. The URL may hold a password: that is why it does not come as an argument."""

    database_url: str
    database_schema: str
    projection: str
    events_per_s: float | None


class Workers:
    """So many processes, importing while the chunks are still being planned."""

    def __init__(self, number: int) -> None:
        # As this process finds its modules, so shall they.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(number)
        ]

    def __len__(self) -> int:
        return len(self._processes)

    def begin(self, job: Job) -> None:
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                log.warning("worker gone", action="rebuild", exit_code=process.wait())

    def wait(self) -> None:
        """Until each has nothing left to take."""
        for process in self._processes:
            assert process.stdout is not None
            why = process.stdout.read()
            if process.wait() != 0:
                log.warning(
                    "worker failed", action="rebuild", exit_code=process.returncode, why=why.decode(errors="replace")
                )

    def stop(self) -> None:
        """Each finishes the chunk in hand."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(LONGEST_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def workers_for(run: Run) -> Iterator[Workers]:
    """Those that a replay gets besides this process. Where nothing is asked for, a short log gets none: it is done
    before another process has started."""
    if not run.projection.one_row_a_stream:
        number = 0
    elif run.options.jobs is not None:
        number = run.options.jobs - 1
    else:
        number = fitting_processes(run.store.database.settings) - 1 if run.store.end() >= WORTH_A_PROCESS else 0
    workers = Workers(number)
    try:
        yield workers
    finally:
        workers.stop()


def fitting_processes(settings: Settings) -> int:
    """One a processor, and no more than have their connections."""
    return min(usable_processors(), settings.database_connections // CONNECTIONS_A_PROCESS)


def replay_together(run: Run, workers: Workers) -> None:
    """Folds all chunks, in this process and in those."""
    settings, rate = run.store.database.settings, run.options.events_per_s
    share = rate / (len(workers) + 1) if rate else None
    free(run)
    workers.begin(Job(settings.database(), settings.database_schema, run.projection.name, share))
    replay_share(run, share)
    workers.wait()
    free(run)  # what those that failed had claimed
    replay_share(run, share)
    run.after_step("replay")


def replay_share(run: Run, events_per_s: float | None) -> None:
    pace = Pace(events_per_s, sleep)
    run.progress("replaying", *replayed(run))
    for events in replay_chunks(run):
        run.progress("replaying", *replayed(run))
        pace.passed(events)


# ── the process of a worker ──────────────────────────────────────────────────────────────────────


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process at the other end decides
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    gc.freeze()
    try:
        work(msgspec.json.decode(line, type=Job))
    except Exception as error:
        why = str(error) if isinstance(error, CouponClockError) else type(error).__name__
        sys.stdout.buffer.write(why.encode(errors="replace"))
        return 1
    return 0


def is_to_stop(within: float = 0.0) -> bool:
    """Nothing more ever comes: whatever makes the input readable is its end."""
    return bool(select([sys.stdin], [], [], within)[0])


def work(job: Job) -> None:
    settings = Settings.load(
        database_url=job.database_url, database_schema=job.database_schema, database_connections=CONNECTIONS_A_PROCESS
    )
    with open_database(settings) as database, database.connection() as connection:
        store: EventStore[StoredEvent] = EventStore(database, ServerClock(), StoredEvent)
        pace = Pace(job.events_per_s, is_to_stop)
        for events in replay_chunks(Run(store, projection_named(job.projection), connection)):
            pace.passed(events)
            if is_to_stop():
                break


if __name__ == "__main__":
    sys.exit(main())
