"""`verify alarms` finds each alarm that is missing, surplus, due at another time, or has another ending."""

from uuid import uuid4

from examples import EVENING, NOON, a_template, increase
from history import run_sql


def columns(app) -> dict[object, set[str]]:
    found: dict[object, set[str]] = {}
    for difference in app.maintenance.verify_alarms():
        found.setdefault(difference.id, set()).add(difference.column)
    return found


def test_alarms_that_differ_from_the_log_are_found(app, database_url):
    missing, moved, right = (a_template(valid_until=NOON) for _ in range(3))
    app.execute_many([missing, moved, right])
    app.execute(increase(right.template_id, by=1))
    run_sql(database_url, "DELETE FROM coupon_clock.alarm WHERE stream_id = %s", missing.template_id)
    run_sql(database_url, "UPDATE coupon_clock.alarm SET due_at = %s WHERE stream_id = %s", EVENING, moved.template_id)
    run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (%s, %s)", surplus := uuid4(), NOON)

    assert columns(app) == {missing.template_id: {"due_at"}, moved.template_id: {"due_at"}, surplus: {"due_at"}}


def test_an_ending_that_follows_another_version_is_found(app, database_url):
    template = a_template(valid_until=NOON)
    app.execute(template)
    run_sql(database_url, "UPDATE coupon_clock.alarm SET version = 7")
    assert columns(app) == {template.template_id: {"version"}}


def test_a_missing_ending_is_found(app, database_url):
    template = a_template(valid_until=NOON)
    app.execute(template)
    run_sql(database_url, "UPDATE coupon_clock.alarm SET version = NULL, topic = NULL, ending = NULL")
    assert columns(app) == {template.template_id: {"version", "topic", "ending"}}
