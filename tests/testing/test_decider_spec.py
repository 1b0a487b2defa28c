"""A decider alone, with the same given / when / then as an application."""

import subprocess
import sys
from types import ModuleType
from uuid import uuid4

import pytest

from coupon_clock.testing import DeciderSpec, given, then, then_nothing, then_refused, when
from examples import MORNING
from programs import example


@pytest.fixture(scope="module")
def shop() -> ModuleType:
    return example("order_timeout")


@pytest.fixture
def spec(shop: ModuleType) -> DeciderSpec:
    return DeciderSpec(shop.ORDERS, now=MORNING)


def test_events_and_commands_that_happened_before_are_its_state(spec, shop):
    order = shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=5)
    given(spec, order, shop.Paid())
    when(spec, shop.PayOrder(command_id=uuid4(), order_id=order.order_id))
    then_nothing(spec)


def test_what_a_command_leads_to_at_that_time(spec, shop):
    order_id = uuid4()
    given(spec, shop.Placed(5, MORNING + shop.PAYMENT_TIME))
    when(spec, shop.PayOrder(command_id=uuid4(), order_id=order_id))
    then(spec, shop.Paid())


def test_a_refusal_is_returned(spec, shop):
    given(spec, shop.Placed(5, MORNING + shop.PAYMENT_TIME))
    spec.now = MORNING + shop.PAYMENT_TIME
    when(spec, shop.PayOrder(command_id=uuid4(), order_id=uuid4()))
    assert isinstance(then_refused(spec, shop.OrderCancelled), shop.OrderCancelled)


def test_it_fails_where_something_else_happened(spec, shop):
    when(spec, shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=5))
    with pytest.raises(AssertionError, match="happened"):
        then_nothing(spec)


def test_it_needs_neither_postgresqls_client_nor_rocketmqs():
    code = (
        "import sys; from coupon_clock.testing import DeciderSpec, given, when, then;"
        "from coupon_clock.domain.coupon_template import COUPON_TEMPLATES;"
        "print([name for name in ('psycopg', 'sqlalchemy', 'rocketmq', 'eventsourcing') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
