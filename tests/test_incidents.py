"""What goes wrong in an installation, acted out with its real processes: what the operator sees, and that it helps.

Heartbeats are made older by hand, so that nobody has to wait until a process counts as dead.
"""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from alerts import asked, firing
from command_line import coupon_clock, running
from coupon_clock.app import Application, Settings
from coupon_clock.local_servers import ports
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import throw_away_database
from examples import ending_in
from waiting import eventually

UNREADABLE = (
    "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 'Newer', '{}')"
)


@pytest.fixture
def sql(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def status(database_url: str) -> set[str]:
    """The names of what needs a person."""
    shown = coupon_clock("status", "--json", database_url=database_url)
    assert shown.returncode in (0, 1), shown.stderr
    found = {finding["name"] for finding in json.loads(shown.stdout)["findings"]}
    assert shown.returncode == bool(found)
    return found


@contextmanager
def process(database_url: str, sql: psycopg.Connection, *roles: str) -> Iterator[tuple[Popen[str], int]]:
    """One that runs these roles, and its port."""
    port = ports.free_block(1)
    options = [option for role in roles for option in ("--role", role)]
    before = sql.execute("SELECT FROM coupon_clock.process").rowcount
    with running(database_url, "run", "--port", str(port), *options) as started:
        eventually(lambda: sql.execute("SELECT FROM coupon_clock.process").rowcount > before)
        yield started, port


def a_minute_later(sql: psycopg.Connection, pid: int) -> None:
    sql.execute(
        "UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE pid = %s", (pid,)
    )


def answer(port: int, path: str) -> int | None:
    """None where nobody answers within a second."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as given:
            return int(given.status)
    except HTTPError as refused:
        return refused.code
    except (URLError, TimeoutError, OSError):
        return None


def test_a_process_that_was_killed_is_missed_and_another_takes_its_place(database_url, sql):
    with process(database_url, sql) as (killed, port):
        eventually(lambda: answer(port, "/livez") == answer(port, "/readyz") == 200)
        assert status(database_url) == set()
        killed.kill()
        killed.wait()
    a_minute_later(sql, killed.pid)
    assert status(database_url) == {"no_relay", "no_consumer", "no_reconciler", "no_projector"}
    assert "no process runs" in coupon_clock("doctor", database_url=database_url).stdout.lower()
    with process(database_url, sql):
        assert status(database_url) == set()


@pytest.mark.parametrize("role", ["relay", "consumer", "reconciler", "projector"])
def test_the_alert_for_each_role_fires_once_its_only_process_was_killed(database_url, sql, role):
    others = [other for other in ("reconciler", "projector") if other != role][:1]
    alert = f"CouponClockNo{role.capitalize()}"
    pair = ("relay", "consumer") if role in ("relay", "consumer") else (role,)  # these two need RocketMQ to be apart
    with process(database_url, sql, *others) as (_, port), process(database_url, sql, *pair) as (killed, _):
        eventually(lambda: alert not in firing(asked(port, "/metrics")[1]))
        killed.kill()
        killed.wait()
        a_minute_later(sql, killed.pid)
        eventually(lambda: alert in firing(asked(port, "/metrics")[1]))


def test_a_process_that_is_frozen_answers_no_probe_and_counts_as_dead(database_url, sql):
    with process(database_url, sql) as (frozen, port):
        eventually(lambda: answer(port, "/livez") == 200)
        frozen.send_signal(signal.SIGSTOP)
        assert answer(port, "/livez") is None
        a_minute_later(sql, frozen.pid)
        assert "no_reconciler" in status(database_url)
        frozen.send_signal(signal.SIGCONT)
        eventually(lambda: status(database_url) == set())


def test_without_a_relay_ends_come_by_the_reconciler_and_status_says_so(live, database_url, sql):
    with process(database_url, sql, "reconciler", "projector"):
        template = ending_in(9)
        live.execute(template)
        assert {"no_relay", "no_consumer", "unarmed"} <= status(database_url)
        why = coupon_clock("explain", str(template.template_id), database_url=database_url).stdout
        assert "coupon-clock run --role relay" in why
        eventually(lambda: not live.is_usable(template.shop_number, template.template_id))
        eventually(lambda: len(live.history(template.shop_number, template.template_id)) == 2)
    shown = coupon_clock("explain", str(template.template_id), database_url=database_url)
    assert "by the reconciler" in shown.stdout


def test_an_event_that_nobody_can_read_is_named_by_every_command(live, database_url, sql):
    template = ending_in(1)
    live.execute(template)
    sql.execute(UNREADABLE, (template.template_id,))
    with process(database_url, sql):
        eventually(lambda: {"stuck", "quarantine"} <= status(database_url))
        doctor = coupon_clock("doctor", database_url=database_url)
        assert "cannot be ended" in doctor.stdout
        why = coupon_clock("explain", str(template.template_id), database_url=database_url)
        assert "cannot be read by this version" in why.stdout
        assert "install a version" in why.stdout or "correct what it names" in why.stdout


def test_a_database_that_takes_no_writes_any_more_is_not_ready_and_is_named(database_url, sql):
    name = Identifier(sql.info.dbname)
    with process(database_url, sql) as (_, port):
        eventually(lambda: answer(port, "/readyz") == 200)
        sql.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only TO on").format(name))
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        sql.execute(f"{others} AND pid <> pg_backend_pid()")
        eventually(lambda: answer(port, "/readyz") == 503)
        assert answer(port, "/livez") == 200
        assert "read_only" in status(database_url)
        assert "read-only by default" in coupon_clock("doctor", database_url=database_url).stdout
        sql.execute("SET default_transaction_read_only TO off")
        sql.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
        sql.execute(f"{others} AND pid <> pg_backend_pid()")
        eventually(lambda: answer(port, "/readyz") == 200)


def test_too_many_connections_is_one_sentence(database_url, sql):
    name = Identifier(sql.info.dbname)
    sql.execute("CREATE ROLE few_connections LOGIN CONNECTION LIMIT 0")
    try:
        sql.execute(SQL("GRANT CONNECT ON DATABASE {} TO few_connections").format(name))
        limited = database_url.replace("user=postgres", "user=few_connections")
        assert limited != database_url
        for command in ("status", "doctor"):
            shown = coupon_clock(command, database_url=limited)
            assert "too many connections" in shown.stdout + shown.stderr
            assert "Traceback" not in shown.stderr
    finally:
        sql.execute(SQL("REVOKE ALL ON DATABASE {} FROM few_connections").format(name))
        sql.execute("DROP ROLE few_connections")


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────

LARGEST_FILE = 17 << 20
"""A segment of the write-ahead log fits in, and the table that is filled does not grow any more."""
FILL = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
SELECT gen_random_uuid(), 1, 'Filler', convert_to(repeat('x', 1500), 'UTF8') FROM generate_series(1, 13000)
"""


@contextmanager
def no_larger_files() -> Iterator[None]:
    """Of what is started meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_ends_are_overdue_and_come_once_there_is_space(server_folder):
    postgres = LocalPostgres(server_folder / "full")
    postgres.start()
    try:
        with throw_away_database(postgres.url) as url:
            templates = [ending_in(12) for _ in range(200)]  # more than the last page has room for
            with Application.open(Settings.load(database_url=url)) as app:
                app.execute_many(templates)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(FILL)
            postgres.stop()
            with no_larger_files():
                postgres.start()
            with psycopg.connect(url, autocommit=True) as connection, process(url, connection):
                eventually(lambda: "overdue" in status(url), within=40)
                postgres.stop()
                postgres.start()
                eventually(lambda: "overdue" not in status(url))
            report = json.loads(coupon_clock("verify", "promise", "--json", database_url=url).stdout)
            assert (report["ended"], report["violation_count"]) == ({"expired": 200}, 0)
    finally:
        postgres.kill()
