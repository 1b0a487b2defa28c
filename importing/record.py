"""A record is what one template is made of, whatever the format; its fields become a command, or a reason why not."""

import re
from collections.abc import Callable, Iterator
from functools import cache, reduce
from operator import getitem
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import Struct

from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.discount import Discount
from coupon_clock.domain.errors import Problem
from coupon_clock.domain.rules import is_utf8

Fields = dict[str, Any]
"""As JSON has them: dictionaries, texts, numbers."""

DISCOUNTS = ", ".join(kind.__name__ for kind in get_args(Discount))
PLACED = re.compile(r"(?P<what>.*) - at `\$\.(?P<path>.*)`", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
REWORDED = (
    (re.compile(r"Expected `(.*)`, got `(.*)`"), r"must be \1, not \2"),
    (re.compile(r"Invalid RFC3339 encoded datetime"), "must be a time, as 2026-01-31T00:00:00Z"),
    (re.compile(r"Invalid UUID"), "must be a UUID"),
    (re.compile(r"Invalid value .*", re.DOTALL), f"must be one of {DISCOUNTS}"),
)


class NotATemplate(Exception):
    """Why a record cannot become a template; names the field."""


class TemplateRecord(NamedTuple):
    """The lines of a file from `first` to `last`, read only when they are needed: `fields()` raises NotATemplate."""

    first: int
    last: int
    fields: Callable[[], Fields]


def command_of(record: TemplateRecord) -> CreateCouponTemplate:
    """Raises NotATemplate. A field that nobody knows is refused: a misspelt one would be missed too late."""
    fields = record.fields()
    try:
        command = msgspec.convert(fields, CreateCouponTemplate)
    except msgspec.ValidationError as error:
        raise NotATemplate(reason_of(error, fields)) from error
    refuse(unknown_fields(fields, command))
    return command


def refuse(problems: Iterator[Problem]) -> None:
    if reasons := "; ".join(map(str, problems)):
        raise NotATemplate(reasons)


def unknown_fields(fields: Fields, made: Struct, path: str = "") -> Iterator[Problem]:
    """`made`: what became of them."""
    known = names_of(type(made))
    if not known.issuperset(fields):
        of_what = f" of {type(made).__name__}" if path else ""
        for name in sorted(fields.keys() - known):
            yield Problem(path + name, fields[name], f"is not a field{of_what}")
    for name, value in fields.items():
        if type(value) is dict and name in known:
            yield from unknown_fields(value, getattr(made, name), f"{path}{name}.")


@cache
def names_of(struct: type[Struct]) -> frozenset[str]:
    tag = struct.__struct_config__.tag_field
    return frozenset(struct.__struct_fields__) | ({tag} if tag else set())


def reason_of(error: msgspec.ValidationError, fields: Fields) -> str:
    """msgspec says what is wrong, and then where."""
    placed = PLACED.fullmatch(str(error))
    what, path = (placed["what"], placed["path"]) if placed else (str(error), "")
    if missing := MISSING.fullmatch(what):
        return f"{path}{'.' if path else ''}{missing['name']} is missing"
    for pattern, reason in REWORDED:
        what = pattern.sub(reason, what)
    return str(Problem(path, reduce(getitem, path.split("."), fields), what))


def refuse_broken_texts(fields: Fields) -> None:
    """Bytes that are no UTF-8 come as halves of surrogate pairs. Raises NotATemplate, if there is any."""
    refuse(broken_texts(fields))


def broken_texts(fields: Fields, path: str = "") -> Iterator[Problem]:
    for name, value in fields.items():
        if type(value) is str:
            if not is_utf8(value):
                yield Problem(path + name, value, "is not UTF-8")
        elif type(value) is dict:
            yield from broken_texts(value, f"{path}{name}.")
