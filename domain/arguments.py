"""What may be given to a public call: a wrong argument is refused by name, and never taken for something else."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from itertools import chain
from math import isfinite
from uuid import UUID

from coupon_clock.domain.errors import InvalidArgument, Problem
from coupon_clock.domain.rules import LARGEST_NUMBER, Problems, instant, within

LARGEST_PAGE = 1_000
LONGEST_NAME = 100
LONGEST_TIMEOUT_S = 86_400.0
LOOKALIKES: dict[type, type] = {int: bool, date: datetime}
"""What Python takes for a number or a date, and is none."""


def refuse(*problems: Iterable[Problem]) -> None:
    """Raises InvalidArgument with all of them, if there is any."""
    found = list(chain.from_iterable(problems))
    if found:
        raise InvalidArgument(found)


def of_type(field: str, value: object, *expected: type) -> Problems:
    if not isinstance(value, expected) or isinstance(value, LOOKALIKES.get(expected[0], ())):
        names = " or ".join(each.__name__ for each in expected)
        yield Problem(field, value, f"must be {names}, not {type(value).__name__}")


def whole_number(field: str, value: int, least: int, most: int = LARGEST_NUMBER) -> Problems:
    yield from list(of_type(field, value, int)) or within(field, value, least, most)


def number(field: str, value: float, least: float, most: float) -> Problems:
    """A finite one."""
    if wrong_type := list(of_type(field, value, int, float)):
        yield from wrong_type
    elif not (isfinite(value) and least <= value <= most):
        yield Problem(field, value, f"must be {least:,g} to {most:,g}")


def list_of(field: str, value: object, *expected: type) -> Problems:
    """A tuple and the like too; a text is none, though Python can walk through it. Without `expected`, a generator is
    fine as well."""
    if not isinstance(value, Sequence if expected else Iterable) or isinstance(value, str | bytes | Mapping):
        yield Problem(field, value, f"must be a list, not {type(value).__name__}")
    elif expected:
        yield from chain.from_iterable(of_type(field, each, *expected) for each in value)


def name(field: str, value: str) -> Problems:
    """Of a follower, a projection and the like."""
    if wrong_type := list(of_type(field, value, str)):
        yield from wrong_type
    elif not 1 <= len(value) <= LONGEST_NAME:
        yield Problem(field, value, f"must have 1 to {LONGEST_NAME} characters")
    elif not value.isprintable() or value != value.strip():
        yield Problem(field, value, "must have visible characters and inner spaces only")


def text(field: str, value: str, longest: int) -> Problems:
    """A sentence or two that a person wrote."""
    if wrong_type := list(of_type(field, value, str)):
        yield from wrong_type
    elif not 1 <= len(value) <= longest:
        yield Problem(field, value, f"must have 1 to {longest:,} characters")
    elif not value.isprintable():
        yield Problem(field, value, "must have visible characters and spaces only")


def function(field: str, value: object) -> Problems:
    if not callable(value):
        yield Problem(field, value, f"must be a function, not {type(value).__name__}")


def shop(shop_number: int) -> Problems:
    yield from whole_number("shop_number", shop_number, 1)


def template(shop_number: int, template_id: UUID) -> Problems:
    yield from shop(shop_number)
    yield from of_type("template_id", template_id, UUID)


def waiting(at_least: int | None, timeout: float) -> Problems:
    """For the read model to reach a position; one beyond the end of the log is waited for in vain."""
    if at_least is not None:
        yield from whole_number("at_least", at_least, 0)
    yield from number("timeout", timeout, 0, LONGEST_TIMEOUT_S)


def limit(value: int) -> Problems:
    """More than LARGEST_PAGE is taken for that, as the cursor leads to the rest."""
    if wrong_type := list(of_type("limit", value, int)):
        yield from wrong_type
    elif value < 1:
        yield Problem("limit", value, "must be at least 1")


def position_or_time(field: str, value: int | datetime) -> Problems:
    """A position of the log, or an aware time."""
    if isinstance(value, datetime):
        yield from instant(field, value)
    else:
        yield from list(of_type(field, value, int, datetime)) or within(field, value, 0, LARGEST_NUMBER)
