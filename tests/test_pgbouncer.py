"""Behind a real PgBouncer in transaction mode, where a session is whoever's it was last."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from threading import Event
from uuid import UUID

import psycopg
import pytest

from command_line import coupon_clock
from coupon_clock.app import (
    Application,
    CouponClockError,
    CreateCouponTemplate,
    Envelope,
    Outcome,
    RebuildOptions,
    RebuildRunning,
    Settings,
)
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.postgres.errors import PoolerWithoutPreparedStatements
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import open_test_application, throw_away_database
from examples import MORNING, SHOP, ending_in, increase
from history import given_a_history, rows, value
from other_settings import HOSTILE_SCHEMA, MOST_VALUES, all_at_once, assignments, other_values
from pgbouncer import PROGRAM, SERVER_CONNECTIONS, pgbouncer, through
from programs import in_background
from waiting import eventually
from walk import walk

pytestmark = pytest.mark.skipif(not PROGRAM, reason="PGBOUNCER names no PgBouncer: part of make test-long")

KILLED = Path(__file__).parent / "rebuild_killed.py"
SCHEMAS = ("coupon_clock", "second")
THREADS, COMMANDS = 20, 40


@pytest.fixture(scope="module")
def address(server_folder: Path, postgres: LocalPostgres) -> Iterator[str]:
    with pgbouncer(server_folder / "pgbouncer", postgres) as address:
        yield address


@pytest.fixture
def pooled_url(address: str, database_url: str) -> str:
    return through(address, database_url)


@contextmanager
def two_schemas(url: str) -> Iterator[list[Application]]:
    both = [Settings.load(database_url=url, database_schema=schema) for schema in SCHEMAS]
    for settings in both:
        Application.migrate(settings)
    with Application.open(both[0]) as first, Application.open(both[1]) as second:
        yield [first, second]


@contextmanager
def a_neighbour(database_url: str, pooled_url: str) -> Iterator[None]:
    """Another client of the pool, who sets all that there is, again and again."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(HOSTILE_SCHEMA)
        values = other_values(connection, ["user"])
    sets = [assignments("", all_at_once(values, number)) for number in range(MOST_VALUES)]

    def set_all(stop: Event) -> None:
        with psycopg.connect(pooled_url, autocommit=True) as connection:
            while not stop.wait(0.001):
                for one in sets:
                    connection.execute(one)

    with in_background(set_all):
        yield


def ids_in(database_url: str, schema: str) -> set[UUID]:
    with psycopg.connect(database_url) as connection:
        return {i for (i,) in connection.execute(f"SELECT originator_id FROM {schema}.event")}


def test_commands_of_two_schemas_on_one_pool_are_never_mixed_up(database_url, pooled_url):
    with a_neighbour(database_url, pooled_url), two_schemas(pooled_url) as apps:

        def create_some(number: int) -> list[tuple[int, UUID]]:
            chance, made = Random(number), []
            for _ in range(COMMANDS):
                which, template = chance.randrange(2), ending_in(3600)
                apps[which].execute(template)
                apps[which].execute(increase(template.template_id))
                assert apps[which].is_usable(SHOP, template.template_id)
                made.append((which, template.template_id))
            return made

        with ThreadPoolExecutor(THREADS) as threads:
            made = [each for some in threads.map(create_some, range(THREADS)) for each in some]

    for which, schema in enumerate(SCHEMAS):
        assert ids_in(database_url, schema) == {template_id for schema, template_id in made if schema == which}
    assert value(database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


def test_all_comes_to_the_same_as_without_a_pooler(postgres, database_url, pooled_url):
    with throw_away_database(postgres.url) as url, open_test_application(url, MORNING) as app:
        undisturbed = walk(app)
    with a_neighbour(database_url, pooled_url), open_test_application(pooled_url, MORNING) as app:
        assert walk(app) == undisturbed


def test_templates_end_on_time_while_all_loops_run(database_url, pooled_url):
    templates = [ending_in(2 + number / 20) for number in range(20)]
    seen: list[Envelope] = []
    with a_neighbour(database_url, pooled_url), Application.open(Settings.load(database_url=pooled_url)) as app:
        with app.running(), in_background(lambda stop: app.follow("a follower", seen.extend, stop=stop)):
            app.execute_many(templates)
            eventually(lambda: sum(isinstance(envelope.event, Ended) for envelope in seen) == 20)
            eventually(lambda: all(app.find(SHOP, template.template_id).ended_at for template in templates))
        report = app.maintenance.verify_promise()
        assert (report.violations, list(app.maintenance.verify())) == ([], [])
    assert max(distribution.worst for distribution in report.lateness.values()) < timedelta(seconds=2)


def test_migrate_twice_at_once_makes_the_tables_once(pooled_url):
    settings = Settings.load(database_url=pooled_url, database_schema="second")
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(lambda _: len(Application.migrate(settings)), range(2))) == [0, 1]


