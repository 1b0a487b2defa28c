"""What may be asked of rows: what cannot is refused by name, as in commands, and never taken for something else."""

from datetime import date, datetime
from uuid import UUID

from coupon_clock.domain.errors import Problem
from coupon_clock.domain.rules import LARGEST_NUMBER, Problems, within

LARGEST_PAGE = 1_000
LOOKALIKES: dict[type, type] = {int: bool, date: datetime}
"""What Python takes for a number or a date, and is none."""


def shop_problems(shop_number: int) -> Problems:
    if wrong_type := list(of_type("shop_number", shop_number, int)):
        yield from wrong_type
    else:
        yield from within("shop_number", shop_number, 1, LARGEST_NUMBER)


def template_problems(shop_number: int, template_id: UUID) -> Problems:
    yield from shop_problems(shop_number)
    yield from of_type("template_id", template_id, UUID)


def limit_problems(limit: int) -> Problems:
    if wrong_type := list(of_type("limit", limit, int)):
        yield from wrong_type
    elif limit < 1:
        yield Problem("limit", limit, "must be at least 1")


def of_type(field: str, value: object, expected: type) -> Problems:
    if not isinstance(value, expected) or isinstance(value, LOOKALIKES.get(expected, ())):
        yield Problem(field, value, f"must be {expected.__name__}, not {type(value).__name__}")
