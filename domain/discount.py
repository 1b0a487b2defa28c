"""What a coupon takes off a price. Money is in integer minor units (cents).

Stored within events, so the tags are explicit, and every rule is in rules.py.
"""

from msgspec import Struct


class FixedAmount(Struct, frozen=True, gc=False, tag="FixedAmount"):
    """`amount_off`, whatever is spent."""

    amount_off: int


class ThresholdAmount(Struct, frozen=True, gc=False, tag="ThresholdAmount"):
    """`amount_off` once `minimum_spend` is reached."""

    minimum_spend: int
    amount_off: int


class Percentage(Struct, frozen=True, gc=False, tag="Percentage"):
    """`percent_off` once `minimum_spend` is reached, up to `maximum_discount`."""

    percent_off: int
    minimum_spend: int
    maximum_discount: int


Discount = FixedAmount | ThresholdAmount | Percentage
