"""All projections. One is added by its file and a line here."""

from dataclasses import dataclass
from typing import Any

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.shop_months import SHOP_MONTHS

PROJECTIONS: tuple[Projection[Any], ...] = (TEMPLATE_ROWS, SHOP_MONTHS)


@dataclass(eq=False)
class UnknownProjection(CouponClockError):
    """There is no projection {name}: there are {known}."""

    name: str
    known: str


def projection_named(name: str) -> Projection[Any]:
    """Raises UnknownProjection."""
    for projection in PROJECTIONS:
        if projection.name == name:
            return projection
    raise UnknownProjection(name, ", ".join(projection.name for projection in PROJECTIONS))
