"""The checker finds nothing in a log that is right, and each way of breaking the promise in a copy of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import time
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chaos import checker
from chaos.following import follow
from chaos.journal import Journal
from chaos.run import is_out
from chaos.servers import LogServers, prepare
from chaos.workload import LONG_AGO, Workload
from coupon_clock.app import Application, Settings
from examples import a_template, change, ending_in, increase, terminate
from waiting import eventually

pytestmark = pytest.mark.xdist_group("checker")

SCHEMA = "coupon_clock"
ENDED, MOVED, STOPPED, OPEN, SHARED = (UUID(int=number) for number in range(1, 6))


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[LogServers]:
    servers = LogServers(server_folder / "checker", [], standby=False)
    yield servers
    servers.end()


@pytest.fixture(scope="module")
def run_folder(server: LogServers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short run without faults, in the server's own database."""
    folder = tmp_path_factory.mktemp("run")
    settings, stop = Settings.load(database_url=server.url), Event()
    Application.migrate(settings)
    prepare(server.url, [SCHEMA])
    journal = Journal(folder / "a1-0.jsonl")
    Journal(folder / "run.jsonl").note("process", name="a1", event="began", time=time() - 60)
    with Application.open(settings) as app, app.running():
        followers = follow(app, server.url, journal, stop)
        given_some_of_everything(Workload(app, server.url, journal, "seed", Event()))
        with server.connect() as connection:
            eventually(lambda: is_out(connection, SCHEMA))
        stop.set()
        for each in followers:
            each.join()
    return folder


def given_some_of_everything(workload: Workload) -> None:
    workload.execute(ending_in(0.5, template_id=ENDED))
    workload.execute(ending_in(3600, template_id=MOVED))
    workload.execute(change(MOVED, ending_in(1).valid_until))
    workload.execute(ending_in(3600, template_id=STOPPED))
    workload.execute(terminate(STOPPED))
    workload.execute(ending_in(3600, template_id=OPEN))
    workload.execute(increase(OPEN))
    workload.execute(a_template(valid_until=LONG_AGO))
    assert workload.execute_together([ending_in(3600, template_id=SHARED), increase(SHARED)])


@pytest.fixture
def broken(server: LogServers, run_folder: Path, tmp_path: Path) -> "Broken":
    """A copy of both, to be changed."""
    name = f"copy_{uuid4().hex}"
    with server.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE postgres".encode())
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    return Broken(make_conninfo(server.url, dbname=name), tmp_path)


class Broken:
    """What a run left, with changes that the product would not have made."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder

    def sql(self, statement: str, *parameters: object) -> None:
        """Past all triggers."""
        with psycopg.connect(self._url) as connection:
            connection.execute("SET session_replication_role TO 'replica'")
            assert connection.execute(statement.encode(), parameters).rowcount > 0, statement

    def note(self, what: str, **more: object) -> None:
        Journal(self._folder / "a1-0.jsonl").note(what, **more)

    def end_of(self, template: UUID) -> float:
        """In seconds of the host."""
        statement = "SELECT valid_until FROM coupon_clock.coupon_template WHERE template_id = %s"
        with psycopg.connect(self._url) as connection:
            (end,) = connection.execute(statement, (template,)).fetchall()
        return float(end[0].timestamp())

    def violations(self) -> list[str]:
        return checker.check(self._url, self._folder, {"a": SCHEMA}).violations

    def broken(self) -> set[str]:
        """Which of P0 to P8."""
        return {violation.split(": ")[1] for violation in self.violations()}


def test_nothing_is_found_where_nothing_was_broken(broken):
    assert broken.violations() == []


# ── what the log tells ───────────────────────────────────────────────────────────────────────────────

COPY_OF = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state, command_id, cause)
SELECT originator_id, originator_version + 1, topic, state, {}, cause FROM coupon_clock.event
 WHERE originator_id = %s ORDER BY originator_version DESC LIMIT 1
"""


def test_a_change_of_validity_that_committed_after_the_end(broken):
    broken.sql("UPDATE coupon_clock.event SET topic = topic WHERE topic LIKE '%%ValidityChanged'")  # a new commit
    assert broken.broken() == {"P0"}


def test_a_second_end(broken):
    broken.sql(COPY_OF.format("NULL"), ENDED)
    assert "P1" in broken.broken()


def test_an_event_that_is_missing_in_between(broken):
    broken.sql("DELETE FROM coupon_clock.event WHERE originator_id = %s AND originator_version = 2", MOVED)
    assert "P1" in broken.broken()


def test_an_end_that_was_stored_early(broken):
    broken.sql("UPDATE coupon_clock.event SET recorded_at = recorded_at - '1 s'::interval WHERE cause <> 'command'")
    assert "P2" in broken.broken()


def test_an_end_that_says_another_time(broken):
    broken.sql(
        "UPDATE coupon_clock.event SET state = convert_to(replace(convert_from(state, 'UTF8'), '20', '19'), 'UTF8')"
        " WHERE originator_id = %s AND topic LIKE '%%Ended'",
        ENDED,
    )
    assert "P2" in broken.broken()


def test_an_end_that_was_stored_late(broken):
    broken.sql("UPDATE coupon_clock.event SET recorded_at = recorded_at + '4 s'::interval WHERE cause <> 'command'")
    assert "P3" in broken.broken()


def test_an_acknowledged_command_that_is_not_there(broken):
    broken.sql("DELETE FROM coupon_clock.event WHERE originator_id = %s AND originator_version = 2", OPEN)
    assert "P4" in broken.broken()


