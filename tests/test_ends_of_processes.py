"""How processes end: in bounded time, whatever hangs; and by themselves where a loop died, so that somebody notices."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from command_line import command, environment
from coupon_clock.app import Application, LoopDied, Settings
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from examples import SHOP, ending_in
from silent_proxy import silent_proxy
from waiting import eventually

LONGEST_STOP_S = 20
MOST_SENT_AT_ONCE = 3_000

PATCHED = """
import sys
from coupon_clock.cli import main
from coupon_clock.infrastructure.scheduling.{module} import {name}
def die(*arguments):
    raise {error}
{name}.{method} = die
sys.argv = ["coupon-clock", "run"]
main()
"""


# ── a loop that dies ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "name", "method", "error"),
    [
        ("reconciler", "Reconciler", "run_once", "SystemExit"),
        ("expiry_consumer", "ExpiryConsumer", "receive", "GeneratorExit"),
    ],
)
def test_a_process_ends_with_code_1_where_a_loop_died(database_url, module, name, method, error):
    program = PATCHED.format(module=module, name=name, method=method, error=error)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment(database_url), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert "died action=die" in ran.stderr
    assert f"({error})" in ran.stderr


def test_a_thread_that_dies_at_the_stop_shows_in_the_code_too(database_url):
    program = PATCHED.format(module="relay", name="Relay", method="release", error="SystemExit")
    with started([sys.executable, "-c", program], database_url, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        eventually(lambda: b"running action=start" in process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONGEST_STOP_S) == 1


def test_a_host_is_interrupted_and_told_which_loop_died(live, monkeypatch):
    monkeypatch.setattr(Reconciler, "run_once", dies)
    began = monotonic()
    with pytest.raises(LoopDied, match="reconciler"), live.running():
        Event().wait(30)
    assert monotonic() - began < 20


def test_a_host_may_say_what_happens_when_a_loop_dies_and_the_others_go_on(live, monkeypatch):
    monkeypatch.setattr(Reconciler, "run_once", dies)
    told: list[LoopDied] = []
    with pytest.raises(LoopDied, match="reconciler"):  # noqa: PT012, SIM117 - at the end of the block
        with live.running(died=told.append):
            eventually(lambda: told)
            live.execute(template := ending_in(0.5))
            eventually(lambda: ended(live, template))


def test_an_error_of_the_block_is_not_hidden_by_a_loop_that_died(live, monkeypatch):
    monkeypatch.setattr(Reconciler, "run_once", dies)
    told: list[LoopDied] = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117 - of the block
        with live.running(died=told.append):
            eventually(lambda: told)
            raise ZeroDivisionError


# ── a log that nobody reads ──────────────────────────────────────────────────────────────────────


def test_a_process_whose_log_nobody_reads_ends_what_came_due_while_postgresql_was_away(live, database_url):
    reading, writing = os.pipe()
    os.close(reading)
    with started(command("run"), database_url, stderr=writing) as process:
        os.close(writing)
        live.execute(first := ending_in(0.5))
        eventually(lambda: ended(live, first))
        live.execute(template := ending_in(1.5))
        live.close()
        with away(database_url):
            sleep(max(0.0, (template.valid_until + timedelta(seconds=1) - datetime.now(UTC)).total_seconds()))

        with Application.open(live.settings) as app:
            eventually(lambda: ended(app, template))
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONGEST_STOP_S) == 0


# ── a stop ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rocketmq
@pytest.mark.xdist_group("servers of their own")
def test_a_process_stops_in_time_while_postgresql_and_the_broker_hang(server_folder: Path, database_url: str):
    server = LocalRocketMQ(server_folder / "hanging")
    server.start()
    server.provision("coupon-expiry-stop", "coupon-clock-stop")
    with silent_proxy(database_url) as proxy, Application.open(Settings.load(database_url=database_url)) as app:
        settings = {
            "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": server.endpoints,
            "COUPON_CLOCK_ROCKETMQ_TOPIC": "coupon-expiry-stop",
            "COUPON_CLOCK_ROCKETMQ_GROUP": "coupon-clock-stop",
        }
        try:
            with started(command("run"), proxy.url, stderr=subprocess.DEVNULL, **settings) as process:
                app.execute(template := ending_in(1))
                eventually(lambda: ended(app, template))
                hang(server)
                app.execute_many([ending_in(1_000) for _ in range(MOST_SENT_AT_ONCE)])
                eventually(lambda: armed(app) > 0)
                proxy.stay_silent()
                process.send_signal(signal.SIGTERM)
                assert process.wait(LONGEST_STOP_S) == 0
        finally:
            server.kill()


# ── what the above needs ─────────────────────────────────────────────────────────────────────────


def hang(server: LocalRocketMQ) -> None:
    process = server.process()
    assert process
    process.suspend()


def dies(reconciler: Reconciler) -> None:
    raise SystemExit


@contextmanager
def started(
    arguments: list[str], database_url: str, stderr: int, **settings: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Killed at the end, if it still runs."""
    process = subprocess.Popen(arguments, env=environment(database_url) | settings, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@contextmanager
def away(database_url: str) -> Iterator[None]:
    """PostgreSQL, for all who use this database."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, dbname="postgres", autocommit=True) as connection:
        allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        connection.execute(allow.format(Identifier(str(name)), SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            connection.execute(allow.format(Identifier(str(name)), SQL("true")))


def ended(app: Application, template) -> bool:
    return len(app.history(SHOP, template.template_id)) == 2


def armed(app: Application) -> int:
    with app.database.connection() as connection:
        return connection.execute("SELECT FROM coupon_clock.alarm WHERE armed_at IS NOT NULL").rowcount
