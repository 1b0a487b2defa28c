"""`verify` finds each difference between the log and what derives from it, and nothing else."""

from datetime import timedelta
from uuid import UUID

import pytest

from coupon_clock.maintenance.verify.rows import NotInParts, Part
from coupon_clock.projections.registry import UnknownProjection
from examples import EVENING, NOON, SHOP, a_template
from history import given_a_history, run_sql


def differences(app, name: str | None = None, **part):
    operations, part = app.maintenance, Part(**part)
    if name == "alarm":
        found = operations.verify_alarms(part)
    else:
        found = operations.verify_rows(name, part) if name else operations.verify(part)
    return [(d.table, d.id, d.column, d.is_value, d.should_be) for d in found]


def test_a_whole_read_model_has_no_difference(app):
    given_a_history(app)
    assert differences(app) == []


def test_a_read_model_that_is_behind_is_no_difference(app):
    given_a_history(app)
    app.execute(a_template(valid_until=EVENING))
    assert differences(app) == []


@pytest.mark.parametrize(
    ("column", "spoiled", "found"),
    [
        ("stock", "7", 7),
        ("name", "'x'", "x"),
        ("goods", "'x'", "x"),
        ("valid_until", f"'{NOON}'::timestamptz + '1 microsecond'", NOON + timedelta(microseconds=1)),
        ("reason", "'x'", "x"),
        ("position", "position + 1", None),
        ("discount", """discount || '{"more": 1}'""", None),
        ("receive_rule", """receive_rule - 'limit_per_person'""", None),
    ],
)
def test_each_column_that_differs_is_named(app, database_url, column, spoiled, found):
    template, _ = given_a_history(app)[:2]
    run_sql(
        database_url, f"UPDATE coupon_clock.coupon_template SET {column} = {spoiled} WHERE template_id = %s", template
    )

    ((table, row_id, named, is_value, should_be),) = differences(app)

    assert (table, row_id, named) == ("coupon_template", template, column)
    assert is_value != should_be
    assert found is None or is_value == found


def test_missing_and_surplus_rows_and_alarms_are_found_at_either_end(app, database_url):
    ids = sorted(given_a_history(app))
    app.execute(later := a_template(valid_until=EVENING))
    run_sql(database_url, "DELETE FROM coupon_clock.coupon_template WHERE template_id = ANY(%s)", [ids[0], ids[-1]])
    run_sql(database_url, "DELETE FROM coupon_clock.alarm WHERE stream_id = %s", later.template_id)
    first, last = UUID(int=0), UUID(int=2**128 - 1)
    for surplus in (first, last):
        run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (%s, %s)", surplus, NOON)
        run_sql(
            database_url,
            "INSERT INTO coupon_clock.coupon_template "
            "SELECT (json_populate_record(t, json_build_object('template_id', %s::uuid))).* "
            "  FROM coupon_clock.coupon_template t LIMIT 1",
            surplus,
        )

    found = differences(app)

    assert {d for d in found if d[0] == "coupon_template"} == {
        ("coupon_template", ids[0], "row", "missing", "present"),
        ("coupon_template", ids[-1], "row", "missing", "present"),
        ("coupon_template", first, "row", "present", "missing"),
        ("coupon_template", last, "row", "present", "missing"),
    }
    assert {d for d in found if d[0] == "alarm"} == {
        ("alarm", first, "due_at", NOON, None),
        ("alarm", last, "due_at", NOON, None),
        ("alarm", later.template_id, "due_at", None, EVENING),
    }


def test_rows_with_other_keys_are_named_by_them(app, database_url):
    given_a_history(app)
    run_sql(database_url, "UPDATE coupon_clock.shop_month SET created = 0 WHERE shop_number = %s", SHOP)
    run_sql(database_url, "DELETE FROM coupon_clock.shop_month WHERE shop_number <> %s", SHOP)

    assert differences(app) == [
        ("shop_month", "1 / 2026-03-01", "created", 0, 6),
        ("shop_month", "2 / 2026-03-01", "row", "missing", "present"),
    ]


def test_one_can_be_verified_alone(app, database_url):
    given_a_history(app)
    run_sql(database_url, "UPDATE coupon_clock.shop_month SET created = 0")
    run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), now())")

    assert differences(app, "coupon_template") == []
    assert [d[0] for d in differences(app, "alarm")] == ["alarm"]
    assert {d[0] for d in differences(app, "shop_month")} == {"shop_month"}
    with pytest.raises(UnknownProjection, match="coupon_template, shop_month"):
        app.maintenance.verify_rows("coupons")


def test_since_a_position_looks_only_at_what_changed_after_it(app, database_url):
    given_a_history(app)
    before = app.execute(a_template(valid_until=EVENING)).position
    changed = a_template(valid_until=EVENING)
    app.execute(changed)
    app.run_due()
    run_sql(database_url, "UPDATE coupon_clock.coupon_template SET stock = 7")

    assert [d[1] for d in differences(app, since=before)] == [changed.template_id]
    with pytest.raises(NotInParts):
        differences(app, "shop_month", since=before)


def test_a_sample_of_all_is_all_and_one_of_nothing_is_nothing(app, database_url):
    ids = given_a_history(app)
    run_sql(database_url, "UPDATE coupon_clock.coupon_template SET stock = 7")
    run_sql(database_url, "INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), now())")

    assert len(differences(app, percent=100)) == len(ids) + 1
    assert differences(app, percent=0) == []
