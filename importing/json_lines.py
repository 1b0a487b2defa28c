"""JSON lines: one object a line, with the fields of CreateCouponTemplate."""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

import msgspec

from coupon_clock.importing.files import LONGEST_LINE, is_too_long, numbered_lines
from coupon_clock.importing.record import Fields, NotATemplate, TemplateRecord, refuse_broken_texts


def json_records(stream: BinaryIO) -> Iterator[TemplateRecord]:
    """Blank lines are passed over."""
    for number, line in numbered_lines(stream):
        if not line.isspace():
            yield TemplateRecord(number, number, partial(fields_of, line))


def fields_of(line: bytes) -> Fields:
    """Raises NotATemplate."""
    if is_too_long(line):
        raise NotATemplate(f"the line is longer than {LONGEST_LINE:,} bytes")
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        refuse_line_not_utf8(line)
        raise NotATemplate("JSON is not UTF-8") from error
    except RecursionError as error:
        raise NotATemplate("JSON is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise NotATemplate(str(error)) from error
    if not isinstance(value, dict):
        raise NotATemplate('the line must be an object, as {"command_id": …}')
    json.loads(line, object_pairs_hook=refuse_repeated_keys)
    return value


def refuse_repeated_keys(pairs: list[tuple[str, object]]) -> None:
    """Readers of JSON take the last one, of which nobody would be told. Raises NotATemplate."""
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise NotATemplate("; ".join(f"{name} is given more than once" for name in repeated))


def refuse_line_not_utf8(line: bytes) -> None:
    """Names the field, where the line is JSON otherwise. Raises NotATemplate."""
    with suppress(ValueError, RecursionError):
        value = json.loads(line.decode(errors="surrogateescape"))
        if isinstance(value, dict):
            refuse_broken_texts(value)
