"""JSON lines: one object a line, with the fields of CreateCouponTemplate."""

import json
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import msgspec

from coupon_clock.importing.files import LONGEST_LINE, is_too_long, numbered_lines
from coupon_clock.importing.record import Fields, NotATemplate, Record


def json_records(stream: BinaryIO) -> Iterator[Record]:
    """Blank lines are passed over."""
    for number, line in numbered_lines(stream):
        if not line.isspace():
            yield Record(number, number, partial(fields_of, line))


def fields_of(line: bytes) -> Fields:
    """Raises NotATemplate."""
    if is_too_long(line):
        raise NotATemplate(f"the line is longer than {LONGEST_LINE:,} bytes")
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        value = with_broken_texts(line, error)
    except RecursionError as error:
        raise NotATemplate("JSON is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise NotATemplate(str(error)) from error
    if not isinstance(value, dict):
        raise NotATemplate('the line must be an object, as {"command_id": …}')
    return value


def with_broken_texts(line: bytes, error: UnicodeDecodeError) -> object:
    """So that the field can be named. Raises NotATemplate."""
    try:
        return json.loads(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        raise NotATemplate(f"JSON is not UTF-8: {error}") from error
