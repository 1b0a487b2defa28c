"""Every rule on a command's content. Each check returns the problems it found, so that all are named at once.

Types come first: what has a wrong one cannot be judged any further, and could be stored but never be read again.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from types import NoneType
from typing import get_args
from uuid import UUID

from msgspec import Struct
from msgspec.structs import astuple, fields

from coupon_clock.domain.commands import Command, CreateCouponTemplate
from coupon_clock.domain.discount import Discount, FixedAmount, Percentage, ThresholdAmount
from coupon_clock.domain.errors import InvalidCommand, Problem
from coupon_clock.domain.events import ConsumeRule, ReceiveRule
from coupon_clock.domain.texts import has_control_characters, is_visible, normalized
from coupon_clock.domain.validity import utc

SOURCES = ("shop", "platform")
TARGETS = ("product", "all_products")
LARGEST_NUMBER = 2**63 - 1
LARGEST_AMOUNT = 10**12
LARGEST_STOCK = 20_000_000
LONGEST_STREAM = 1_000
LATEST_END = datetime(9000, 1, 1, tzinfo=UTC)
LONGEST_NAME = 100
LONGEST_GOODS = 500
LONGEST_ACTOR = 200
LONGEST_INSTRUCTIONS = 1_000
LONGEST_EXPLANATION = 500

Problems = Iterator[Problem]


def refuse(problems: Problems) -> None:
    """Raises InvalidCommand with all of them, if there is any."""
    found = list(problems)
    if found:
        raise InvalidCommand(found)


# ── what no command may have, whatever it asks for ───────────────────────────────────────────────


def form_problems(struct: Struct, path: str = "") -> Problems:
    """Every field that has another type than declared: a text for a number, none for a time, True for 1."""
    for value, (name, types, is_nested) in zip(astuple(struct), declared(type(struct)), strict=True):
        if type(value) not in types and not is_storable_subclass(value, types):
            expected = " or ".join("none" if allowed is NoneType else allowed.__name__ for allowed in types)
            yield Problem(path + name, value, f"must be {expected}, not {type(value).__name__}")
        elif is_nested:
            yield from form_problems(value, f"{path}{name}.")


@cache
def declared(struct: type[Struct]) -> tuple[tuple[str, tuple[type, ...], bool], ...]:
    """Each field's name, the types that it may have, and whether it has fields itself."""
    types = {field.name: get_args(field.type) or (field.type,) for field in fields(struct)}
    return tuple((name, allowed, issubclass(allowed[0], Struct)) for name, allowed in types.items())


def is_storable_subclass(value: object, types: tuple[type, ...]) -> bool:
    """asyncpg's UUID, pendulum's DateTime, a StrEnum; no other, and so no bool for a number."""
    return isinstance(value, UUID | datetime | Enum) and isinstance(value, types)


# ── what each command may ask for ────────────────────────────────────────────────────────────────


def actor_problems(command: Command) -> Problems:
    yield from at_most("actor", command.actor or "", LONGEST_ACTOR)


def creation_problems(command: CreateCouponTemplate, now: datetime) -> Problems:
    yield from actor_problems(command)
    yield from within("shop_number", command.shop_number, 1, LARGEST_NUMBER)
    yield from name_problems(command.name)
    yield from one_of("source", command.source, SOURCES)
    yield from one_of("target", command.target, TARGETS)
    yield from goods_problems(command.target, command.goods)
    yield from discount_problems(command.discount)
    yield from receive_rule_problems(command.receive_rule)
    yield from consume_rule_problems(command.consume_rule)
    yield from validity_problems(command.valid_from, command.valid_until, now)
    yield from within("stock", command.stock, 1, LARGEST_STOCK)


def name_problems(name: str) -> Problems:
    if not 1 <= len(normalized(name)) <= LONGEST_NAME:
        yield Problem("name", name, f"must have 1 to {LONGEST_NAME} characters after trimming")
    else:
        yield from visible("name", name)


def goods_problems(target: str, goods: str | None) -> Problems:
    if target == "product" and not (goods and normalized(goods)):
        yield Problem("goods", goods, "must name the product that the target 'product' means")
    elif target == "all_products" and goods is not None:
        yield Problem("goods", goods, "must be none for the target 'all_products'")
    elif goods:
        yield from list(at_most("goods", goods, LONGEST_GOODS)) or visible("goods", goods)


