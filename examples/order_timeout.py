"""An unpaid order is cancelled after 30 minutes: another deadline on the same runtime, without a line changed in it.

The life of an order comes first, as pure functions; the last ten lines give it a log, alarms and loops, in a schema,
topic and group of its own.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from coupon_clock import CouponClockError, Decider, Runtime, Settings

PAYMENT_TIME = timedelta(minutes=30)


class Placed(Struct, frozen=True, tag="Order.Placed"):
    amount: int
    pay_until: datetime


class Paid(Struct, frozen=True, tag="Order.Paid"):
    pass


class Cancelled(Struct, frozen=True, tag="Order.Cancelled"):
    pass


Event = Placed | Paid | Cancelled


class PlaceOrder(Struct, frozen=True, kw_only=True):
    """`command_id` and `order_id` are made before the first try, so that a repeat has no second effect."""

    command_id: UUID
    order_id: UUID
    amount: int
    actor: str | None = None
    expected_version: int | None = None


class PayOrder(Struct, frozen=True, kw_only=True):
    command_id: UUID
    order_id: UUID
    actor: str | None = None
    expected_version: int | None = None


class CancelUnpaidOrder(Struct, frozen=True, kw_only=True):
    """Sent by the clock."""

    command_id: UUID
    order_id: UUID
    actor: str | None = None
    expected_version: int | None = None


Command = PlaceOrder | PayOrder | CancelUnpaidOrder


class NoAmount(CouponClockError):
    """An order has an amount, in integer minor units, of at least 1."""


class OrderTaken(CouponClockError):
    """There is another order of that id: give yours one of its own."""


class OrderUnknown(CouponClockError):
    """There is no such order."""


class OrderCancelled(CouponClockError):
    """It was not paid in time: place a new order."""


class Order(Struct, frozen=True):
    amount: int
    pay_until: datetime
    paid: bool = False
    cancelled: bool = False

    def is_closed(self) -> bool:
        return self.paid or self.cancelled


def decide(order: Order | None, command: Command, now: datetime) -> list[Event]:
    if isinstance(command, PlaceOrder):
        return place(order, command, now)
    if order is None:
        raise OrderUnknown
    if isinstance(command, CancelUnpaidOrder):
        return [] if order.is_closed() or now < order.pay_until else [Cancelled()]
    if order.paid:
        return []
    if order.cancelled or now >= order.pay_until:
        raise OrderCancelled
    return [Paid()]


def place(order: Order | None, command: PlaceOrder, now: datetime) -> list[Event]:
    """What is stored must be readable for ever, so the types are checked before."""
    if type(command.amount) is not int or command.amount < 1:
        raise NoAmount
    if order is None:
        return [Placed(command.amount, now + PAYMENT_TIME)]
    if order.amount != command.amount:
        raise OrderTaken
    return []


def evolve(order: Order | None, event: Event) -> Order:
    if isinstance(event, Placed):
        return Order(event.amount, event.pay_until)
    assert order is not None
    return replace(order, paid=isinstance(event, Paid), cancelled=isinstance(event, Cancelled))


def has_content_of(order: Order | None, events: Sequence[Event], command: Command) -> bool:
    match command, events[0]:
        case PlaceOrder(amount=amount), Placed(amount=placed):
            return amount == placed
        case (PayOrder(), Paid()) | (CancelUnpaidOrder(), Cancelled()):
            return True
    return False


# ── on a clock, in ten lines ─────────────────────────────────────────────────────────────────────

ORDERS: Decider[Order, Command, Event] = Decider(
    stream_field="order_id",
    decide=decide,
    evolve=evolve,
    has_content_of=has_content_of,
    due_at=lambda order: None if order.is_closed() else order.pay_until,
    due_command=lambda order_id, command_id: CancelUnpaidOrder(command_id=command_id, order_id=order_id),
    prepares_ending=True,  # the cancellation is stored with the alarm when the order is placed
)
ITS_OWN = {"database_schema": "orders", "rocketmq_topic": "order-timeout", "rocketmq_group": "order-clock"}


def open_orders(**settings: Any) -> Runtime[Order, Command, Event]:
    """Makes its tables where they are missing. Then: `with orders.running(): orders.execute(PlaceOrder(…))`."""
    own = Settings.load(**ITS_OWN | settings)
    Runtime.migrate(own)
    return Runtime.open(own, ORDERS, Event)
