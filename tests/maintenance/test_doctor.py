"""`coupon-clock doctor` names what is wrong with the command that fixes it, and says nothing else is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from coupon_clock.app import Application, Settings
from coupon_clock.deadlines import ROLES
from coupon_clock.infrastructure.loop import Ticks
from coupon_clock.infrastructure.processes import Heartbeat
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from coupon_clock.maintenance.doctor import examine
from coupon_clock.testing import ManualClock, throw_away_database
from examples import ending_in
from history import append_unreadable, run_sql
from test_follow import following
from waiting import eventually

HEALTHY = [
    *("log", "append", "clock", "processes"),
    *("reconciler", "relay", "followers", "quarantine", "snapshots", "broker"),
]


@pytest.fixture
def database_url(postgres: LocalPostgres) -> Iterator[str]:
    """Where all loops run somewhere."""
    with throw_away_database(postgres.url) as url:
        with Application.open(Settings.load(database_url=url)) as app:
            Heartbeat(app.database, list(ROLES), Ticks()).run_once()
        yield url


def findings(settings: Settings) -> dict[str, str]:
    return {diagnosis.part: diagnosis.says for diagnosis in examine(settings) if not diagnosis.ok}


def parts(settings: Settings) -> list[str]:
    return [diagnosis.part for diagnosis in examine(settings)]


def test_with_nothing_wrong_it_finds_nothing(settings):
    assert findings(settings) == {}
    assert parts(settings) == HEALTHY


@pytest.mark.parametrize(
    ("database_url", "says"),
    [
        ("", "COUPON_CLOCK_DATABASE_URL is not set"),
        ("postgresql://nobody:sesame@127.0.0.1:1/nothing", "PostgreSQL cannot be used"),
    ],
)
def test_a_postgresql_that_cannot_be_reached_is_the_only_finding(database_url, says):
    found = findings(Settings.load(database_url=database_url))
    assert list(found) == ["postgresql"]
    assert says in found["postgresql"]
    assert "sesame" not in found["postgresql"]


def test_missing_tables_are_named_with_the_command_that_makes_them(postgres):
    assert "coupon-clock migrate" in findings(Settings.load(database_url=postgres.url))["log"]


def test_a_sequence_that_would_break_followers_is_named_with_the_statement_that_mends_it(settings, database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER SEQUENCE coupon_clock.event_notification_id_seq CACHE 10")
    assert "CACHE 1" in findings(settings)["log"]


def test_a_follower_that_stands_at_an_event_it_cannot_read_is_named(settings, live, database_url):
    append_unreadable(database_url)
    with following(live, "mails", list.copy):
        eventually(lambda: "mails" in findings(settings).get("followers", ""))
    assert "coupon-clock followers list" in findings(settings)["followers"]


def test_a_template_that_cannot_be_ended_is_named_with_what_keeps_it(settings, live, database_url):
    template = ending_in(0.5)
    live.execute(template)
    insert = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 't', '?')"
    run_sql(database_url, insert, template.template_id)
    with live.running(["reconciler"]):
        eventually(lambda: "1 templates are due and cannot be ended" in findings(settings).get("reconciler", ""))
    assert "cannot be read by this version" in findings(settings)["reconciler"]


def test_clocks_that_disagree_are_named(settings, database_url):
    ManualClock(settings, datetime.now(UTC) - timedelta(minutes=1))
    assert " s ahead of PostgreSQL's" in findings(settings)["clock"]


def test_roles_that_no_process_runs_are_named_with_the_command_that_starts_them(settings, database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE coupon_clock.process SET roles = '{consumer,reconciler,projector}'")
    assert "coupon-clock run --role relay" in findings(settings)["processes"]
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '1 minute'")
    assert "relay, consumer, reconciler, projector" in findings(settings)["processes"]


def test_an_append_is_tried_and_leaves_nothing(settings, database_url):
    assert "append" not in findings(settings)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT FROM coupon_clock.event").rowcount == 0
        connection.execute("ALTER TABLE coupon_clock.alarm ADD CONSTRAINT none CHECK (false)")
    assert "none" in findings(settings)["append"]


def test_who_keeps_an_old_snapshot_is_named(settings, database_url):
    with psycopg.connect(database_url, application_name="report") as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        assert "snapshots" not in findings(settings)
        found = {each.part: each for each in examine(settings, oldest_snapshot=timedelta(0))}["snapshots"]
        assert not found.ok
        assert f"session {reader.info.backend_pid} of postgres, report" in found.says


def test_overdue_alarms_are_named_with_the_role_that_is_missing(settings, database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), '2026-01-01T00:00:00Z')")
    assert findings(settings)["reconciler"].startswith(
        "1 templates should have been ended already, the first at 2026-01-01"
    )
    assert "--role reconciler" in findings(settings)["reconciler"]


def test_alarms_that_no_broker_was_reported_are_named_with_the_role_that_is_missing(live, settings):
    template = ending_in(8)
    live.execute(template)
    assert "--role relay" in findings(settings)["relay"]

    live.runtime.deadlines.alarms.claim(timedelta(minutes=1), 10)
    assert "relay" not in findings(settings)


def test_the_command_prints_a_line_a_part_and_fails_where_something_is_wrong(database_url):
    done = doctor(database_url, "--json")
    assert done.returncode == 0
    assert [json.loads(line)["part"] for line in done.stdout.splitlines()] == HEALTHY

    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), '2026-01-01T00:00:00Z')")
    done = doctor(database_url)
    assert done.returncode == 1
    assert "FIX   reconciler: 1 templates" in done.stdout


def doctor(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COUPON_CLOCK_")}
    return subprocess.run(
        [sys.executable, "-m", "coupon_clock.cli", "doctor", *arguments],
        env=kept | {"COUPON_CLOCK_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_rocketmq_that_is_nowhere_is_named(settings):
    found = findings(settings.model_copy(update={"rocketmq_endpoints": "127.0.0.1:1"}))
    assert list(found) == ["topic", "group"]
    assert "127.0.0.1:1" in found["topic"]


@pytest.mark.rocketmq
@pytest.mark.parametrize(
    ("other", "part", "says"),
    [
        ({}, None, None),
        ({"rocketmq_topic": "no-such-topic"}, "topic", "mqadmin updateTopic"),
        ({"rocketmq_group": "no-such-group"}, "group", "mqadmin updateSubGroup"),
        ({"arming_window": timedelta(days=9).total_seconds()}, "topic", "COUPON_CLOCK_ARMING_WINDOW"),
    ],
)
def test_what_rocketmq_lacks_is_named_with_the_command_that_makes_it(
    settings: Settings, rocketmq: LocalRocketMQ, other: dict[str, object], part: str | None, says: str | None
) -> None:
    rocketmq.provision("doctor", "doctor")
    healthy = {
        "rocketmq_endpoints": rocketmq.endpoints,
        "rocketmq_topic": "doctor",
        "rocketmq_group": "doctor",
    }
    found = findings(settings.model_copy(update=healthy | other))
    if part is None or says is None:
        assert found == {}
    else:
        assert says in found[part]


@pytest.mark.rocketmq
def test_its_message_sets_nothing_aside(rocketmq: LocalRocketMQ, settings: Settings) -> None:
    rocketmq.provision("doctored", "doctored")
    names = {"rocketmq_endpoints": rocketmq.endpoints, "rocketmq_topic": "doctored", "rocketmq_group": "doctored"}
    with Application.open(settings.model_copy(update=names | {"arming_window": 1})) as app, app.running():
        assert findings(app.settings) == {}
        template = ending_in(3)
        app.execute(template)
        eventually(lambda: not app.is_usable(template.shop_number, template.template_id))
        assert app.maintenance.rejected(1) == []
