"""Each kind of trouble is seen from the database alone, and says what to do."""

import json
from datetime import timedelta
from uuid import uuid4

from command_line import coupon_clock
from coupon_clock.cli.status import sparkline
from coupon_clock.infrastructure.loop import Ticks
from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.processes import Heartbeat
from coupon_clock.maintenance.findings import findings
from examples import MORNING, NOON, a_template, ending_in

ALL_ROLES = ["relay", "consumer", "reconciler", "projector"]


def names(app) -> list[str]:
    return [finding.name for finding in app.maintenance.findings(app.maintenance.status())]


def with_processes(app, roles=ALL_ROLES) -> None:
    Heartbeat(app.database, list(roles), Ticks()).run_once()


def sql(app, statement: str, *parameters: object) -> None:
    with app.database.connection() as connection:
        connection.execute(statement, parameters)


# ── what needs a person ──────────────────────────────────────────────────────────────────────────


def test_without_processes_each_role_is_missed(app):
    assert names(app) == ["no_relay", "no_consumer", "no_reconciler", "no_projector"]
    with_processes(app, ["relay", "consumer"])
    assert names(app) == ["no_reconciler", "no_projector"]


def test_nothing_is_found_where_all_runs(app):
    with_processes(app)
    app.execute(a_template())
    app.run_due()
    assert names(app) == []


def test_a_process_whose_heart_has_stopped_counts_for_nothing(app):
    with_processes(app)
    sql(app, "UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '1 minute'")
    assert "no_reconciler" in names(app)
    assert app.maintenance.status().processes[0].is_dead


def test_a_loop_that_hangs_is_named_though_its_heart_beats(app):
    with_processes(app)
    sql(app, """UPDATE coupon_clock.process SET loops = '{"relay": 61.5, "consumer": 0}'""")
    (hung,) = app.maintenance.findings(app.maintenance.status())
    assert (hung.name, "relay" in hung.what) == ("hung", True)


def test_what_is_overdue_or_ends_soon_without_a_message_is_counted(app):
    with_processes(app)
    app.execute_many([a_template() for _ in range(3)])
    app.clock.set(NOON - timedelta(seconds=5))
    assert names(app)[0] == "unarmed"
    app.clock.set(NOON + timedelta(minutes=1))
    status = app.maintenance.status()
    assert (status.alarms.overdue, status.alarms.overdue_since) == (3, NOON)
    assert names(app)[0] == "overdue"


def test_a_template_that_cannot_be_ended_is_told_with_the_reason(app):
    with_processes(app)
    app.execute(a_template())
    app.clock.set(NOON + timedelta(minutes=1))
    sql(app, "UPDATE coupon_clock.alarm SET stuck_since = %s, stuck_until = %s, stuck_by = 'a reason'", NOON, NOON)
    stuck = app.maintenance.findings(app.maintenance.status())[0]
    assert (stuck.name, "a reason" in stuck.what) == ("stuck", True)


def test_followers_that_stop_or_fall_far_behind_are_told_apart(app):
    with_processes(app)
    app.execute(a_template())
    app.clock.advance(minutes=2)
    assert names(app) == ["far_behind", "far_behind"]
    app.run_due()
    sql(app, "UPDATE coupon_clock.checkpoint SET stopped_by = 'an error', stopped_at = now() WHERE name = 'shop_month'")
    assert names(app) == ["stopped"]


def test_quarantine_and_rejected_messages_are_counted(app):
    with_processes(app)
    sql(app, "INSERT INTO coupon_clock.quarantine VALUES ('coupon_template', %s, 1, 1, 'unreadable')", uuid4())
    app.runtime.deadlines.rejected.add([(Delivery("1", b"?", None), "no JSON")] * 3)
    app.clock.set(MORNING)
    assert names(app) == ["quarantine", "rejected"]
    (rejected,) = app.maintenance.status().rejected
    assert (rejected.reason, rejected.messages) == ("no JSON", 3)


def test_a_broker_that_is_away_and_a_server_that_takes_no_writes(app):
    with_processes(app)
    away = app.settings.model_copy(update={"rocketmq_endpoints": "127.0.0.1:1"})
    app.database.settings = away
    status = app.maintenance.status()
    assert [finding.name for finding in findings(status, away)] == ["broker_away"]


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def test_what_is_ahead_is_counted_by_the_minute(app):
    with_processes(app)
    app.execute_many([a_template(valid_until=MORNING + timedelta(minutes=n)) for n in (1, 3, 3, 3, 90)])
    ahead = app.maintenance.status().ahead
    assert ahead.minutes[:5] == [0, 1, 0, 3, 0]
    assert (ahead.peak, ahead.peak_in) == (3, 3)
    assert sparkline([0, 1, 8]) == " ▁█"


def test_lateness_is_told_with_the_share_of_the_reconciler(app):
    app.execute_many([a_template() for _ in range(4)])
    app.clock.set(NOON + timedelta(seconds=3))
    app.run_due()
    five_minutes, _, day = app.maintenance.status().lateness
    assert (five_minutes.ended, five_minutes.worst, day.ended) == (4, 3.0, 4)


def test_the_command_says_what_to_do_and_exits_with_1(live, database_url):
    live.execute(ending_in(3600))
    shown = coupon_clock("status", database_url=database_url)
    assert shown.returncode == 1
    assert "! no process runs the reconciler. coupon-clock run --role reconciler" in shown.stdout
    quiet = coupon_clock("status", "--quiet", database_url=database_url)
    assert all(line.startswith("!") for line in quiet.stdout.splitlines())

    with live.running():
        as_json = coupon_clock("status", "--json", database_url=database_url)
    assert as_json.returncode == 0, as_json.stdout
    told = json.loads(as_json.stdout)
    assert told["findings"] == []
    assert sorted(told["processes"][0]["roles"]) == sorted(ALL_ROLES)
    assert told["alarms"]["in_an_hour"] + told["alarms"]["in_a_day"] >= 1


def test_counts_stop_at_a_bound_however_many_alarms_there_are(app):
    with app.database.connection() as connection:
        connection.execute(
            """INSERT INTO coupon_clock.alarm (stream_id, due_at)
               SELECT gen_random_uuid(), %s::timestamptz + n * interval '1 ms' FROM generate_series(1, 300000) AS n""",
            (MORNING,),
        )
        connection.execute("ANALYZE coupon_clock.alarm")
    status = app.maintenance.status()
    assert status.alarms.in_an_hour == 100_000
    assert status.alarms.about > 200_000
