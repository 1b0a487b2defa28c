"""Find and page: filters, cursors, states by the time, and an index for each query."""

from datetime import timedelta
from uuid import UUID

import pytest
from history import run_sql

from coupon_clock.domain.discount import FixedAmount
from coupon_clock.projections import shop_months
from coupon_clock.projections.read_model import Filters, page_statement
from coupon_clock.projections.tables import DIALECT
from examples import EVENING, MICROSECOND, MORNING, NOON, OTHER_SHOP, SHOP, a_template, terminate

ROWS = 100_000
SHOP_OF_MANY = 7


@pytest.fixture
def shop(app):
    """One of each: upcoming, active, over, ended before its end."""
    templates = {
        "upcoming": a_template(name="Summer 100%", valid_from=EVENING, valid_until=EVENING + timedelta(days=1)),
        "active": a_template(name="Spring_sale", valid_until=EVENING, target="product", goods="tea"),
        "over": a_template(name="Winter sale", valid_until=NOON, discount=FixedAmount(amount_off=100)),
        "terminated": a_template(name="Autumn sale", valid_until=EVENING),
    }
    app.execute_many(list(templates.values()))
    app.execute(terminate(templates["terminated"].template_id))
    app.run_due()
    app.clock.set(NOON)
    names = {template.template_id: name for name, template in templates.items()}
    return lambda **filters: {names[view.template_id] for view in app.page(SHOP, Filters(**filters)).views}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"upcoming", "active", "over", "terminated"}),
        ({"name_contains": "sale"}, {"active", "over", "terminated"}),
        ({"name_contains": "%"}, {"upcoming"}),
        ({"name_contains": "g_s"}, {"active"}),
        ({"goods": "tea"}, {"active"}),
        ({"target": "product"}, {"active"}),
        ({"discount": "FixedAmount"}, {"over"}),
        ({"state": "upcoming"}, {"upcoming"}),
        ({"state": "active"}, {"active"}),
        ({"state": "over"}, {"over", "terminated"}),
        ({"ended": True}, {"terminated"}),
        ({"ended": False}, {"upcoming", "active", "over"}),
        ({"ends_before": EVENING}, {"over"}),
        ({"ends_after": NOON}, {"upcoming", "active", "terminated"}),
        ({"ends_after": NOON, "name_contains": "sale", "state": "active"}, {"active"}),
    ],
    ids=lambda given: " ".join(sorted(given)) or "none",
)
def test_all_filters_that_are_given_hold(shop, filters, found):
    assert shop(**filters) == found


def test_at_its_end_a_row_is_over_to_filters_and_views_alike(app, shop):
    app.clock.set(EVENING - MICROSECOND)
    assert shop(state="active") == {"active"}

    app.clock.set(EVENING)
    assert shop(state="active") == {"upcoming"}
    assert {view.state for view in app.page(SHOP, Filters(state="over")).views} == {"over"}


def test_a_page_reaches_no_other_shop_and_its_cursor_neither(app, shop):
    app.execute_many([a_template(shop_number=OTHER_SHOP, valid_until=EVENING) for _ in range(3)])
    app.run_due()

    theirs = app.page(OTHER_SHOP, limit=2)
    assert len(theirs.views) == 2
    assert all(view.shop_number == SHOP for view in app.page(SHOP, after=theirs.after).views)


# ── plans ────────────────────────────────────────────────────────────────────────────────────────

MANY = f"""
INSERT INTO coupon_template
SELECT md5(n::text)::uuid, CASE WHEN n %% 20 = 0 THEN {SHOP_OF_MANY} ELSE 100 + n %% 500 END, 'Sale ' || n, 'shop',
       'all_products', NULL, '{{"type": "FixedAmount", "amount_off": 1}}', '{{}}', '{{}}',
       %s, %s::timestamptz + n * interval '1 second', 1, NULL, NULL, 1, n
  FROM generate_series(1, {ROWS}) AS n
"""
MONTHS = f"""
INSERT INTO shop_month SELECT n / 12, '2026-01-01'::date + (n %% 12) * 31, 0, 0, 0, 0, 0, 0, n
  FROM generate_series(1, {ROWS}) AS n
"""


def plan(app, statement) -> str:
    compiled = statement.compile(dialect=DIALECT)
    with app.pool.connection() as connection:
        found = connection.execute(f"EXPLAIN {compiled}", compiled.params).fetchall()
    return "\n".join(line for (line,) in found)


@pytest.fixture
def many(app, database_url) -> None:
    run_sql(database_url, MANY, MORNING, NOON)
    run_sql(database_url, MONTHS + "WHERE %s", True)
    run_sql(database_url, "ANALYZE coupon_template, shop_month")


@pytest.mark.parametrize("after", [None, UUID(int=2**127)], ids=["first page", "next page"])
def test_pages_walk_the_shops_index_and_a_rare_match_is_looked_for_in_its_part_only(app, many, after):
    for often in (Filters(), Filters(ended=False), Filters(ends_after=NOON), Filters(target="all_products")):
        found = plan(app, page_statement(SHOP_OF_MANY, often, after, 51))
        assert "Index Scan using coupon_template_shop_idx" in found, found
        assert "Sort" not in found, found
    for rare in (Filters(name_contains="99"), Filters(goods="tea"), Filters(discount="Percentage", state="over")):
        found = plan(app, page_statement(SHOP_OF_MANY, rare, after, 51))
        assert "coupon_template_shop_idx" in found, found
        assert "Seq Scan" not in found, found


def test_a_narrow_range_of_ends_uses_the_index_on_ends(app, many):
    narrow = Filters(ends_after=NOON + timedelta(seconds=100), ends_before=NOON + timedelta(seconds=200))

    assert "coupon_template_shop_end_idx" in plan(app, page_statement(SHOP_OF_MANY, narrow, None, 51))


def test_months_walk_their_key(app, many):
    found = plan(app, shop_months.page_statement(SHOP, None, 13))
    assert "shop_month_pkey" in found
    assert "Sort" not in found
