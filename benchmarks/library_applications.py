"""An application of the eventsourcing library on our persistence module, beside its own for PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from threading import Lock
from time import monotonic, sleep
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from measure import Figure, at_least_times, at_most, say
from threads import repeat

from coupon_clock.testing import throw_away_database

THREADS = 16
TURNS = 5
TURN_S = 2.0
ROUNDS = 5
SAVES_A_ROUND = 2_000
PATIENCE_S = 20.0
OURS, DEFAULT, LOCK_FREE = "ours", "the library's default", "the library's lock-free option"


class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name


class School(Application[UUID]):
    def register(self) -> None:
        self.save(Dog("Fido"))


def library_applications(server_url: str) -> Iterator[Figure]:
    yield from saving(server_url)
    for kind in (OURS, LOCK_FREE):
        missed = sum(missed_in_a_round(server_url, kind, number) for number in range(ROUNDS))
        target = 0 if kind == OURS else None
        yield at_most(
            f"missed by two ProjectionRunners of {2 * ROUNDS * SAVES_A_ROUND:,}, {kind}", missed, "events", target
        )


def saving(server_url: str) -> Iterator[Figure]:
    rates: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        schools = {kind: stack.enter_context(school(server_url, kind)) for kind in (OURS, DEFAULT, LOCK_FREE)}
        for turn in range(TURNS):
            for threads in (THREADS, 1):
                for kind, one in schools.items():
                    say(f"{threads} threads save new aggregates, turn {turn + 1} of {TURNS}: {kind}")
                    rates.setdefault((kind, threads), []).append(repeat(one.register, threads, TURN_S).rate)
    rate = {key: median(several) for key, several in rates.items()}
    for name, threads, other, least in (
        ("16 threads, a new aggregate", THREADS, DEFAULT, 3),
        ("16 threads, a new aggregate", THREADS, LOCK_FREE, 1),
        ("one thread, a new aggregate", 1, DEFAULT, 0.9),
    ):
        yield at_least_times(f"{name}, to {other}", rate[OURS, threads], "saves/s", rate[other, threads], least)


# ── what two runners miss ────────────────────────────────────────────────────────────────────────


class Seen(Projection[POPOTrackingRecorder]):
    name = "seen"

    def __init__(self, view: POPOTrackingRecorder) -> None:
        super().__init__(view)
        self.positions: set[int] = set()

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.positions.add(tracking.notification_id)


def missed_in_a_round(server_url: str, kind: str, number: int) -> int:
    say(f"two ProjectionRunners beside {THREADS} threads, round {number + 1} of {ROUNDS}: {kind}")
    with ExitStack() as stack:
        url = stack.enter_context(throw_away_database(server_url))
        env = environment(url, kind) | {"SEEN_PERSISTENCE_MODULE": "eventsourcing.popo"}
        writing = stack.enter_context(School(env))
        runners = [
            stack.enter_context(
                ProjectionRunner(
                    application_class=School, projection_class=Seen, view_class=POPOTrackingRecorder, env=env
                )
            )
            for _ in range(2)
        ]
        stored: set[int] = set()
        lock = Lock()

        def save(_: int) -> None:
            (recording,) = writing.save(Dog("Fido"))
            with lock:
                stored.add(recording.notification.id)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(save, range(SAVES_A_ROUND)))
        give_up_at = monotonic() + PATIENCE_S
        last = max(stored)
        while monotonic() < give_up_at and not all(last in runner.projection.positions for runner in runners):
            sleep(0.05)
        return sum(len(stored - runner.projection.positions) for runner in runners)


# ── applications ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def school(server_url: str, kind: str) -> Iterator[School]:
    with throw_away_database(server_url) as url, School(environment(url, kind)) as opened:
        yield opened


def environment(url: str, kind: str) -> dict[str, str]:
    pool = {"POSTGRES_POOL_SIZE": str(THREADS + 4)}
    if kind == OURS:
        return {"PERSISTENCE_MODULE": "coupon_clock.persistence", "COUPON_CLOCK_DATABASE_URL": url} | pool
    parts = urlsplit(url)
    (folder,) = parse_qs(parts.query)["host"]
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path[1:],
        "POSTGRES_HOST": folder,
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "",
        "POSTGRES_ENABLE_DB_FUNCTIONS": "y" if kind == LOCK_FREE else "n",
    } | pool
