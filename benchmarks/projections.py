"""How fast projections are rebuilt, followed, queried and verified, beside the library's runner and PostgreSQL alone.

    python benchmarks/projections.py [--json] [--events 1000000] [--rows 1000000] [--ends 1000000] [--scale]

Four events a template, of which one creates and one ends it. Everything that is compared runs on one server in one run.
"""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event as StopEvent
from threading import Thread
from time import perf_counter, sleep

import psutil
import psycopg
from library_projection import library_rate
from measure import (
    Figure,
    application,
    arguments,
    at_least,
    at_least_times,
    at_most,
    quantile,
    say,
    servers,
    tell,
    template,
)
from projected_ends import projected_ends

from coupon_clock.app import Application
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS, Filters
from coupon_clock.projections.engine import tables
from coupon_clock.projections.engine.projector import Projector
from coupon_clock.projections.rebuild.merge import merge
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, SwapBlocked
from coupon_clock.projections.rebuild.run import only_run
from coupon_clock.testing import throw_away_database

EVENTS_A_TEMPLATE = 4
LAST_EVENT_AFTER = 5_000
FILL = 50_000

# As time-ordered UUIDs (version 7) are.
ID = (
    "(lpad(to_hex(1767225600000 + n), 12, '0') || '7' || substr(md5(n::text), 1, 3)"
    " || '8' || substr(md5(n::text), 4, 15))"
)

# Templates are created one after the other, and each lives on for a while: so the events of a stream lie apart.
GENERATE = f"""
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state, recorded_at, command_id)
SELECT {ID}::uuid, version, 'CouponTemplate.' || kind,
       convert_to('{{"type":"CouponTemplate.' || kind || '","shop_number":' || 1 + n %% 100 || CASE kind
           WHEN 'Created' THEN ',"template_id":"' || {ID}::uuid || '","name":"Spring sale ' || n || '","source":"shop",'
               '"target":"all_products","goods":null,"discount":{{"type":"ThresholdAmount","minimum_spend":1000,'
               '"amount_off":300}},"receive_rule":{{"limit_per_person":10,"usage_instructions":"One a person"}},'
               '"consume_rule":{{"hours_after_claim":48,"explanation_of_unmet_conditions":""}},'
               '"valid_from":"2026-01-01T00:00:00Z","valid_until":"2026-02-01T00:00:00Z","stock":100'
           WHEN 'StockIncreased'  THEN ',"by":50'
           WHEN 'ValidityChanged' THEN ',"valid_from":"2026-01-01T00:00:00Z","valid_until":"2026-03-01T00:00:00Z"'
           WHEN 'Ended'           THEN ',"reason":"expired","ended_at":"2026-03-01T00:00:00Z"'
       END || '}}', 'UTF8'), '2026-03-01T00:00:00.004321Z', gen_random_uuid()
  FROM (SELECT step - later AS n, version, kind
          FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS step,
               (VALUES (1, 'Created', 0), (2, 'StockIncreased', 50), (3, 'ValidityChanged', 500),
                       (4, 'Ended', {LAST_EVENT_AFTER})) AS life (version, kind, later)
         WHERE step - later BETWEEN 1 AND %(templates)s
         ORDER BY step, version) AS happened
"""

SHOP_OF_MANY = 7
MANY_ROWS = f"""
INSERT INTO coupon_clock.coupon_template
SELECT md5(n::text)::uuid, CASE WHEN n <= 10000 THEN {SHOP_OF_MANY} ELSE 100 + n %% 500 END, 'Sale ' || n, 'shop',
       'all_products', NULL, '{{"type": "FixedAmount", "amount_off": 1}}', '{{"limit_per_person": 1}}', '{{}}',
       '2026-01-01Z', now() + (n %% 2 * 60 - 30) * interval '1 day', 1, NULL, NULL, 1, n
  FROM generate_series(1, %s) AS n
"""

LIMIT_OUT = """
COPY (SELECT originator_id, originator_version, topic, state, notification_id, recorded_at, command_id, cause, actor
        FROM coupon_clock.event
       ORDER BY originator_id, originator_version) TO STDOUT (FORMAT BINARY)
"""
LIMIT_IN = "CREATE TABLE limit_rows AS SELECT * FROM coupon_clock.coupon_template"
LIMIT_INDEXES = """
ALTER TABLE limit_rows ADD PRIMARY KEY (template_id);
CREATE INDEX ON limit_rows (shop_number, template_id);
CREATE INDEX ON limit_rows (shop_number, valid_until, template_id);
ANALYZE limit_rows;
DROP TABLE limit_rows;
"""


def main() -> int:
    parser = arguments(__doc__, MEASURES)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=200_000, help="in the table that pages are taken of")
    parser.add_argument("--ends", type=int, default=200_000, help="that are projected; a million takes ten minutes")
    parser.add_argument(
        "--scale", action="store_true", help="also the time an event at 10 million events; takes minutes"
    )
    given = parser.parse_args()
    with servers("memory") as running:
        figures = (f for name in given.measures or MEASURES for f in MEASURES[name](running.postgres.url, given))
        return tell(figures, given.json)


