"""CSV: a header with the names of fields, nested ones dotted, and one record a template. An empty cell is not given.

A quoted cell may hold line breaks, so a record may take several lines. Where a quote is wrong, only the line that the
record begins with is refused, and the next line begins a record again: else one missing quote would swallow the rest.
A record has at most MOST_LINES, so that a file of wrong quotes is read in linear time. Office programs add empty cells
and lines at the ends: they are passed over.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO, NamedTuple, Self, get_args

from msgspec import Struct
from msgspec.structs import fields

from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.errors import CouponClockError, Problem
from coupon_clock.domain.rules import is_utf8
from coupon_clock.importing.files import LONGEST_LINE, numbered_lines
from coupon_clock.importing.record import Fields, NotATemplate, TemplateRecord, refuse_broken_texts

MOST_LINES = 100
WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,99})")


class HeaderUnusable(CouponClockError):
    """The header of the CSV file cannot be used: {reason}; the columns are {columns}."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.columns = ", ".join(COLUMNS)


def csv_records(stream: BinaryIO) -> Iterator[TemplateRecord]:
    """Blank lines are passed over. Raises HeaderUnusable, at once."""
    rows = read_rows(numbered_lines(stream))
    columns = columns_of(next(rows, None))
    return (
        TemplateRecord(row.first, row.last, partial(fields_of, columns, row.cells)) for row in rows if any(row.cells)
    )


# ── columns ──────────────────────────────────────────────────────────────────────────────────────


class Column(NamedTuple):
    """`group`: the field that it is nested in, or none."""

    group: str
    name: str
    is_number: bool = False
    is_required: bool = False

    def __str__(self) -> str:
        return f"{self.group}.{self.name}" if self.group else self.name


def declared(struct: type[Struct], group: str = "") -> Iterator[Column]:
    """The columns that a command's fields make; those of all kinds where there are several, as of discounts."""
    if tag := struct.__struct_config__.tag_field:
        yield Column(group, tag, is_required=True)
    for field in fields(struct):
        types = get_args(field.type) or (field.type,)
        structs = [t for t in types if issubclass(t, Struct)]
        for nested in structs:
            yield from declared(nested, field.name)
        if not structs:
            is_one_of_several = struct.__struct_config__.tag is not None
            yield Column(group, field.name, int in types, field.required and not is_one_of_several)


COLUMNS = {str(column): column for column in declared(CreateCouponTemplate)}
GROUPS = {column.group for column in COLUMNS.values()}


def columns_of(header: "CsvRow | None") -> list[Column]:
    """Raises HeaderUnusable."""
    if header is None:
        raise HeaderUnusable("the file is empty")
    if isinstance(header.cells, str):
        raise HeaderUnusable(header.cells)
    names = without_empty_end(header.cells)
    if not all(map(is_utf8, names)):
        raise HeaderUnusable("it is not UTF-8")
    if reason := ", ".join(header_problems(names)):
        raise HeaderUnusable(reason)
    return [COLUMNS[name] for name in names]


def without_empty_end(cells: Sequence[str]) -> Sequence[str]:
    filled = next((n for n in range(len(cells), 0, -1) if cells[n - 1]), 0)
    return cells[:filled]


def header_problems(names: Sequence[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if name not in COLUMNS:
            yield f"column {name!r} is unknown"
        elif count > 1:
            yield f"column {name!r} is repeated"
    for name, column in COLUMNS.items():
        if column.is_required and name not in names:
            yield f"column {name!r} is missing"


# ── cells ────────────────────────────────────────────────────────────────────────────────────────


def fields_of(columns: Sequence[Column], cells: Sequence[str] | str) -> Fields:
    """Raises NotATemplate."""
    if isinstance(cells, str):
        raise NotATemplate(cells)
    if len(cells) > len(columns) >= len(without_empty_end(cells)):
        cells = cells[: len(columns)]
    if len(cells) != len(columns):
        raise NotATemplate(f"the record has {len(cells)} cells, the header has {len(columns)}")
    made: dict[str, Fields] = {group: {} for group in GROUPS}
    for column, cell in zip(columns, cells, strict=True):
        if cell:
            made[column.group][column.name] = number(column, cell) if column.is_number else cell
    nested = made.pop("") | made
    if not is_utf8("".join(cells)):
        refuse_broken_texts(nested)
    return nested


def number(column: Column, cell: str) -> int:
    if not WHOLE_NUMBER.fullmatch(cell):
        raise NotATemplate(str(Problem(str(column), cell, "must be a whole number, as 100")))
    return int(cell)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


class CsvRow(NamedTuple):
    """The lines of a file from `first` to `last`. `cells`: or why there are none."""

    first: int
    last: int
    cells: list[str] | str


class RowTooLong(Exception):
    """More lines than any template takes."""


def read_rows(lines: Iterator[tuple[int, bytes]]) -> Iterator[CsvRow]:
    source = RowLines(lines)
    reader = csv.reader(source, strict=True)
    while True:
        source.begin()
        try:
            cells: list[str] | str | None = next(reader, None)
        except (csv.Error, RowTooLong) as error:
            cells = what_is_wrong(source, error)
            source.take_back_all_but_the_first()
        if cells is None:
            return
        if cells:
            yield CsvRow(source.first, source.last, cells)


def what_is_wrong(source: "RowLines", error: Exception) -> str:
    if source.first == source.last and isinstance(error, RowTooLong):
        return f"the line is longer than {LONGEST_LINE:,} bytes"
    if isinstance(error, RowTooLong) or source.is_at_the_end:
        return "a quote that is opened here is not closed"
    if "new-line" in str(error):
        return "a carriage return outside of quotes is neither a line's end nor part of a cell"
    return f"a quote is wrong, one within a quoted cell must be doubled ({error})"


class RowLines:
    """What csv.reader takes its lines from. It remembers those of the row in hand, to take them back."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self._taken_back: list[tuple[int, bytes]] = []
        self._taken: list[tuple[int, bytes]] = []
        self._size = 0
        self.is_at_the_end = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            number, line = self._taken_back.pop() if self._taken_back else next(self._lines)
        except StopIteration:
            self.is_at_the_end = True
            raise
        self._taken.append((number, line))
        self._size += len(line)
        if self._size > LONGEST_LINE or len(self._taken) > MOST_LINES:
            raise RowTooLong
        return line.decode(errors="surrogateescape")

    @property
    def first(self) -> int:
        return self._taken[0][0]

    @property
    def last(self) -> int:
        return self._taken[-1][0]

    def begin(self) -> None:
        self._taken.clear()
        self._size = 0
        self.is_at_the_end = False

    def take_back_all_but_the_first(self) -> None:
        self._taken_back.extend(reversed(self._taken[1:]))
        del self._taken[1:]
