"""What can be asked of a coupon template: one frozen struct a command.

`command_id` (and Create's `template_id`) is made by the caller before the first try, so that a repeat
after an unknown outcome has no second effect. `expected_version` refuses when others came first.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from coupon_clock.domain.events import TemplateFields


class CreateCouponTemplate(TemplateFields, frozen=True, gc=False, kw_only=True):
    """Field by field as imported lines have them; the rules are in rules.py, all broken ones are reported at once.

    Where a field has a wrong type, all such fields are reported instead: rules are for what has the right one.
    """

    command_id: UUID
    actor: str | None = None
    expected_version: int | None = None


class IncreaseStock(Struct, frozen=True, gc=False, kw_only=True):
    """`by` more coupons, at least one."""

    command_id: UUID
    template_id: UUID
    shop_number: int
    by: int
    actor: str | None = None
    expected_version: int | None = None


class ChangeValidity(Struct, frozen=True, gc=False, kw_only=True):
    """Both ends of the window; aware times."""

    command_id: UUID
    template_id: UUID
    shop_number: int
    valid_from: datetime
    valid_until: datetime
    actor: str | None = None
    expected_version: int | None = None


class TerminateCouponTemplate(Struct, frozen=True, gc=False, kw_only=True):
    """Ends it now, before its end; already so where it has ended."""

    command_id: UUID
    template_id: UUID
    shop_number: int
    actor: str | None = None
    expected_version: int | None = None


class ExpireCouponTemplate(Struct, frozen=True, gc=False, kw_only=True):
    """Internal: look whether the template is due. No shop scope; ends it only at or after `valid_until`."""

    command_id: UUID
    template_id: UUID
    actor: str | None = None
    expected_version: int | None = None


ShopCommand = CreateCouponTemplate | IncreaseStock | ChangeValidity | TerminateCouponTemplate
Command = ShopCommand | ExpireCouponTemplate
