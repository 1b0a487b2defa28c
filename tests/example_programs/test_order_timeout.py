"""Another deadline on the unchanged runtime: examples/order_timeout.py, with a clock to turn and with real parts."""

from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest

from coupon_clock.domain.errors import CommandConflict, InvalidCommand
from coupon_clock.runtime import Runtime
from coupon_clock.testing import TestRuntime, given, then, then_nothing, then_refused, when
from examples import MORNING, SHOP, ending_in
from programs import example
from waiting import eventually

A_MOMENT = timedelta(microseconds=1)
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.fixture(scope="module")
def shop() -> ModuleType:
    return example("order_timeout")


@pytest.fixture
def orders(shop: ModuleType, database_url: str) -> Iterator[TestRuntime]:
    with shop.open_orders(database_url=database_url) as runtime:
        yield TestRuntime(runtime, MORNING)


def ids(order_id: UUID | None = None) -> dict[str, Any]:
    return {"command_id": uuid4(), "order_id": order_id or uuid4()}


def events(orders: Runtime, order_id: UUID) -> list[str]:
    return [type(envelope.event).__name__ for envelope in orders.store.load(order_id)[0]]


def test_an_unpaid_order_is_cancelled_after_30_minutes_and_not_before(shop, orders):
    given(orders, shop.PlaceOrder(**ids(), amount=1000))

    orders.clock.set(MORNING + HALF_AN_HOUR - A_MOMENT)
    orders.run_due()
    then_nothing(orders)
    orders.clock.set(MORNING + HALF_AN_HOUR)
    orders.run_due()
    orders.run_due()
    then(orders, shop.Cancelled())


def test_a_paid_order_is_not_cancelled(shop, orders):
    order = shop.PlaceOrder(**ids(), amount=1000)
    given(orders, order)
    orders.clock.set(MORNING + HALF_AN_HOUR - A_MOMENT)
    when(orders, shop.PayOrder(**ids(order.order_id)))

    orders.clock.advance(hours=1)
    orders.run_due()
    then(orders, shop.Paid())


def test_an_order_is_not_paid_too_late_though_no_loop_has_run(shop, orders):
    order = shop.PlaceOrder(**ids(), amount=1000)
    given(orders, order)
    orders.clock.set(MORNING + HALF_AN_HOUR)
    when(orders, shop.PayOrder(**ids(order.order_id)))
    then_refused(orders, shop.OrderCancelled)


def test_repeats_and_mistakes_are_reported_apart(shop, orders):
    order = shop.PlaceOrder(**ids(), amount=1000)
    first = orders.execute(order)
    pay = shop.PayOrder(**ids(order.order_id))
    orders.execute(pay)

    again = orders.execute(order)
    assert (again.version, again.position, again.events) == (first.version, first.position, first.events)
    assert orders.execute(pay).version == 2
    with pytest.raises(CommandConflict):
        orders.execute(shop.PlaceOrder(command_id=order.command_id, order_id=order.order_id, amount=1))
    with pytest.raises(shop.OrderTaken):
        orders.execute(shop.PlaceOrder(**ids(order.order_id), amount=1))
    with pytest.raises(shop.NoAmount):
        orders.execute(shop.PlaceOrder(**ids(), amount="1000"))
    with pytest.raises(shop.OrderUnknown):
        orders.execute(shop.PayOrder(**ids()))
    with pytest.raises(InvalidCommand, match="order_id must be a UUID"):
        orders.execute(shop.PlaceOrder(command_id=uuid4(), order_id="1", amount=1000))


def test_orders_and_coupons_share_a_database_and_nothing_else(shop, orders, live):
    order, template = shop.PlaceOrder(**ids(), amount=1000), ending_in(1)
    orders.execute(order)
    with live.running():
        live.execute(template)
        eventually(lambda: len(live.history(SHOP, template.template_id)) == 2)

    assert orders.runtime.store.load(template.template_id)[0] == []
    assert not live.maintenance.verify_promise().found_something
    assert list(live.maintenance.verify()) == []


@pytest.mark.rocketmq
def test_an_order_is_cancelled_by_its_own_topic(shop, rocketmq, database_url, monkeypatch):
    monkeypatch.setattr(shop, "PAYMENT_TIME", timedelta(seconds=3))
    rocketmq.provision("order-timeout", "order-clock")
    rocketmq_settings = {"rocketmq_endpoints": rocketmq.endpoints, "reconcile_grace": 3600}
    with shop.open_orders(database_url=database_url, **rocketmq_settings) as orders, orders.running():
        order = shop.PlaceOrder(**ids(), amount=1000)
        orders.execute(order)
        eventually(lambda: events(orders, order.order_id) == ["Placed", "Cancelled"], within=60)
        assert orders.store.load(order.order_id)[0][-1].cause == "message"
