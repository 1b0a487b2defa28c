"""What coupon_clock.testing gives to users' tests, and that it fails where it should."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from msgspec.structs import replace
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import CouponTemplateNotFound, CouponTemplateOver, InvalidArgument, InvalidCommand
from coupon_clock.domain.events import StockIncreased
from coupon_clock.runtime import Runtime
from coupon_clock.testing import (
    TestRuntime,
    given,
    in_database,
    open_test_application,
    then,
    then_nothing,
    then_refused,
    throw_away_database,
    when,
)
from examples import EXPIRED_AT_NOON, MORNING, NOON, SHOP, a_template, created, increase, terminate
from programs import example

BERLIN = ZoneInfo("Europe/Berlin")

# ── given / when / then ──────────────────────────────────────────────────────────────────────────


def test_what_was_given_is_no_news(app):
    given(app, a_template())
    then_nothing(app)


def test_a_refused_given_is_raised(app):
    with pytest.raises(InvalidCommand):
        given(app, a_template(stock=0))


def test_then_wants_all_that_happened_and_no_other(app):
    template = a_template(template_id=created().template_id)
    when(app, template)
    when(app, increase(template.template_id, by=5))
    then(app, created(), StockIncreased(SHOP, 5))

    when(app, increase(template.template_id, by=7))
    with pytest.raises(AssertionError, match="by=7"):
        then_nothing(app)


def test_then_is_not_content_with_something_else(app):
    when(app, a_template())
    with pytest.raises(AssertionError, match="expired"):
        then(app, EXPIRED_AT_NOON)


def test_then_fails_where_the_command_was_refused(app):
    when(app, increase(a_template().template_id))
    with pytest.raises(AssertionError, match="There is no coupon template"):
        then_nothing(app)


def test_then_refused_wants_that_refusal_and_has_it_once(app):
    with pytest.raises(AssertionError, match="None, not CouponTemplateOver"):
        then_refused(app, CouponTemplateOver)
    template = a_template(valid_until=NOON)
    given(app, template)
    app.clock.set(NOON)
    when(app, increase(template.template_id))
    with pytest.raises(AssertionError, match="not CouponTemplateNotFound"):
        then_refused(app, CouponTemplateNotFound)
    when(app, increase(template.template_id))
    assert then_refused(app, CouponTemplateOver).template_id == template.template_id
    when(app, terminate(template.template_id))
    then(app, EXPIRED_AT_NOON)


def test_a_refusal_that_nobody_asked_for_fails_the_next_step(app):
    template = a_template()
    given(app, template)
    for next_step in (when, given):
        when(app, increase(uuid4()))
        with pytest.raises(AssertionError, match="There is no coupon template"):
            next_step(app, template)


def test_then_refused_means_the_last_command_and_no_earlier_one(app):
    template = a_template()
    given(app, template)
    when(app, template)
    with pytest.raises(AssertionError, match="None, not CouponTemplateNotFound"):
        then_refused(app, CouponTemplateNotFound)


WITHOUT_ASSERTIONS = """
    from coupon_clock.domain.errors import CouponClockError
    from coupon_clock.testing import then, then_refused

    class Scene:
        refusal = None

        def happened(self):
            return ["something"]

    for fails in (lambda: then(Scene(), "something else"), lambda: then_refused(Scene(), CouponClockError)):
        try:
            fails()
        except AssertionError as failure:
            print(failure)
"""


def test_then_fails_also_where_python_leaves_assertions_out():
    command = [sys.executable, "-O", "-c", textwrap.dedent(WITHOUT_ASSERTIONS)]
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ran = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == [
        "happened: ['something'], not ['something else']",
        "refused: None, not CouponClockError",
    ]


# ── the clock ────────────────────────────────────────────────────────────────────────────────────


def test_a_day_is_24_hours_also_where_clocks_go_forward(app):
    app.clock.set(datetime(2026, 3, 28, 12, tzinfo=BERLIN))
    app.clock.advance(hours=24)

    assert app.clock.now == datetime(2026, 3, 29, 11, tzinfo=UTC)
    assert app.runtime.store.learn_time() == app.clock.now


def test_a_time_without_a_zone_is_refused_and_turns_nothing(app, database_url):
    naive = MORNING.replace(tzinfo=None)
    with pytest.raises(InvalidArgument, match="now has no time zone: give it one"):
        app.clock.set(naive)
    with pytest.raises(InvalidArgument, match="now has no time zone"), open_test_application(database_url, naive):
        pass
    assert app.runtime.store.learn_time() == app.clock.now == MORNING


def test_settings_given_win_over_those_of_a_test(database_url):
    with open_test_application(database_url, MORNING, reconcile_grace=7) as app:
        assert app.settings.reconcile_grace == 7


# ── databases ────────────────────────────────────────────────────────────────────────────────────


def as_a_url_without_a_host(url: str) -> str:
    parts = conninfo_to_dict(url)
    return f"postgresql:///{parts['dbname']}?host={parts['host']}&user={parts['user']}"


def as_key_value_pairs(url: str) -> str:
    return make_conninfo(**conninfo_to_dict(url))


@pytest.mark.parametrize("written", [as_a_url_without_a_host, as_key_value_pairs])
def test_a_server_may_be_named_in_any_way_that_libpq_takes(postgres, written: Callable[[str], str]):
    with throw_away_database(written(postgres.url)) as url:
        with Application.open(Settings.load(database_url=url)) as app:
            assert app.execute(a_template(valid_until=datetime.now(UTC) + timedelta(hours=1))).version == 1
        assert parse_qs(urlsplit(url).query)["host"] == [conninfo_to_dict(postgres.url)["host"]]
        assert psycopg.connect(postgres.url).execute(EXISTS, (urlsplit(url).path[1:],)).fetchone() == (True,)


EXISTS = "SELECT exists(SELECT FROM pg_database WHERE datname = %s)"


@pytest.mark.parametrize(
    "server",
    [
        {"user": "me", "password": "p@ss w+rd/%?&=", "host": "::1", "port": "5433", "sslmode": "require"},
        {"host": "one.example,two.example", "port": "5432,5433", "target_session_attrs": "read-write"},
        {},
    ],
)
def test_another_database_of_a_server_is_reached_as_the_first(server):
    assert conninfo_to_dict(in_database(make_conninfo(**server, dbname="postgres"), "a name")) == server | {
        "dbname": "a name"
    }


# ── what is due ──────────────────────────────────────────────────────────────────────────────────


def test_a_look_that_keeps_failing_ends_the_run_with_its_reason(database_url):
    shop = example("order_timeout")
    order = shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1000)
    unprepared = replace(shop.ORDERS, prepares_ending=False)
    with shop.open_orders(database_url=database_url, reconcile_grace=0) as opened:
        orders = Runtime(opened.database, unprepared, shop.Event)
        given(TestRuntime(orders, MORNING), order)
        idle = replace(unprepared, decide=lambda order, command, now: [])
        with Runtime.open(orders.settings, idle, shop.Event) as runtime:
            forgetful = TestRuntime(runtime, MORNING + shop.PAYMENT_TIME)
            with pytest.raises(AssertionError, match=f"1 of the streams .* fail: Stream {order.order_id} was due at"):
                forgetful.run_due()
