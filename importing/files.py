"""The file of an import: its format, its lines by number, and how many there are.

No line can fill the memory: of one that is too long only the beginning is kept.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from coupon_clock.domain.errors import CouponClockError

LONGEST_LINE = 100_000
"""In bytes, its end included; four times what a template with the longest texts takes."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLOCK = 1 << 20


class Format(StrEnum):
    CSV = "csv"
    JSON = "json"


class FileUnreadable(CouponClockError):
    """{name} cannot be read: {reason}."""

    def __init__(self, name: object, error: OSError) -> None:
        super().__init__(name, error)
        self.name, self.reason = name, error.strerror or error


def format_of(file: Path) -> Format:
    """By the end of its name: JSON lines unless it is `.csv`, in any case."""
    return Format.CSV if file.suffix.lower() == ".csv" else Format.JSON


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """`-` is standard input. Raises FileUnreadable."""
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise FileUnreadable(file, error) from error
    with stream:
        yield stream


def line_count(file: Path) -> int | None:
    """Of a regular file; unknown of standard input and pipes, which can be read only once. Raises FileUnreadable."""
    if not file.is_file():
        return None
    count, last = 0, b"\n"
    with opened(file) as stream:
        while block := read(stream, BLOCK):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """From 1, with their ends, without a byte order mark. Raises FileUnreadable."""
    number = 0
    while line := read_line(stream):
        number += 1
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if is_too_long(line) and not line.endswith(b"\n"):
            pass_over_the_rest(stream)


def is_too_long(line: bytes) -> bool:
    return len(line) > LONGEST_LINE


def pass_over_the_rest(stream: BinaryIO) -> None:
    while (rest := read_line(stream)) and not rest.endswith(b"\n"):
        pass


def read_line(stream: BinaryIO) -> bytes:
    try:
        return stream.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise FileUnreadable(stream.name, error) from error


def read(stream: BinaryIO, size: int) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise FileUnreadable(stream.name, error) from error
