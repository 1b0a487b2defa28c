"""How fast the log takes events beside the eventsourcing library's own recorders, and what its followers miss.

    python benchmarks/event_log.py [--json] [--events 10000000]

Everything that is compared runs in turns on one server in one run, so that ratios hold where absolute figures do not.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from statistics import median
from threading import Event as Signal
from threading import Thread
from time import perf_counter, sleep
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from measure import Figure, arguments, at_least, at_most, say, servers, tell, template
from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from psycopg import Cursor
from psycopg.rows import TupleRow

from coupon_clock.app import Application, CreateCouponTemplate, Outcome, Settings, TerminateCouponTemplate
from coupon_clock.domain.events import Event, StockIncreased
from coupon_clock.infrastructure.event_store.log_reader import LogReader
from coupon_clock.infrastructure.event_store.store import Append, EventStore, NewEvent
from coupon_clock.testing import throw_away_database

THREADS = 16
TURNS = 5
TURN_S = 2.0
STATE = b"s" * 420  # a Created has about that size
DUE_AT = datetime(2100, 1, 1, tzinfo=UTC)

FILL = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
SELECT gen_random_uuid(), 1, 'CouponTemplate.Created', %s FROM generate_series(1, %s)
"""
HOLD = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', 's')"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="in the log that execute is timed on")
    given = parser.parse_args()
    with servers("memory") as running:
        return tell(figures(running.postgres.url, given.events), given.json)


def figures(server_url: str, events: int) -> Iterator[Figure]:
    yield from writers(server_url)
    yield missed(server_url)
    yield from in_bulk(server_url)
    yield from one_execute(server_url, events)


# ── 16 writing threads ───────────────────────────────────────────────────────────────────────────


def writers(server_url: str) -> Iterator[Figure]:
    with (
        library(server_url, lock_free=False) as default,
        library(server_url, lock_free=True) as lock_free,
        application(server_url, THREADS + 4) as app,
    ):
        write: dict[str, Callable[[], object]] = {
            "default": lambda: default.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)]),
            "lock_free": lambda: lock_free.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)]),
            "plain": lambda: app.store.append([one_event(UNSET)]),
            "with_alarm": lambda: app.store.append([one_event(DUE_AT)]),
            "execute": lambda: app.execute(template(DUE_AT)),
        }
        rates: dict[str, list[float]] = {name: [] for name in write}
        for turn in range(TURNS):
            for name, call in write.items():
                say(f"{THREADS} writing threads, turn {turn + 1} of {TURNS}: {name}")
                rates[name].append(rate(call))
    per_second = {name: median(several) for name, several in rates.items()}
    yield times("append with alarm, to default recorder", per_second["with_alarm"], per_second["default"], 5)
    yield times("append, to lock-free recorder", per_second["plain"], per_second["lock_free"], 1.2)
    yield times("append with alarm, to lock-free recorder", per_second["with_alarm"], per_second["lock_free"])
    yield times(
        "execute of a new template, to one insert by the default recorder",
        per_second["execute"],
        per_second["default"],
        4,
    )


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


# ── execute_many ─────────────────────────────────────────────────────────────────────────────────

BULK = 40_000


def in_bulk(server_url: str) -> Iterator[Figure]:
    """One process, one thread."""
    with application(server_url, 2) as app:
        say(f"creating and ending {BULK:,} templates")
        app.execute_many([a_template() for _ in range(3_000)])
        creates = [a_template() for _ in range(BULK)]
        yield at_least("execute_many, new templates", all_done(app, creates), "templates/s", 20_000)
        ends = [TerminateCouponTemplate(command_id=uuid4(), template_id=c.template_id, shop_number=1) for c in creates]
        yield at_least("execute_many, endings", all_done(app, ends), "templates/s", 25_000)


def all_done(app: Application, commands: list[CreateCouponTemplate] | list[TerminateCouponTemplate]) -> float:
    started = perf_counter()
    outcomes = app.execute_many(commands)
    seconds = perf_counter() - started
    assert all(isinstance(outcome, Outcome) and outcome.events for outcome in outcomes)
    return len(commands) / seconds


def a_template() -> CreateCouponTemplate:
    """With an id as we make them, version 7."""
    now = datetime.now(UTC)
    milliseconds = int(now.timestamp() * 1000)
    number = milliseconds << 80 | 0x7 << 76 | random.getrandbits(12) << 64 | 0b10 << 62 | random.getrandbits(62)
    return replace(template(now + timedelta(days=1)), template_id=UUID(int=number))


# ── one execute ──────────────────────────────────────────────────────────────────────────────────

SAMPLES = 1_000


def one_execute(server_url: str, events: int) -> Iterator[Figure]:
    with application(server_url, 2) as empty, application(server_url, 2) as full:
        yield at_most("round trips of one execute", round_trips(empty), "statements", 2)
        fill(full, events)
        seconds: dict[Application, list[float]] = {empty: [], full: []}
        say(f"{SAMPLES:,} executes each, at an empty log and at {events:,} events")
        for _ in range(SAMPLES):
            for app, several in seconds.items():
                command = a_template()
                started = perf_counter()
                app.execute(command)
                several.append(perf_counter() - started)
        p50, reference = (1_000 * median(seconds[app]) for app in (full, empty))
        ratio = p50 / reference
        name = f"execute, p50 at {events:,} events to an empty log"
        yield Figure(name, round(p50, 3), "ms", round(reference, 3), round(ratio, 2), "≤ 1.2 times", ratio <= 1.2)


def fill(app: Application, events: int) -> None:
    step = 100_000
    with app.database.connection() as connection:
        connection.execute("SET statement_timeout = 0")
        for done in range(0, events, step):
            say(f"filling the log: {done:,} of {events:,}")
            connection.execute(FILL, (STATE, min(step, events - done)))
        connection.execute("VACUUM ANALYZE coupon_clock.event")
        connection.execute("CHECKPOINT")
        connection.execute("RESET statement_timeout")


def round_trips(app: Application) -> int:
    sent: list[object] = []

    class Counting(Cursor[TupleRow]):
        def execute(self, query, *arguments, **options):  # type: ignore[no-untyped-def]
            sent.append(query)
            return super().execute(query, *arguments, **options)

    with app.database.connection() as one, app.database.connection() as two:
        connections = (one, two)
    for connection in connections:
        connection.cursor_factory = Counting
    app.execute(a_template())
    return len(sent)


if __name__ == "__main__":
    sys.exit(main())
