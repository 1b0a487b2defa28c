"""What happened to a coupon template.

Plain types and no rules: an event that was stored once stays readable whatever today's rules say.
Tags are explicit, so that moving a class breaks no stored event. How a shape changes: docs/events.md.
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from coupon_clock.domain.discount import Discount


class ReceiveRule(Struct, frozen=True, gc=False):
    """Who may receive a coupon, and how it is used."""

    limit_per_person: int
    usage_instructions: str = ""


class ConsumeRule(Struct, frozen=True, gc=False):
    """`hours_after_claim`: how long a claimed coupon lasts, None for as long as its template."""

    hours_after_claim: int | None = None
    explanation_of_unmet_conditions: str = ""


class EndReason(StrEnum):
    EXPIRED = "expired"
    TERMINATED = "terminated"


class TemplateFields(Struct, frozen=True, gc=False, kw_only=True):
    """What a template is, declared once: a command to create it asks for these fields, `Created` keeps them, and the
    read model's rows begin with them."""

    template_id: UUID
    shop_number: int
    name: str
    source: str
    target: str
    goods: str | None = None
    discount: Discount
    receive_rule: ReceiveRule
    consume_rule: ConsumeRule
    valid_from: datetime
    valid_until: datetime
    stock: int


class Created(TemplateFields, frozen=True, gc=False, kw_only=True, tag="CouponTemplate.Created"):
    """A shop offers coupons in [valid_from, valid_until), both aware UTC."""


class StockIncreased(Struct, frozen=True, gc=False, tag="CouponTemplate.StockIncreased"):
    shop_number: int
    by: int


class ValidityChanged(Struct, frozen=True, gc=False, tag="CouponTemplate.ValidityChanged"):
    shop_number: int
    valid_from: datetime
    valid_until: datetime


class Ended(Struct, frozen=True, gc=False, tag="CouponTemplate.Ended"):
    """The last event of a stream. `ended_at`: `valid_until` when expired, the moment of deciding when terminated."""

    shop_number: int
    reason: EndReason
    ended_at: datetime


Event = Created | StockIncreased | ValidityChanged | Ended
StoredEvent = Event  # joined by `|` with every earlier shape: a struct whose `upcast()` returns a later one
