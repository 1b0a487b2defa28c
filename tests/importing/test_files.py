"""Lines by number, whatever they are; formats by name."""

import os
from io import BytesIO
from pathlib import Path

import pytest

from coupon_clock.importing.files import (
    LONGEST_LINE,
    FileUnreadable,
    Format,
    format_of,
    line_count,
    numbered_lines,
    opened,
)


@pytest.mark.parametrize(
    ("name", "data_format"),
    [("a.csv", Format.CSV), ("a.CSV", Format.CSV), ("a.jsonl", Format.JSON), ("csv", Format.JSON), ("-", Format.JSON)],
)
def test_the_end_of_the_name_tells_the_format(name, data_format):
    assert format_of(Path(name)) is data_format


def test_lines_count_from_one_and_a_byte_order_mark_is_none_of_the_first():
    assert list(numbered_lines(BytesIO(b"\xef\xbb\xbfa\r\n\n\xef\xbb\xbfb"))) == [
        (1, b"a\r\n"), (2, b"\n"), (3, b"\xef\xbb\xbfb")
    ]  # fmt: skip


def test_of_a_line_that_is_too_long_only_the_beginning_is_kept():
    long = b"x" * 10_000_000

    found = list(numbered_lines(BytesIO(b"a\n" + long + b"\nb\n" + long)))

    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [line for _, line in found][::2] == [b"a\n", b"b\n"]
    assert len(found[1][1]) == len(found[3][1]) == LONGEST_LINE + 1


@pytest.mark.parametrize("data", [b"", b"a", b"a\n", b"a\nb", b"\n\n", b"a\r\nb\r\n"])
def test_a_file_has_as_many_lines_as_are_numbered(tmp_path, data):
    (tmp_path / "file").write_bytes(data)

    assert line_count(tmp_path / "file") == len(list(numbered_lines(BytesIO(data))))


def test_the_lines_of_what_can_be_read_only_once_are_not_counted(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert line_count(tmp_path / "pipe") is None
    assert line_count(Path("-")) is None


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(FileUnreadable, match="Is a directory"), opened(tmp_path):
        pass
    with pytest.raises(FileUnreadable, match="missing cannot be read: No such file"), opened(tmp_path / "missing"):
        pass