def discount_problems(discount: Discount) -> Problems:
    match discount:
        case FixedAmount():
            yield from amount("discount.amount_off", discount.amount_off)
        case ThresholdAmount():
            yield from amount("discount.minimum_spend", discount.minimum_spend)
            yield from amount("discount.amount_off", discount.amount_off)
            if discount.amount_off > discount.minimum_spend:
                yield Problem("discount.amount_off", discount.amount_off, "must not be more than the minimum spend")
        case Percentage():
            yield from within("discount.percent_off", discount.percent_off, 1, 99)
            yield from within("discount.minimum_spend", discount.minimum_spend, 0, LARGEST_AMOUNT)
            yield from amount("discount.maximum_discount", discount.maximum_discount)


def receive_rule_problems(rule: ReceiveRule) -> Problems:
    yield from within("receive_rule.limit_per_person", rule.limit_per_person, 1, LARGEST_NUMBER)
    yield from at_most("receive_rule.usage_instructions", rule.usage_instructions, LONGEST_INSTRUCTIONS, lines=True)


def consume_rule_problems(rule: ConsumeRule) -> Problems:
    if rule.hours_after_claim is not None:
        yield from within("consume_rule.hours_after_claim", rule.hours_after_claim, 1, LARGEST_NUMBER)
    explanation = rule.explanation_of_unmet_conditions
    yield from at_most("consume_rule.explanation_of_unmet_conditions", explanation, LONGEST_EXPLANATION, lines=True)


def validity_problems(valid_from: datetime, valid_until: datetime, now: datetime) -> Problems:
    """Aware, in order, not over yet, and not after the year 9000.

    Compared in UTC: two times of one zone are compared by what its clocks show, whether repeated or skipped.
    """
    wrong_from, wrong_until = list(instant("valid_from", valid_from)), list(instant("valid_until", valid_until))
    yield from wrong_from
    yield from wrong_until or end_problems(utc(valid_until), now)
    if not (wrong_from or wrong_until) and utc(valid_until) <= utc(valid_from):
        yield Problem("valid_until", utc(valid_until), "must be after valid_from")


def end_problems(valid_until: datetime, now: datetime) -> Problems:
    if valid_until <= now:
        yield Problem("valid_until", valid_until, f"must be after now ({now.isoformat()})")
    if valid_until > LATEST_END:
        yield Problem("valid_until", valid_until, "must not be after the year 9000 begins")


def increase_problems(stock: int, by: int) -> Problems:
    if by < 1:
        yield Problem("by", by, "must be at least 1")
    elif stock + by > LARGEST_STOCK:
        yield Problem("by", by, f"must not raise the stock above {LARGEST_STOCK:,} (it is {stock:,})")


def length_problems(version: int) -> Problems:
    if version >= LONGEST_STREAM:
        yield Problem("version", version, f"is the most that a template can reach ({LONGEST_STREAM:,} events)")


def instant(field: str, value: object) -> Problems:
    if not isinstance(value, datetime):
        yield Problem(field, value, f"must be datetime, not {type(value).__name__}")
    elif value.utcoffset() is None:
        yield Problem(field, value, "has no time zone: give it one, as in datetime(…, tzinfo=UTC)")
    elif utc(value).tzinfo is not UTC:
        yield Problem(field, value, "is outside the calendar in UTC")


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> Problems:
    if value not in allowed:
        yield Problem(field, value, f"must be one of {', '.join(allowed)}")


def within(field: str, value: int, least: int, most: int) -> Problems:
    if not least <= value <= most:
        yield Problem(field, value, f"must be {least:,} to {most:,}")


def amount(field: str, value: int) -> Problems:
    yield from within(field, value, 1, LARGEST_AMOUNT)


def at_most(field: str, text: str, longest: int, *, lines: bool = False) -> Problems:
    """`lines`: it may have line breaks and tabs."""
    if len(normalized(text)) > longest:
        yield Problem(field, text, f"must have at most {longest:,} characters")
    else:
        yield from storable(field, text, lines=lines)


def visible(field: str, text: str) -> Problems:
    if found := list(storable(field, text)):
        yield from found
    elif not is_visible(text):
        yield Problem(field, text, "must have a character that can be seen")


def storable(field: str, text: str, *, lines: bool = False) -> Problems:
    if has_control_characters(text, lines=lines):
        yield Problem(field, text, "must not contain control characters, changes of direction or half a surrogate pair")


def is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