def on_a_log(server_url: str, given: Namespace) -> Iterator[Figure]:
    with filled(server_url, given.events) as app:
        yield from rebuilding(app, given.events)
        yield memory(app)
        yield from reading(app)
        yield verifying(app, given.events)
        yield projecting(app)
    if given.scale:
        yield scaling(server_url)


# ── rebuild ──────────────────────────────────────────────────────────────────────────────────────


def rebuilding(app: Application, events: int) -> Iterator[Figure]:
    say("rebuilding")
    app.maintenance.rebuild()
    rate = events / app.maintenance.rebuild().seconds
    say("COPY out, INSERT … SELECT, indexes")
    limit = events / only_postgresql(app)
    say("the library's ProjectionRunner")
    with throw_away_database(app.settings.database()) as url:
        library = library_rate(url, 5_000)
    yield at_least("rebuild, with indexes", rate, "events/s", 200_000)
    yield at_least_times("rebuild, to COPY out and INSERT … SELECT with indexes", rate, "events/s", limit, 0.4)
    yield at_least_times("rebuild, to the library's ProjectionRunner", rate, "events/s", library, 110)


def only_postgresql(app: Application) -> float:
    """Seconds for what no rebuild can do without: everything out, as many rows in, their indexes."""
    with psycopg.connect(app.settings.database(), autocommit=True) as connection:
        started = perf_counter()
        with connection.cursor() as cursor, cursor.copy(LIMIT_OUT) as copy:
            for _ in copy:
                pass
        connection.execute(LIMIT_IN)
        connection.execute(LIMIT_INDEXES)
        return perf_counter() - started


def memory(app: Application) -> Figure:
    """Of the command and its workers together, at their largest."""
    say("memory of a rebuild")
    process, largest = rebuild_command(app), 0
    while process.poll() is None:
        largest = max(largest, resident(process.pid))
        sleep(0.02)
    return at_most("rebuild, memory of all its processes", largest / 1e6, "MB", 300)


