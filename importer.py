"""Bulk import: JSON lines become templates, in chunks; what is refused is reported by line, and the rest goes in.

Every line carries its command_id, so the same file can be imported again after an interruption without harm.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from coupon_clock.app import Application
from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.errors import CouponError, OutcomeUnknown
from coupon_clock.infrastructure.database import DatabaseUnavailable

CHUNK = 1_000


class Refused(NamedTuple):
    """One line that did not go in; `number` counts from 1."""

    number: int
    reason: str


class Imported(NamedTuple):
    """What some lines came to: `accepted` ones have their template, made now or by an earlier import."""

    accepted: int
    refused: list[Refused]


def import_lines(app: Application, lines: Iterable[bytes]) -> Iterator[Imported]:
    """The result of each chunk of lines, in order; blank lines are passed over.

    Raises DatabaseUnavailable or OutcomeUnknown: import the same file again.
    """
    numbered = enumerate(lines, 1)
    while chunk := list(islice(numbered, CHUNK)):
        yield _import_chunk(app, [(number, line) for number, line in chunk if line.strip()])


def _import_chunk(app: Application, chunk: list[tuple[int, bytes]]) -> Imported:
    refused: list[Refused] = []
    commands: dict[int, CreateCouponTemplate] = {}
    for number, line in chunk:
        try:
            commands[number] = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            refused.append(Refused(number, str(error)))
    for number, outcome in zip(commands, app.execute_many(list(commands.values())), strict=True):
        if isinstance(outcome, DatabaseUnavailable | OutcomeUnknown):
            raise outcome
        if isinstance(outcome, CouponError):
            refused.append(Refused(number, str(outcome)))
    return Imported(len(chunk) - len(refused), sorted(refused))


_decoder = msgspec.json.Decoder(CreateCouponTemplate)
