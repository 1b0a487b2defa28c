"""Canonical values: a test states only what matters to it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from coupon_clock.domain.commands import (
    ChangeValidity,
    CreateCouponTemplate,
    ExpireCouponTemplate,
    IncreaseStock,
    TerminateCouponTemplate,
)
from coupon_clock.domain.coupon_template import created_by
from coupon_clock.domain.discount import ThresholdAmount
from coupon_clock.domain.events import ConsumeRule, Created, Ended, EndReason, ReceiveRule

MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVENING = datetime(2026, 3, 1, 18, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

SHOP = 1
OTHER_SHOP = 2
TEMPLATE = UUID("01890000-0000-7000-8000-000000000001")

EXPIRED_AT_NOON = Ended(SHOP, EndReason.EXPIRED, NOON)
TERMINATED_IN_THE_MORNING = Ended(SHOP, EndReason.TERMINATED, MORNING)


def a_template(**given: Any) -> CreateCouponTemplate:
    """Valid from MORNING until NOON, 300 off from 1,000, 100 in stock."""
    defaults: dict[str, Any] = {
        "command_id": uuid4(),
        "template_id": uuid4(),
        "shop_number": SHOP,
        "name": "Spring sale",
        "source": "shop",
        "target": "all_products",
        "discount": ThresholdAmount(minimum_spend=1000, amount_off=300),
        "receive_rule": ReceiveRule(limit_per_person=10),
        "consume_rule": ConsumeRule(hours_after_claim=48),
        "valid_from": MORNING,
        "valid_until": NOON,
        "stock": 100,
    }
    return CreateCouponTemplate(**defaults | given)


def created(**given: Any) -> Created:
    """What creating `a_template`, whose id is TEMPLATE, led to."""
    return created_by(a_template(**{"template_id": TEMPLATE} | given))


def ending_in(seconds: float, **given: Any) -> CreateCouponTemplate:
    """On the real clock."""
    now = datetime.now(UTC)
    return a_template(**{"valid_from": now, "valid_until": now + timedelta(seconds=seconds)} | given)


def increase(template_id: UUID, by: int = 5, **given: Any) -> IncreaseStock:
    return IncreaseStock(**{"command_id": uuid4(), "template_id": template_id, "shop_number": SHOP, "by": by} | given)


def change(template_id: UUID, until: datetime, **given: Any) -> ChangeValidity:
    defaults = {"command_id": uuid4(), "template_id": template_id, "shop_number": SHOP, "valid_from": MORNING}
    return ChangeValidity(**defaults | {"valid_until": until} | given)


def terminate(template_id: UUID, **given: Any) -> TerminateCouponTemplate:
    return TerminateCouponTemplate(**{"command_id": uuid4(), "template_id": template_id, "shop_number": SHOP} | given)


def expire(template_id: UUID) -> ExpireCouponTemplate:
    return ExpireCouponTemplate(command_id=uuid4(), template_id=template_id)
