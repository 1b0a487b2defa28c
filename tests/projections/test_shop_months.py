"""What happened in each shop in each month."""

from datetime import UTC, date, datetime, timedelta

from coupon_clock.projections.shop_months import ShopMonth
from examples import EVENING, NOON, OTHER_SHOP, SHOP, a_template, increase, terminate

MARCH = date(2026, 3, 1)
LATE = timedelta(seconds=3)


def months(app, shop_number: int = SHOP, **given):
    return app.shop_months(shop_number, **given).months


def test_a_month_counts_what_was_made_and_what_ended_and_how_late(app):
    expiring, terminated = a_template(stock=10, valid_until=NOON), a_template(stock=20, valid_until=EVENING)
    app.execute_many([expiring, terminated, increase(expiring.template_id, by=5), terminate(terminated.template_id)])
    app.clock.set(NOON + LATE)
    app.run_due()

    assert months(app) == [
        ShopMonth(
            shop_number=SHOP,
            month=MARCH,
            created=2,
            expired=1,
            terminated=1,
            stock_issued=35,
            lateness_sum=3_000_000,
            lateness_max=3_000_000,
            position=5,
        )
    ]


def test_another_shop_has_months_of_its_own(app):
    app.execute(a_template(shop_number=OTHER_SHOP))
    app.run_due()

    assert months(app) == []
    assert [month.created for month in months(app, OTHER_SHOP)] == [1]


def test_an_event_belongs_to_the_month_in_which_it_was_recorded(app):
    template = a_template(valid_until=datetime(2026, 4, 1, tzinfo=UTC))
    app.execute(template)
    app.clock.set(template.valid_until)
    app.run_due()

    assert [(m.month, m.created, m.expired) for m in months(app)] == [(date(2026, 4, 1), 0, 1), (MARCH, 1, 0)]


def test_pages_walk_back_through_the_months(app):
    for month in (3, 4, 5):
        app.clock.set(datetime(2026, month, 2, tzinfo=UTC))
        app.execute(a_template(valid_until=datetime(2027, 1, 1, tzinfo=UTC)))
    app.run_due()

    first = app.shop_months(SHOP, limit=2)
    second = app.shop_months(SHOP, before=first.before, limit=2)

    assert [m.month.month for m in (*first.months, *second.months)] == [5, 4, 3]
    assert second.before is None
