"""Find and page: filters, cursors, states by the time, and an index for each query."""

from datetime import date, datetime, timedelta, timezone
from uuid import UUID

import pytest

from coupon_clock.domain.arguments import LARGEST_PAGE
from coupon_clock.domain.discount import FixedAmount
from coupon_clock.domain.errors import InvalidArgument
from coupon_clock.projections import shop_months
from coupon_clock.projections.coupon_templates import Filters, page_statement
from coupon_clock.projections.engine.tables import DIALECT
from examples import EVENING, MICROSECOND, MORNING, NOON, OTHER_SHOP, SHOP, TEMPLATE, a_template, terminate
from history import run_sql

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


# ── what cannot be asked ─────────────────────────────────────────────────────────────────────────

NAIVE = datetime(2026, 3, 1, 12)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"ends_before": NAIVE}, "ends_before has no time zone: give it one, as in datetime(…, tzinfo=UTC)"),
        ({"ends_after": NAIVE}, "ends_after has no time zone: give it one, as in datetime(…, tzinfo=UTC)"),
        ({"ends_after": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}, "ends_after is outside the calend"),
        ({"ends_before": "2026-03-01"}, "ends_before must be datetime, not str"),
        ({"ends_before": date(2026, 3, 1)}, "ends_before must be datetime, not date"),
        ({"state": "ended"}, "state must be one of upcoming, active, over (got 'ended')"),
        ({"state": 1}, "state must be str, not int"),
        ({"discount": "Gift"}, "discount must be one of FixedAmount, ThresholdAmount, Percentage (got 'Gift')"),
        ({"target": "products"}, "target must be one of product, all_products (got 'products')"),
        ({"ended": 1}, "ended must be bool, not int"),
        ({"name_contains": 5}, "name_contains must be str, not int"),
        ({"name_contains": "\0"}, "name_contains must not contain control characters"),
        ({"goods": "\ud800"}, "goods must not contain control characters"),
    ],
    ids=ascii,
)
def test_a_filter_that_no_row_can_meet_is_refused_and_named(app, filters, says):
    with pytest.raises(InvalidArgument) as refused:
        app.page(SHOP, Filters(**filters))

    assert says in str(refused.value)


def test_all_that_is_wrong_with_a_question_is_named_at_once(app):
    with pytest.raises(InvalidArgument) as refused:
        app.page("1", Filters(state="ended", ends_after=NAIVE), after="first", limit=0)

    assert [problem.field for problem in refused.value.problems] == [
        "shop_number", "state", "ends_after", "after", "limit"
    ]  # fmt: skip


@pytest.mark.parametrize("ask", ["page", "shop_months"])
@pytest.mark.parametrize("limit", [0, -1, "5", 2.0, True, None], ids=repr)
def test_a_limit_is_a_number_from_one(app, ask, limit):
    with pytest.raises(InvalidArgument, match="limit must be"):
        getattr(app, ask)(SHOP, limit=limit)


@pytest.mark.parametrize("before", ["2026-03-01", MORNING, 3], ids=repr)
def test_the_cursor_of_months_is_a_date(app, before):
    with pytest.raises(InvalidArgument, match="before must be date, not"):
        app.shop_months(SHOP, before=before)


def test_more_than_a_page_may_have_is_taken_for_the_largest_and_the_cursor_leads_to_the_rest(app):
    app.execute_many([a_template() for _ in range(LARGEST_PAGE + 1)])
    app.run_due()

    first = app.page(SHOP, limit=10**30)
    rest = app.page(SHOP, after=first.after, limit=1)

    assert len(first.views) == LARGEST_PAGE
    assert len(rest.views) == 1
    assert rest.after is None
    assert len(app.shop_months(SHOP, limit=10**30).months) == 1


@pytest.mark.parametrize("number", [0, 2**63, "1", True, None], ids=repr)
def test_a_shop_number_is_one_that_a_shop_can_have(app, number):
    for ask in (app.page, app.shop_months, lambda shop: app.find(shop, TEMPLATE)):
        with pytest.raises(InvalidArgument, match="shop_number must be"):
            ask(number)


def test_an_id_is_no_text(app):
    with pytest.raises(InvalidArgument, match="template_id must be UUID, not str"):
        app.find(SHOP, str(TEMPLATE))


# ── plans ────────────────────────────────────────────────────────────────────────────────────────

MANY = f"""
INSERT INTO coupon_clock.coupon_template
SELECT md5(n::text)::uuid, CASE WHEN n %% 20 = 0 THEN {SHOP_OF_MANY} ELSE 100 + n %% 500 END, 'Sale ' || n, 'shop',
       'all_products', NULL, '{{"type": "FixedAmount", "amount_off": 1}}', '{{}}', '{{}}',
       %s, %s::timestamptz + n * interval '1 second', 1, NULL, NULL, 1, n
  FROM generate_series(1, {ROWS}) AS n
"""
MONTHS = f"""
INSERT INTO coupon_clock.shop_month SELECT n / 12, '2026-01-01'::date + (n %% 12) * 31, 0, 0, 0, 0, 0, 0, n
  FROM generate_series(1, {ROWS}) AS n
"""


def plan(app, statement) -> str:
    compiled = statement.compile(dialect=DIALECT)
    with app.database.connection() as connection:
        found = connection.execute(app.database.sql(f"EXPLAIN {compiled}"), compiled.params).fetchall()
    return "\n".join(line for (line,) in found)


@pytest.fixture
def many(app, database_url) -> None:
    run_sql(database_url, MANY, MORNING, NOON)
    run_sql(database_url, MONTHS + "WHERE %s", True)
    run_sql(database_url, "ANALYZE coupon_clock.coupon_template, coupon_clock.shop_month")


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
