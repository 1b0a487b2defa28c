"""The scenario, and how it is carried out on a running application: who ends when, and what is done on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any
from uuid import UUID, uuid4

import coupon_clock as cc
from observer import Seen, connect

ARMING_WINDOW = timedelta(seconds=8)
LEAD = timedelta(seconds=3)
VALID_FOR = timedelta(minutes=1)
PATIENCE = timedelta(seconds=4)  # how much later than planned a message may be sent before the demo gives up
NEVER = datetime.max.replace(tzinfo=UTC)

QUIET = (
    "Winter coats", "Free delivery", "Second pair", "Breakfast set", "Student days", "Garden tools", "Board games",
    "Rainy Monday", "New neighbours", "Lunch break", "Running shoes", "Tea and cake", "Last stock", "Book week",
    "Early birds",
)  # fmt: skip
UNARM = (
    "UPDATE coupon_clock.alarm SET armed_at = NULL, leased_until = NULL WHERE stream_id = %s"  # it is then sent again
)


@dataclass(eq=False)
class MessageNotSent(cc.CouponClockError):
    """The message for "{name}" was not given to the broker within {seconds:.0f} s: is the broker working?"""

    name: str
    seconds: float


@dataclass
class Template:
    """As the demo last left it. `action_at`: when its `action` comes; `happened`: what came of it, in words."""

    shop_number: int
    name: str
    ends_at: datetime
    action: str = ""
    action_at: datetime = NEVER
    new_end: datetime = NEVER
    happened: str = ""
    template_id: UUID = field(default_factory=uuid4)

    def ids(self) -> dict[str, Any]:
        return {"command_id": uuid4(), "template_id": self.template_id, "shop_number": self.shop_number}


def scenario(start: datetime) -> list[Template]:
    """Returns forty templates: 15 that end one by one, 20 at one instant, and 5 with a story of their own."""
    s = timedelta(seconds=1)
    return [
        *(Template(n % 3 + 1, name, start + (3.1 + n * 1.1) * s) for n, name in enumerate(QUIET)),
        *(Template(n % 3 + 1, "Flash sale", start + 10 * s) for n in range(20)),
        Template(1, "Closed early", start + 15.5 * s, "terminate", start + 5 * s),
        Template(2, "Prolonged", start + 6 * s, "move end", start + 2 * s, start + 14 * s),
        Template(3, "Cut short", start + 16 * s, "move end", start + 8.5 * s, start + 12 * s),
        Template(1, "Announced twice", start + 8 * s, "send again", start + 1.5 * s),
        Template(2, "Far ahead", start + 20 * s),
    ]


def create(app: cc.Application, templates: Sequence[Template]) -> None:
    """Creates all in one transaction. Raises the first error of any."""
    discounts: Iterator[Any] = cycle([cc.FixedAmount(300), cc.ThresholdAmount(1_000, 300), cc.Percentage(20, 0, 5_000)])
    commands = [
        cc.CreateCouponTemplate(
            **template.ids(), name=template.name, source="shop", target="all_products", discount=next(discounts),
            receive_rule=cc.ReceiveRule(limit_per_person=1), consume_rule=cc.ConsumeRule(), stock=100, actor="demo",
            valid_from=template.ends_at - VALID_FOR, valid_until=template.ends_at,
        )
        for template in templates
    ]  # fmt: skip
    for outcome in app.execute_many(commands):
        if isinstance(outcome, cc.CouponClockError):
            raise outcome


def run_due(app: cc.Application, templates: Sequence[Template], now: datetime, seen: Seen) -> None:
    """Carries out the actions that are due; but for terminating, once the message was sent. Raises MessageNotSent."""
    for template in templates:
        if now < template.action_at:
            continue
        if template.action == "terminate":
            outcome = app.execute(cc.TerminateCouponTemplate(**template.ids()))
            template.ends_at = next(event.ended_at for event in outcome.events if isinstance(event, cc.Ended))
            template.happened = "terminated"
        elif seen.sent.get(template.template_id) != template.ends_at:
            if now > template.action_at + PATIENCE:
                raise MessageNotSent(template.name, PATIENCE.total_seconds())
            continue
        elif template.action == "send again":
            with connect(app.settings) as connection:
                connection.execute(UNARM, (template.template_id,))
            template.happened = "sent twice"
        else:
            old, new = template.ends_at, template.new_end
            app.execute(cc.ChangeValidity(**template.ids(), valid_from=new - VALID_FOR, valid_until=new))
            template.happened = f"{'later' if new > old else 'earlier'}, was {old.astimezone():%H:%M:%S}"
            template.ends_at = new
        template.action_at = NEVER
