"""What the clockwork makes of a decider. The rest of it is tested through the application and examples/."""

from datetime import UTC, datetime
from uuid import uuid4

from msgspec.structs import replace

from coupon_clock.clockwork import Clockwork, NothingDecided
from coupon_clock.infrastructure.broker import MemoryBroker
from coupon_clock.infrastructure.deadline import Done, NotDue, Unanswerable
from coupon_clock.testing import TurnedClock
from test_examples import example

MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)


def test_a_decider_that_decides_nothing_when_due_is_named_and_its_message_set_aside(database_url):
    shop = example("order_timeout")
    with shop.open_orders(database_url=database_url) as orders:
        clock = TurnedClock(orders.settings, MORNING)
        order = shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1000)
        due_at = MORNING + shop.PAYMENT_TIME
        orders.execute(order)
        assert orders.look_at([order.order_id], "sweep") == [NotDue(due_at)]

        clock.set(due_at)
        idle = replace(shop.ORDERS, decide=lambda order, command, now: [])
        forgetful = Clockwork(orders.settings, orders.pool, idle, shop.Event)
        parts = forgetful.parts(MemoryBroker())
        parts.relay.run_once()
        forgetful.store.learn_time()
        assert parts.consumer.run_once()["rejected"] == 1
        (answer,) = forgetful.look_at([order.order_id], "sweep")
        assert isinstance(answer, Unanswerable)
        assert isinstance(answer.error, NothingDecided)
        assert str(order.order_id) in str(answer.error)

        assert orders.look_at([order.order_id], "sweep") == [Done(ended_now=True)]
        clock.advance(days=1)
        assert orders.look_at([order.order_id], "sweep") == [Done(ended_now=False)]
