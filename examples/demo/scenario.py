"""Who ends when, and what happens to some of them on the way. All times in seconds after the start."""

from datetime import datetime, timedelta
from itertools import cycle, islice
from typing import NamedTuple
from uuid import uuid4

from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.discount import FixedAmount, Percentage, ThresholdAmount
from coupon_clock.domain.events import ConsumeRule, ReceiveRule

ARMING_WINDOW = timedelta(seconds=8)
LEAD = timedelta(seconds=3)

SHOPS = (1, 2, 3)
FLASH_SALE = "Flash sale"
FLASH_SIZE = 20
FLASH_ENDS = 10.0


class Terminate(NamedTuple):
    """The shop ends it early."""

    at: float


class MoveEnd(NamedTuple):
    """The shop moves the end, once the message for the old one was sent."""

    at: float
    to: float


class SendAgain(NamedTuple):
    """Its message is sent a second time."""

    at: float


Turn = Terminate | MoveEnd | SendAgain


class Planned(NamedTuple):
    """One template, and the turn that its life takes, if any."""

    shop_number: int
    name: str
    ends: float
    turn: Turn | None = None


QUIET = (
    "Winter coats",
    "Free delivery",
    "Second pair",
    "Breakfast set",
    "Student days",
    "Garden tools",
    "Board games",
    "Rainy Monday",
    "New neighbours",
    "Lunch break",
    "Running shoes",
    "Tea and cake",
    "Last stock",
    "Book week",
    "Early birds",
)
FIRST_QUIET, QUIET_APART = 3.1, 1.1

EVENTFUL = (
    Planned(1, "Closed early", ends=15.5, turn=Terminate(at=5.0)),
    Planned(2, "Prolonged", ends=6.0, turn=MoveEnd(at=2.0, to=14.0)),
    Planned(3, "Cut short", ends=16.0, turn=MoveEnd(at=8.5, to=12.0)),
    Planned(1, "Announced twice", ends=8.0, turn=SendAgain(at=1.5)),
    Planned(2, "Far ahead", ends=20.0),
)


def scenario() -> list[Planned]:
    """Forty templates: one by one, twenty at one instant, and five to which something happens."""
    shops = cycle(SHOPS)
    quiet = [Planned(next(shops), name, FIRST_QUIET + n * QUIET_APART) for n, name in enumerate(QUIET)]
    flash = [Planned(shop, FLASH_SALE, FLASH_ENDS) for shop in islice(shops, FLASH_SIZE)]
    return [*quiet, *flash, *EVENTFUL]


def creation(planned: Planned, start: datetime, number: int) -> CreateCouponTemplate:
    """The command that makes it. `start`: an aware time; `number` picks one of the kinds of discount."""
    discounts = (FixedAmount(300), ThresholdAmount(1_000, 300), Percentage(20, 0, 5_000))
    return CreateCouponTemplate(
        command_id=uuid4(),
        template_id=uuid4(),
        shop_number=planned.shop_number,
        name=planned.name,
        source="shop",
        target="all_products",
        discount=discounts[number % len(discounts)],
        receive_rule=ReceiveRule(limit_per_person=1),
        consume_rule=ConsumeRule(),
        valid_from=start,
        valid_until=start + timedelta(seconds=planned.ends),
        stock=100,
        actor="demo",
    )