def rebuild_command(app: Application) -> subprocess.Popen[bytes]:
    environment = os.environ | {"COUPON_CLOCK_DATABASE_URL": app.settings.database()}
    command = [sys.executable, "-m", "coupon_clock.cli", "rebuild"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def resident(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def reading(app: Application) -> Iterator[Figure]:
    """The longest query of a whole rebuild tells more of how busy the machine is than of the rebuild."""
    say("readers during a rebuild")
    yield at_most("longest query during a rebuild", longest_query(app, rebuild_command(app)), "ms", None)
    replay_without_merge(app)
    for what, spoilt in (("none", "false"), ("1 %", "random() < 0.01"), ("all", "true")):
        say(f"merging, {what} of the rows differ")
        yield at_most(f"merge of all rows, {what} differ", merging(app, spoilt), "s", None)


def longest_query(app: Application, process: subprocess.Popen[bytes]) -> float:
    """In milliseconds, of a reader that never pauses until that process ends."""
    longest = 0.0
    while process.poll() is None:
        started = perf_counter()
        app.page(1, limit=1)
        longest = max(longest, perf_counter() - started)
    assert process.returncode == 0
    return longest * 1e3


def replay_without_merge(app: Application) -> None:
    with psycopg.connect(app.settings.database()) as holder, suppress(SwapBlocked):
        holder.execute("LOCK TABLE coupon_clock.coupon_template IN SHARE MODE")
        app.maintenance.rebuild(options=RebuildOptions(swap_patience_s=0))


def scaling(server_url: str) -> Figure:
    seconds = {}
    for events in (100_000, 10_000_000):
        with filled(server_url, events) as app:
            say(f"rebuilding {events:,} events")
            seconds[events] = min(app.maintenance.rebuild().seconds for _ in range(2)) / events
    ratio = seconds[10_000_000] / seconds[100_000]
    return at_most("time an event at 10 million, to that at 0.1 million", ratio, "times", 1.2)


def merging(app: Application, spoilt: str) -> float:
    """In seconds, of the transaction that projectors wait for; rolled back afterwards."""
    with only_run(app.store, TEMPLATE_ROWS) as run, run.connection.transaction(force_rollback=True):
        run.connection.execute(f"UPDATE coupon_clock.coupon_template SET position = -1 WHERE {spoilt}".encode())
        ((build,),) = run.execute("SELECT build FROM {schema}.checkpoint WHERE name = %s", run.shadow)
        started = perf_counter()
        assert merge(run, build) is not None
        return perf_counter() - started


# ── verify ───────────────────────────────────────────────────────────────────────────────────────


def verifying(app: Application, events: int) -> Figure:
    say("verifying")
    started = perf_counter()
    found = sum(1 for _ in app.maintenance.verify_rows(TEMPLATE_ROWS.name))
    assert not found, f"{found} differences"
    rows = events / EVENTS_A_TEMPLATE
    return at_least("verify, four events a row", rows / (perf_counter() - started), "rows/s", 60_000)


# ── the live projector ───────────────────────────────────────────────────────────────────────────

PROJECTED = 100_000
A_SECOND = 500
SECONDS = 10


def projecting(app: Application) -> Figure:
    say("projecting from the beginning")
    with app.database.connection() as connection:
        connection.execute("DROP TABLE coupon_clock.coupon_template")
        connection.execute("DELETE FROM coupon_clock.checkpoint WHERE name = 'coupon_template'")
        for statement in tables.missing(connection, app.database.schema, TEMPLATE_ROWS):
            connection.execute(statement)
    projector = Projector(app.store, TEMPLATE_ROWS)
    started, followed = perf_counter(), 0
    while followed < PROJECTED and (counts := projector.run_once()):
        followed += counts["followed"]
    return at_least("live projector", followed / (perf_counter() - started), "events/s", 20_000)


def until_visible(server_url: str, given: Namespace) -> Iterator[Figure]:
    """From the moment execute returns until find would show it, at a steady rate of commands."""
    with application(server_url) as app:
        yield commit_to_visible_row(app)


def commit_to_visible_row(app: Application) -> Figure:
    say(f"commit to visible row, {SECONDS} s at {A_SECOND} events/s")
    stop = StopEvent()
    committed: dict[int, float] = {}
    visible: dict[int, float] = {}

    def watch() -> None:
        while not stop.wait(0.001):
            with app.database.connection() as connection:
                found = connection.execute(
                    "SELECT position FROM coupon_clock.checkpoint WHERE name = 'coupon_template'", prepare=True
                ).fetchone()
            seen_at = perf_counter()
            for position in [p for p in list(committed) if found and p <= found[0] and p not in visible]:
                visible[position] = seen_at

    with app.running(["projector"]), beside(stop, watch):
        started = perf_counter()
        for n in range(A_SECOND * SECONDS):
            position = app.execute(template(datetime.now(UTC) + timedelta(days=1))).position
            committed[position] = perf_counter()
            sleep(max(0.0, started + (n + 1) / A_SECOND - perf_counter()))
        while len(visible) < len(committed):
            sleep(0.01)
    took = [max(0.0, visible[position] - committed[position]) for position in committed]
    return at_most("commit to visible row, p99", quantile(took, 0.99) * 1e3, "ms", 100)


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


def paging(server_url: str, given: Namespace) -> Iterator[Figure]:
    say(f"pages of a shop of 10,000 among {given.rows:,} rows")
    with application(server_url) as app:
        with psycopg.connect(app.settings.database(), autocommit=True) as connection:
            connection.execute(MANY_ROWS, (given.rows,))
            connection.execute("ANALYZE coupon_clock.coupon_template")
        yield at_most("page, p99", p99_of_pages(app, Filters()), "ms", 5)
        yield at_most("page, active only, p99", p99_of_pages(app, Filters(state="active")), "ms", 5)
        yield at_most("page, name contains, p99", p99_of_pages(app, Filters(name_contains="99")), "ms", None)


def p99_of_pages(app: Application, filters: Filters) -> float:
    """In milliseconds, over three walks through the shop."""
    took = []
    for _ in range(3):
        after = None
        while True:
            started = perf_counter()
            page = app.page(SHOP_OF_MANY, filters, after)
            took.append(perf_counter() - started)
            after = page.after
            if after is None:
                break
    return quantile(took, 0.99) * 1e3


# ── what the above needs ─────────────────────────────────────────────────────────────────────────


@contextmanager
def filled(server_url: str, events: int) -> Iterator[Application]:
    """On a log of so many events."""
    templates = events // EVENTS_A_TEMPLATE
    with application(server_url) as app:
        last = templates + LAST_EVENT_AFTER
        with psycopg.connect(app.settings.database(), autocommit=True) as connection:
            for first in range(1, last + 1, FILL):
                say(f"filling the log, step {first:,} of {last:,}")
                through = min(first + FILL - 1, last)
                connection.execute(GENERATE, {"first": first, "last": through, "templates": templates})
            connection.execute("VACUUM ANALYZE coupon_clock.event")
        yield app


@contextmanager
def beside(stop: StopEvent, work: Callable[[], None]) -> Iterator[None]:
    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def many_ends(server_url: str, given: Namespace) -> Iterator[Figure]:
    return projected_ends(server_url, given.ends)


MEASURES: dict[str, Callable[[str, Namespace], Iterator[Figure]]] = {
    "rebuild": on_a_log,
    "visible": until_visible,
    "pages": paging,
    "ends": many_ends,
}


if __name__ == "__main__":
    sys.exit(main())