def test_a_callers_row_without_its_event(broken):
    broken.sql("INSERT INTO chaos.callers_row VALUES ('coupon_clock', gen_random_uuid())")
    assert broken.broken() == {"P4"}


def test_an_event_without_its_callers_row(broken):
    broken.sql("DELETE FROM chaos.callers_row")
    assert broken.broken() == {"P4"}


def test_a_command_with_two_effects(broken):
    broken.sql(COPY_OF.format("command_id"), OPEN)
    assert "P5" in broken.broken()


# ── what derives from it ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("follower", ["plain", "transactional"])
def test_an_event_that_a_follower_missed(broken, follower):
    broken.sql("DELETE FROM chaos.followed WHERE follower = %s AND position = 3", follower)
    assert broken.broken() == {"P6"}


def test_an_event_that_a_transactional_follower_has_twice(broken):
    columns = "log, follower, position, template, version"
    copied = f"INSERT INTO chaos.followed ({columns}) SELECT {columns} FROM chaos.followed WHERE follower = %s"
    broken.sql(copied, "plain")
    assert broken.broken() == set()
    broken.sql(copied, "transactional")
    assert broken.broken() == {"P6"}


def test_events_that_a_follower_was_given_out_of_order(broken):
    broken.sql("UPDATE chaos.followed SET position = 9 - position, template = template WHERE follower = 'plain'")
    assert "P6" in broken.broken()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM coupon_clock.alarm",
        "UPDATE coupon_clock.alarm SET due_at = due_at + '1 us'::interval",
        "UPDATE coupon_clock.alarm SET version = version - 1",
        "UPDATE coupon_clock.coupon_template SET stock = stock + 1",
        "UPDATE coupon_clock.coupon_template SET name = 'other' WHERE ended_at IS NULL",
        "UPDATE coupon_clock.shop_month SET lateness_max = lateness_max + 1",
    ],
)
def test_what_is_not_the_fold(broken, statement):
    broken.sql(statement)
    assert broken.broken() == {"P7"}


# ── what was noted ───────────────────────────────────────────────────────────────────────────────────


def test_a_reader_that_was_told_usable_after_the_end(broken):
    broken.note("saw", template=ENDED, began=time(), usable=True)
    assert broken.broken() == {"P0"}


def test_a_reader_that_was_told_over_before_the_end(broken):
    broken.note("saw", template=OPEN, began=time() - 0.001, usable=False)
    assert broken.broken() == {"P0"}


def test_a_reader_to_whom_a_template_came_back_to_life(broken):
    broken.note("saw", template=OPEN, began=time() - 2, usable=False)
    broken.note("saw", template=OPEN, began=time() + 1, usable=True)
    assert any("usable for another" in violation for violation in broken.violations())


def test_an_answer_that_tells_another_place(broken):
    broken.note("acknowledged", command=uuid4(), template=OPEN, version=2, position=1, events=1)
    assert broken.broken() == {"P4"}


def test_a_command_that_failed_and_is_in_the_log(broken):
    command = uuid4()
    broken.sql(
        "UPDATE coupon_clock.event SET command_id = %s WHERE originator_id = %s AND originator_version = 2",
        command,
        SHARED,
    )
    broken.note("asked", command=command, kind="IncreaseStock", wrong=False, transaction=False)
    broken.note("unavailable", command=command)
    assert any("was unavailable, and is in the log" in violation for violation in broken.violations())


def test_a_right_command_that_was_refused(broken):
    broken.note("asked", command=(command := uuid4()), kind="IncreaseStock", wrong=False, transaction=False)
    broken.note("refused", command=command, error="InvalidCommand")
    assert broken.broken() == {"P8"}


def test_what_nobody_expected(broken):
    broken.note("unexpected", by="a1", error="it ended by itself")
    assert broken.broken() == {"P8"}


# ── whose lateness it is ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "target", "excused"),
    [
        ("kill PostgreSQL", "", True),
        ("freeze connections", "a1", True),
        ("freeze connections", "b1", False),
        ("kill the broker", "", False),
        ("hold a snapshot", "", False),
        ("kill a process", "a1", False),
    ],
)
def test_only_what_takes_postgresql_away_excuses(broken, kind, target, excused):
    broken.sql("UPDATE coupon_clock.event SET recorded_at = recorded_at + '4 s'::interval WHERE cause <> 'command'")
    began = broken.end_of(ENDED) - 1
    broken.note("fault", kind=kind, target=target, began=began, ended=began + 9)
    assert ("P3" in broken.broken()) is not excused


def test_while_commits_are_slow_endings_may_be(broken):
    broken.sql("UPDATE coupon_clock.event SET recorded_at = recorded_at + '4 s'::interval WHERE cause <> 'command'")
    broken.note("slow commit", began=broken.end_of(ENDED) - 1)
    assert "P3" not in broken.broken()


def test_an_end_that_had_come_before_its_template_was_stored_is_late_from_then_on(broken):
    broken.sql("UPDATE coupon_clock.event SET topic = topic WHERE originator_id = %s AND originator_version = 1", ENDED)
    broken.sql("UPDATE coupon_clock.event SET recorded_at = recorded_at + '4 s'::interval WHERE cause <> 'command'")
    violations = [violation for violation in broken.violations() if "P3" in violation]
    assert [str(MOVED) in violation for violation in violations] == [True]
