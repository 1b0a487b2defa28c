"""Why a template has ended, will end or has not: in a sentence, with the command that helps."""

from datetime import timedelta
from uuid import uuid4

import pytest

from command_line import coupon_clock
from coupon_clock.infrastructure.loop import Ticks
from coupon_clock.infrastructure.processes import Heartbeat
from examples import MORNING, NOON, a_template, increase, terminate


@pytest.fixture
def template(app):
    """Created while all loops run somewhere."""
    Heartbeat(app.database, ["relay", "consumer", "reconciler", "projector"], Ticks()).run_once()
    template = a_template()
    app.execute(template)
    return template


def explained(app, template) -> tuple[str, str | None]:
    found = app.maintenance.explain(template.template_id)
    return found.why, found.do


def sql(app, statement: str, *parameters: object) -> None:
    with app.database.connection() as connection:
        connection.execute(statement, parameters)


def nobody_runs(app) -> None:
    sql(app, "DELETE FROM coupon_clock.process")


# ── in order ─────────────────────────────────────────────────────────────────────────────────────


def test_before_its_end_it_says_who_will_end_it_and_when(app, template):
    why, do = explained(app, template)
    assert ("2026-03-01T12:00:00.000Z" in why, "the relay publishes its message at 2026-03-01T11" in why, do) == (
        True,
        True,
        None,
    )
    app.clock.set(NOON - timedelta(minutes=30))
    assert "about to publish" in explained(app, template)[0]
    sql(app, "UPDATE coupon_clock.alarm SET armed_at = %s", MORNING)
    assert "RocketMQ has had its message since 2026-03-01T08:00" in explained(app, template)[0]


def test_its_whole_life_is_shown_with_what_took_it_in(app, template):
    app.execute(increase(template.template_id))
    app.run_due()
    app.execute(terminate(template.template_id, actor="Ada"))
    found = app.maintenance.explain(template.template_id)
    assert [event.topic.split(".")[1] for event in found.events] == ["Created", "StockIncreased", "Ended"]
    assert found.events[-1].actor == "Ada"
    assert {each.name: each.has_all for each in found.followed} == {"coupon_template": False, "shop_month": False}
    assert (found.alarm, found.do) == (None, None)
    assert "nothing is due any more: CouponTemplate.Ended" in found.why


def test_after_its_end_it_says_how_late_and_by_whom(app, template):
    app.clock.set(NOON + timedelta(milliseconds=250))
    app.run_due()
    assert explained(app, template)[0].endswith("by the consumer, 250.0 ms after it was due")


# ── what keeps it ────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_id_is_no_stream_of_this_log(app):
    found = app.maintenance.explain(uuid4())
    assert (found.events, "no such stream" in found.why) == ([], True)


def test_without_processes_nobody_ends_it(app, template):
    nobody_runs(app)
    assert explained(app, template)[1] == "coupon-clock run"
    app.clock.set(NOON + timedelta(minutes=1))
    why, do = explained(app, template)
    assert ("no process runs" in why, do) == (True, "coupon-clock run")


def test_an_alarm_that_is_missing_or_wrong_is_repaired_by_a_command(app, template):
    sql(app, "UPDATE coupon_clock.alarm SET due_at = due_at + interval '1 hour'")
    why, do = explained(app, template)
    assert ("and the log says 2026-03-01T12:00" in why, do) == (True, "coupon-clock rebuild alarm")
    sql(app, "DELETE FROM coupon_clock.alarm")
    why, do = explained(app, template)
    assert ("has no alarm" in why, do) == (True, "coupon-clock rebuild alarm")


def test_one_that_cannot_be_ended_says_why_and_when_it_is_tried_again(app, template):
    later = NOON + timedelta(minutes=2)
    app.clock.set(NOON + timedelta(minutes=1))
    sql(app, "UPDATE coupon_clock.alarm SET stuck_since = %s, stuck_until = %s, stuck_by = 'a reason.'", NOON, later)
    why, do = explained(app, template)
    assert ("cannot be ended: a reason. it is tried again at" in why, do) == (True, "correct what it names")


def test_an_open_transaction_that_holds_it_is_named_as_such(app, template):
    app.clock.set(NOON + timedelta(minutes=1))
    with app.database.connect() as other, other.transaction():
        other.execute("SELECT FROM coupon_clock.alarm FOR UPDATE")
        why, do = explained(app, template)
    assert ("an open transaction holds it" in why, "end that transaction" in do) == (True, True)


def test_an_event_that_cannot_be_read_is_shown_as_it_is_stored(app, template):
    sql(
        app,
        """INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
           VALUES (%s, 2, 'Newer.Thing', '\\x7b22\\x1b')""".replace("\\x1b", "1b"),
        template.template_id,
    )
    found = app.maintenance.explain(template.template_id)
    assert found.events[-1].topic == "Newer.Thing"
    assert found.unreadable is not None
    shown = coupon_clock("explain", str(template.template_id), database_url=app.settings.database())
    assert "unreadable" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_the_command_needs_no_shop_and_exits_with_1_where_something_is_wrong(app, template, database_url):
    nobody_runs(app)
    shown = coupon_clock("explain", str(template.template_id), database_url=database_url)
    assert shown.returncode == 1, shown.stderr
    assert shown.stdout.splitlines()[-1] == "! coupon-clock run"
    assert coupon_clock("explain", "not-an-id", database_url=database_url).returncode == 2
