"""What it costs to end many templates at one instant: ours, PostgreSQL alone, and a plain table. No loops, no broker.

For each count one database is filled, and everything that is compared starts from a copy of it in which all is due.
The steps from an UPDATE of a plain table to ours are measured one by one: they tell where the rest of the time goes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from uuid import UUID, uuid4

import psycopg
from measure import Figure, at_most_times, create, say, seconds, sleep_until
from psycopg.conninfo import conninfo_to_dict

from coupon_clock.app import Application, Settings
from coupon_clock.infrastructure.command_handling.due import DUE_WAIT, PAGE
from coupon_clock.infrastructure.event_store.recorder import DueStream
from coupon_clock.local_servers.servers import LocalServers
from coupon_clock.testing import in_database, throw_away_database

TARGETS = {10_000: 4.0, 100_000: 1.6}
A_MILLION, TARGET_OF_A_MILLION = 1_000_000, 1.3
ROUNDS = 3
CREATED_PER_S = 4_000
"""Fewer than are created in a second, so that all are there before the instant."""

BARE = """
WITH due AS MATERIALIZED (
     SELECT stream_id, version, topic, ending FROM coupon_clock.alarm WHERE due_at <= now() ORDER BY stream_id),
     ended AS (
     INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state, command_id, cause)
     SELECT stream_id, version + 1, topic, ending, gen_random_uuid(), 'reconciler' FROM due ORDER BY stream_id
     RETURNING originator_id)
DELETE FROM coupon_clock.alarm USING ended WHERE stream_id = originator_id
"""
ENDED = "SELECT count(*) FROM coupon_clock.event WHERE topic = 'CouponTemplate.Ended'"

# What somebody without a log would have: the fields in one row, and the index of the alarms.
PLAIN = (
    "CREATE TABLE plain AS SELECT stream_id AS id, due_at AS valid_until, false AS ended, state AS fields"
    " FROM coupon_clock.event JOIN coupon_clock.alarm ON stream_id = originator_id",
    "ALTER TABLE plain ADD PRIMARY KEY (id)",
    "CREATE INDEX ON plain (valid_until, id) WHERE NOT ended",
    "CREATE TABLE history (id uuid, version bigint, what text, state bytea, recorded_at timestamptz DEFAULT now(),"
    " PRIMARY KEY (id, version))",
    "VACUUM ANALYZE plain",
)
UPDATE = "UPDATE plain SET ended = true WHERE NOT ended AND valid_until <= now()"
UPDATE_WITH_HISTORY = f"""
WITH ended AS ({UPDATE} RETURNING id, valid_until)
INSERT INTO history (id, version, what, state)
SELECT id, 2, 'Ended', convert_to('{{"reason":"expired","ended_at":"' || valid_until || '"}}', 'UTF8') FROM ended
"""
PLAIN_ENDED = "SELECT count(*) FROM plain WHERE ended"


def endings(million: bool) -> Callable[[LocalServers], Iterator[Figure]]:
    targets = TARGETS | ({A_MILLION: TARGET_OF_A_MILLION} if million else {})

    def measure(running: LocalServers) -> Iterator[Figure]:
        for count, target in targets.items():
            yield from endings_of(running.postgres.url, count, target)

    return measure


def endings_of(server_url: str, count: int, target: float) -> Iterator[Figure]:
    rounds = 1 if count >= A_MILLION else ROUNDS
    took: dict[str, list[float]] = {name: [] for name in STEPS}
    with due_templates(server_url, count) as source:
        for turn in range(rounds):
            for name, step in STEPS.items():
                say(f"{count:,} ends, turn {turn + 1} of {rounds}: {name}")
                with copy_of(server_url, source) as url:
                    took[name].append(step(url, count))
    medians = {name: median(several) for name, several in took.items()}
    before: float | None = None
    for name, value in medians.items():
        ratio = round(value / before, 2) if before else None
        yield Figure(f"{count:,} ends: {name}", round(value, 3), "s", before and round(before, 3), ratio)
        before = value
    yield at_most_times(
        f"{count:,} prepared endings, in pages", medians["handle_due"], "s", medians["one bare statement"], target
    )


# ── the steps: each takes the URL of a database in which so many are due, and returns seconds ────


def update(url: str, count: int) -> float:
    return plainly(url, UPDATE, PLAIN, PLAIN_ENDED, count)


def update_with_history(url: str, count: int) -> float:
    return plainly(url, UPDATE_WITH_HISTORY, PLAIN, PLAIN_ENDED, count)


def bare_statement(url: str, count: int) -> float:
    return plainly(url, BARE, (), ENDED, count)


def plainly(url: str, statement: str, prepare: Sequence[str], ended: str, count: int) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        for each in (*prepare, "CHECKPOINT"):
            connection.execute(each)
        took = seconds(lambda: connection.execute(statement))
        assert connection.execute(ended).fetchone() == (count,)
        return took


def pages(url: str, count: int) -> float:
    """The SQL function alone, and its rows on their way back."""
    return by_application(url, end_in_pages, count)


def end_in_pages(app: Application) -> None:
    last: DueStream | None = DueStream(UUID(int=0), datetime(1, 1, 1, tzinfo=UTC))
    while last is not None:
        last = app.store.recorder.end_due(last, PAGE, timedelta(0), (), "reconciler", DUE_WAIT).last


def handle_due(url: str, count: int) -> float:
    return by_application(url, lambda app: app.runtime.deadlines.handle_due([], "reconciler"), count)


def by_application(url: str, end: Callable[[Application], object], count: int) -> float:
    with (
        Application.open(Settings.load(database_url=url)) as app,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        connection.execute("CHECKPOINT")
        took = seconds(lambda: end(app))
        assert connection.execute(ENDED).fetchone() == (count,)
        return took


STEPS = {
    "UPDATE of a plain table": update,
    "the same with a history": update_with_history,
    "one bare statement": bare_statement,
    "end_due in pages": pages,
    "handle_due": handle_due,
}
"""Each does what the one before does, and more: log and alarms with their indexes and triggers instead of a history;
pages, each a transaction, whose rows come back; lateness of each, and what is asked for."""


# ── what they start from ─────────────────────────────────────────────────────────────────────────


@contextmanager
def due_templates(server_url: str, count: int) -> Iterator[str]:
    """A database in which so many are due, all at one instant."""
    say(f"creating {count:,} templates")
    with throw_away_database(server_url) as url:
        instant = datetime.now(UTC) + timedelta(seconds=2 + count / CREATED_PER_S)
        with Application.open(Settings.load(database_url=url)) as app:
            create(app, [instant] * count)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE coupon_clock.alarm, coupon_clock.event")
        sleep_until(instant)
        yield url


@contextmanager
def copy_of(server_url: str, source_url: str) -> Iterator[str]:
    name = f"coupon_clock_benchmark_{uuid4().hex}"
    source = conninfo_to_dict(source_url)["dbname"]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
    try:
        yield in_database(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
