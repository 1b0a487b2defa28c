"""One process of a run: all loops, commands, questions and followers. python -m chaos.process, with CHAOS set."""

import json
import os
import signal
import sys
from pathlib import Path
from random import Random
from threading import Event
from time import sleep
from typing import NamedTuple, Self

from chaos.following import follow
from chaos.journal import Journal
from chaos.schedule import schedule
from chaos.supervised import LIFE
from chaos.time_of_run import TimeOfRun
from chaos.unreliable_broker import UnreliableBroker
from chaos.workload import Workload
from coupon_clock.app import Application, DatabaseUnavailable, Settings
from coupon_clock.deadlines import broker_for
from coupon_clock.infrastructure.logs import log_to_stderr

VARIABLE = "CHAOS"
WATCH_EVERY_S = 0.05


class Part(NamedTuple):
    """What this process is in the run. `url`: past the proxy; `life`: how often it was started before."""

    name: str
    folder: str
    url: str
    seed: int
    seconds: float
    processes: list[str]
    life: int = 0

    @classmethod
    def given(cls) -> Self:
        return cls(**json.loads(os.environ[VARIABLE]))._replace(life=int(os.environ[LIFE]))


def main() -> None:
    """Until it is told to stop; commands end with the run's time. Opens as soon as PostgreSQL is there."""
    log_to_stderr()
    part, settings, stop = Part.given(), Settings.load(), Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.is_set():
        try:
            with Application.open(settings) as app:
                run(part, app, stop)
        except DatabaseUnavailable as error:
            print(error, file=sys.stderr, flush=True)
            sleep(0.3)


def run(part: Part, app: Application, stop: Event) -> None:
    time_of_run = TimeOfRun(Path(part.folder), part.seconds)
    seed = f"{part.seed}-{part.name}-{part.life}"
    journal = Journal(Path(part.folder) / f"{part.name}-{part.life}.jsonl")
    faults = [each for each in schedule(part.seed, part.seconds, part.processes) if each.target == part.name[0]]
    broker = UnreliableBroker(broker_for(app.settings), faults, time_of_run, Random(seed))
    with app.running(broker=broker):
        followers = follow(app, part.url, journal, stop)
        while not stop.wait(WATCH_EVERY_S) and time_of_run.now() < 0:
            pass
        commands_end = Event()
        workers = Workload(app, app.settings.database(), journal, seed, commands_end).start()
        while not stop.wait(WATCH_EVERY_S) and time_of_run.is_on():
            pass
        commands_end.set()
        for worker in workers:
            worker.join()
        has_asked_all(part.folder, part.name).touch()
        stop.wait()
        for follower in followers:
            follower.join()


def has_asked_all(folder: str, name: str) -> Path:
    """The file that says so."""
    return Path(folder) / f"{name}.has-asked-all"


if __name__ == "__main__":
    main()
