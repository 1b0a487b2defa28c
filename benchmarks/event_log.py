"""How fast the log takes events beside the eventsourcing library's own recorders, and what its followers miss.

    python benchmarks/event_log.py [--json] [--events 10000000] [writers] [held] [followers] [bulk] [execute] [await]
                                  [library]

Everything that is compared runs in turns on one server in one run, so that ratios hold where absolute figures do not.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from time import perf_counter
from uuid import UUID, uuid4

from followers import missed
from held_template import beside_a_held_template
from library_applications import library_applications
from measure import (
    Figure,
    application,
    arguments,
    at_least,
    at_least_times,
    at_most,
    at_most_times,
    say,
    servers,
    tell,
    template,
)
from msgspec.structs import replace
from writers import STATE, writers

from coupon_clock.app import Application, CreateCouponTemplate, Outcome, TerminateCouponTemplate
from coupon_clock.async_app import AsyncApplication
from coupon_clock.infrastructure.postgres.binary_cursor import BinaryCursor

FILL = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
SELECT gen_random_uuid(), 1, 'CouponTemplate.Created', %s FROM generate_series(1, %s)
"""


def main() -> int:
    parser = arguments(__doc__, MEASURES)
    parser.add_argument("--events", type=int, default=1_000_000, help="in the log that execute is timed on")
    given = parser.parse_args()
    measures = {name: MEASURES[name] for name in given.measures or MEASURES}
    if "execute" in measures:
        measures["execute"] = partial(one_execute, events=given.events)
    with servers("memory") as running:
        figures = (figure for measure in measures.values() for figure in measure(running.postgres.url))
        return tell(figures, given.json)


# ── awaited ──────────────────────────────────────────────────────────────────────────────────────

TASKS, AWAIT_ROUNDS = 1_000, 10


def awaited(server_url: str) -> Iterator[Figure]:
    """In turns with execute_many of as many."""
    with application(server_url) as app:
        say(f"{TASKS:,} tasks await a command each, in turns with execute_many")
        in_bulk, in_tasks = zip(*(turn(app) for _ in range(AWAIT_ROUNDS)), strict=True)
    yield at_least_times(f"{TASKS:,} tasks, commands", median(in_tasks), "1/s", median(in_bulk), 0.4)


def turn(app: Application) -> tuple[float, float]:
    """Commands a second: of execute_many, and awaited by as many tasks."""

    async def tasks(commands: Sequence[CreateCouponTemplate]) -> float:
        async with AsyncApplication.open(app.settings) as other:
            await other.execute(a_template())
            began = perf_counter()
            await asyncio.gather(*map(other.execute, commands))
            return TASKS / (perf_counter() - began)

    bulk = all_done(app, [a_template() for _ in range(TASKS)])
    return bulk, asyncio.run(tasks([a_template() for _ in range(TASKS)]))


# ── execute_many ─────────────────────────────────────────────────────────────────────────────────

BULK = 40_000


def in_bulk(server_url: str) -> Iterator[Figure]:
    """One process, one thread."""
    with application(server_url, database_connections=2) as app:
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
    with (
        application(server_url, database_connections=2) as empty,
        application(server_url, database_connections=2) as full,
    ):
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
        name = f"execute, p50 at {events:,} events to an empty log"
        yield at_most_times(name, p50, "ms", reference, 1.2)


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

    class Counting(BinaryCursor):
        def execute(self, query, *arguments, **options):  # type: ignore[no-untyped-def]
            sent.append(query)
            return super().execute(query, *arguments, **options)

    with app.database.connection() as one, app.database.connection() as two:
        connections = (one, two)
    for connection in connections:
        connection.cursor_factory = Counting
    app.execute(a_template())
    return len(sent)


MEASURES: dict[str, Callable[[str], Iterator[Figure]]] = {
    "writers": writers,
    "held": beside_a_held_template,
    "followers": missed,
    "bulk": in_bulk,
    "execute": partial(one_execute, events=1_000_000),
    "await": awaited,
    "library": library_applications,
}


if __name__ == "__main__":
    sys.exit(main())
