"""The alarm table is repaired in place, on a running system."""

from coupon_clock.maintenance.repair import repair_alarms
from examples import EVENING, NOON, a_template, terminate
from history import given_a_history, run_sql


def test_wrong_alarms_become_what_the_log_says_and_right_ones_stay(app, database_url):
    given_a_history(app)
    missing, moved, right = (a_template(valid_until=EVENING) for _ in range(3))
    app.execute_many([missing, moved, right])
    app.run_due()
    run_sql(database_url, "DELETE FROM coupon_clock.alarm WHERE stream_id = %s", missing.template_id)
    run_sql(database_url, "DELETE FROM coupon_clock.alarm WHERE stream_id = %s", moved.template_id)
    run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (%s, %s)", moved.template_id, NOON)
    run_sql(database_url, "UPDATE coupon_clock.alarm SET armed_at = %s WHERE stream_id = %s", NOON, right.template_id)
    run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), now())")

    assert app.maintenance.repair_alarms() == 3

    assert list(app.maintenance.verify()) == []
    with app.database.connection() as connection:
        armed = connection.execute("SELECT stream_id FROM coupon_clock.alarm WHERE armed_at IS NOT NULL").fetchall()
    assert armed == [(right.template_id,)]


def test_endings_of_another_shape_are_made_anew(app, database_url):
    """As after a change of the event, or of the rule that decides it."""
    template = a_template(valid_until=EVENING)
    app.execute(template)
    run_sql(database_url, "UPDATE coupon_clock.alarm SET ending = %s", b'{"type":"CouponTemplate.Ended.0"}')

    (difference,) = app.maintenance.verify_alarms()
    assert (difference.id, difference.column) == (template.template_id, "ending")
    assert app.maintenance.repair_alarms() == 1
    assert list(app.maintenance.verify_alarms()) == []


def test_an_end_that_comes_while_its_alarm_is_being_repaired_is_seen_at_a_second_look(app, database_url):
    template = a_template(valid_until=EVENING)
    app.execute(template)
    run_sql(database_url, "DELETE FROM coupon_clock.alarm")

    def read_and_then_it_ends(stream_ids):
        loaded = app.store.load_many(stream_ids)
        app.execute(terminate(template.template_id))
        return loaded

    repair_alarms(app.store, read_and_then_it_ends)
    assert list(app.maintenance.verify_alarms()) == []
