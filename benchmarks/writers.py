"""16 threads that append, or execute whole commands, beside the eventsourcing library's own recorders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from measure import Figure, application, at_least, at_least_times, say, template
from msgspec import UNSET, UnsetType
from threads import repeat

from coupon_clock.domain.events import Event, StockIncreased
from coupon_clock.infrastructure.event_store.store import Append, NewEvent
from coupon_clock.testing import throw_away_database

THREADS = 16
TURNS = 5
TURN_S = 2.0
STATE = b"s" * 420  # a Created has about that size
DUE_AT = datetime(2100, 1, 1, tzinfo=UTC)


def writers(server_url: str) -> Iterator[Figure]:
    with (
        library(server_url, lock_free=False) as default_recorder,
        library(server_url, lock_free=True) as lock_free_recorder,
        application(server_url, database_connections=THREADS + 4) as app,
    ):
        write: dict[str, Callable[[], object]] = {
            "default": lambda: default_recorder.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)]),
            "lock_free": lambda: lock_free_recorder.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)]),
            "plain": lambda: app.store.append([one_event(UNSET)]),
            "with_alarm": lambda: app.store.append([one_event(DUE_AT)]),
            "execute": lambda: app.execute(template(DUE_AT)),
        }
        rates: dict[str, list[float]] = {name: [] for name in write}
        for turn in range(TURNS):
            for name, call in write.items():
                say(f"{THREADS} writing threads, turn {turn + 1} of {TURNS}: {name}")
                rates[name].append(repeat(call, THREADS, TURN_S).rate)
    per_second = {name: median(several) for name, several in rates.items()}
    with_alarm, default, lock_free = per_second["with_alarm"], per_second["default"], per_second["lock_free"]
    yield at_least_times("append with alarm, to default recorder", with_alarm, "events/s", default, 5)
    yield at_least_times("append, to lock-free recorder", per_second["plain"], "events/s", lock_free, 1.2)
    yield at_least("append with alarm, to lock-free recorder", with_alarm, "events/s", None, lock_free)
    name = "execute of a new template, to one insert by the default recorder"
    yield at_least_times(name, per_second["execute"], "events/s", default, 4)


def one_event(due_at: datetime | UnsetType) -> Append[Event]:
    event: NewEvent[Event] = NewEvent(StockIncreased(1, 1), uuid4(), "command", STATE[:300].decode())
    return Append(uuid4(), 0, [event], due_at)


@contextmanager
def library(server_url: str, lock_free: bool) -> Iterator[PostgresApplicationRecorder]:
    """In a database of its own, without our triggers."""
    with throw_away_database(server_url) as url, datastore(url, lock_free) as store:
        recorder = PostgresApplicationRecorder(store)
        recorder.create_table()
        yield recorder


def datastore(url: str, lock_free: bool, schema: str = "") -> PostgresDatastore:
    parts = urlsplit(url)
    (folder,) = parse_qs(parts.query)["host"]
    return PostgresDatastore(
        parts.path[1:],
        folder,
        5432,
        "postgres",
        "",
        pool_size=THREADS,
        max_overflow=4,
        schema=schema,
        enable_db_functions=lock_free,
    )
