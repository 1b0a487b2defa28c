"""Templates as files have them."""

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import Any

import msgspec

from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.importing.files import Format
from coupon_clock.importing.importer import records_of
from coupon_clock.importing.record import NotATemplate, command_of
from examples import ending_in

HOUR = 3600


def some_templates(count: int) -> list[CreateCouponTemplate]:
    return [ending_in(HOUR, name=f"Sale {n}") for n in range(count)]


def json_lines(*templates: CreateCouponTemplate) -> bytes:
    return b"".join(msgspec.json.encode(template) + b"\n" for template in templates)


def cells(template: CreateCouponTemplate, **other: Any) -> dict[str, Any]:
    """By column. `other`: named with `__` for the dot."""
    nested = msgspec.to_builtins(template)
    flat = {name: value for name, value in nested.items() if not isinstance(value, dict)}
    for group in ("discount", "receive_rule", "consume_rule"):
        flat |= {f"{group}.{name}": value for name, value in nested[group].items()}
    return flat | {name.replace("__", "."): value for name, value in other.items()}


def csv_file(*rows: dict[str, Any], columns: Sequence[str] = (), line_end: str = "\n") -> bytes:
    """With the columns of the first row, unless others are named."""
    text = StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def read(data: bytes, data_format: Format) -> dict[int, CreateCouponTemplate | str]:
    """What each record comes to, by the line that it begins with: a command, or the reason why there is none."""
    read: dict[int, CreateCouponTemplate | str] = {}
    for record in records_of(BytesIO(data), data_format):
        try:
            read[record.first] = command_of(record)
        except NotATemplate as reason:
            read[record.first] = str(reason)
    return read


def read_json(data: bytes) -> dict[int, CreateCouponTemplate | str]:
    return read(data, Format.JSON)


def read_csv(data: bytes) -> dict[int, CreateCouponTemplate | str]:
    return read(data, Format.CSV)