def test_the_command_line_works(pooled_url):
    for command in "migrate", "rebuild", "verify":
        assert coupon_clock(command, database_url=pooled_url).returncode == 0


@pytest.mark.parametrize("step", ["plan", "chunk"])
def test_a_rebuild_that_was_killed_is_gone_on_with(database_url, pooled_url, step):
    with open_test_application(pooled_url, MORNING) as app:
        given_a_history(app)
        made = rows(database_url)
        died = subprocess.run(
            [sys.executable, str(KILLED), step, "coupon_template"],
            env=os.environ | {"COUPON_CLOCK_DATABASE_URL": pooled_url},
            check=False,
        )
        assert died.returncode == -signal.SIGKILL
        eventually(lambda: resumed(app), within=60)
        assert rows(database_url) == made


def resumed(app: Application) -> bool:
    """Its lease may have some seconds left."""
    try:
        app.maintenance.rebuild(options=RebuildOptions(events_a_chunk=10, jobs=2, resume=True))
    except RebuildRunning:
        return False
    return True


def test_nothing_of_ours_stays_in_the_sessions_of_the_pool(database_url, pooled_url):
    with open_test_application(pooled_url, MORNING) as app:
        walk(app)
        with pooled_sessions(pooled_url) as sessions:
            set_by_us = [each for session in sessions for each in session.execute(SET_IN_THE_SESSION)]
        locks = value(database_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert (set_by_us, locks) == ([], 0)


SET_IN_THE_SESSION = """
SELECT name, setting
  FROM pg_settings
 WHERE source = 'session' AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone')
"""


@contextmanager
def pooled_sessions(pooled_url: str) -> Iterator[list[psycopg.Connection]]:
    """All of them, each held by a transaction."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(psycopg.connect(pooled_url)) for _ in range(SERVER_CONNECTIONS)]
        assert len({session.execute("SELECT pg_backend_pid()").fetchone() for session in sessions}) == len(sessions)
        yield sessions


def test_a_pooler_without_prepared_statements_is_named_and_nothing_goes_astray(server_folder, postgres, database_url):
    with pgbouncer(server_folder / "unprepared", postgres, "max_prepared_statements = 0") as address:
        with two_schemas(through(address, database_url)) as apps, ThreadPoolExecutor(THREADS) as threads:
            commands = [(number % 2, ending_in(3600)) for number in range(200)]
            said = list(threads.map(lambda given: outcome(apps[given[0]], given[1]), commands))
        refused = [each for each in said if isinstance(each, CouponClockError)]
    assert "max_prepared_statements" in str(refused[0])
    assert {type(each) for each in refused} == {PoolerWithoutPreparedStatements}
    for which, schema in enumerate(SCHEMAS):
        assert ids_in(database_url, schema) == {
            template.template_id
            for (schema, template), each in zip(commands, said, strict=True)
            if schema == which and not isinstance(each, CouponClockError)
        }


def outcome(app: Application, command: CreateCouponTemplate) -> Outcome | CouponClockError:
    try:
        return app.execute(command)
    except CouponClockError as error:
        return error
