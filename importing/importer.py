"""Records become templates, in chunks; what is refused is reported by line, and the rest goes in.

Every record carries its ids, so the same file can be imported again, or gone on with from any line, without harm.
"""

from collections.abc import Iterable, Iterator
from itertools import dropwhile, islice
from typing import BinaryIO, NamedTuple

from coupon_clock.app import Application
from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.domain.events import Event
from coupon_clock.importing.csv_records import csv_records
from coupon_clock.importing.files import Format
from coupon_clock.importing.json_lines import json_records
from coupon_clock.importing.record import NotATemplate, TemplateRecord, command_of
from coupon_clock.infrastructure.command_handling.handler import Executed
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable

CHUNK = 1_000


class RefusedLine(NamedTuple):
    """One record that did not go in; `line`: the one that it begins with, from 1."""

    line: int
    reason: str


class Imported(NamedTuple):
    """What some records came to: `accepted` ones have their template, made now or before; that of `over` ones was made
    before, and can no longer be used. All up to the line `through` is then done."""

    accepted: int
    over: int
    refused: list[RefusedLine]
    through: int


class Tally:
    """What one run has done so far: all up to the line `through`."""

    def __init__(self, after: int) -> None:
        self.accepted, self.over, self.refused, self.through = 0, 0, 0, after

    def add(self, imported: Imported) -> None:
        self.accepted += imported.accepted
        self.over += imported.over
        self.refused += len(imported.refused)
        self.through = imported.through

    def __str__(self) -> str:
        over = f"{self.over:,} made before and over, " if self.over else ""
        return f"{self.accepted:,} templates imported, {over}{self.refused:,} lines refused"

    def as_json(self) -> dict[str, int]:
        return {"accepted": self.accepted, "over": self.over, "refused": self.refused}


def records_of(stream: BinaryIO, data_format: Format) -> Iterator[TemplateRecord]:
    """Raises HeaderUnusable, at once; FileUnreadable, whenever."""
    match data_format:
        case Format.CSV:
            return csv_records(stream)
        case Format.JSON:
            return json_records(stream)


def import_records(app: Application, records: Iterable[TemplateRecord], after: int = 0) -> Iterator[Imported]:
    """The result of each chunk, in order. Those that end with line `after`, or before it, are passed over.

    Raises DatabaseUnavailable, OutcomeUnknown, UnsafeLog: what was not yielded may be in or not, and can be sent again.
    """
    rest = dropwhile(lambda record: record.last <= after, records)
    while chunk := list(islice(rest, CHUNK)):
        yield _import_chunk(app, chunk)


def _import_chunk(app: Application, chunk: list[TemplateRecord]) -> Imported:
    refused: list[RefusedLine] = []
    commands: dict[int, CreateCouponTemplate] = {}
    for record in chunk:
        try:
            commands[record.first] = command_of(record)
        except NotATemplate as reason:
            refused.append(RefusedLine(record.first, str(reason)))
    over = 0
    for line, outcome in zip(commands, app.runtime.execute_many(list(commands.values())), strict=True):
        if isinstance(outcome, DatabaseUnavailable | OutcomeUnknown | UnsafeLog):
            raise outcome
        if isinstance(outcome, CouponClockError):
            refused.append(RefusedLine(line, str(outcome)))
        elif _was_over(outcome):
            over += 1
    return Imported(len(chunk) - len(refused) - over, over, sorted(refused), chunk[-1].last)


def _was_over(outcome: Executed[Event]) -> bool:
    """Whether the template was there before, and nothing is due any more or it was due already."""
    is_new = outcome.events and not outcome.repeated
    return not is_new and (outcome.was_due_at is None or outcome.was_due_at <= outcome.decided_at)
