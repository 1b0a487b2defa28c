"""Whatever a file holds, a record becomes a command or a reason that names the field; nothing else happens."""

import json
from io import BytesIO

import msgspec
import pytest
from formats import csv_file, read_csv, read_json
from hypothesis import given, settings
from hypothesis import strategies as st

from coupon_clock.importing.csv_records import COLUMNS
from coupon_clock.importing.files import Format
from coupon_clock.importing.importer import records_of
from coupon_clock.importing.record import NotATemplate, command_of
from examples import a_template

PATHS = [[str(column.group), column.name] if column.group else [column.name] for column in COLUMNS.values()]
TEXTS = st.text() | st.binary().map(lambda data: data.decode(errors="surrogateescape"))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))

HEADER = ",".join(COLUMNS).encode() + b"\n"
PIECES = st.sampled_from([b'"', b",", b"\n", b"\r\n", b"{", b"}", b"[", b":", b"\xff", b"\0", b'"stock"', b"1"])


@settings(deadline=None)
@given(st.sampled_from([*PATHS, ["colour"], ["receive_rule", "colour"]]), VALUES)
def test_a_field_with_anything_in_it_is_taken_or_named(path, value):
    fields = msgspec.to_builtins(a_template())
    *groups, name = path
    (fields[groups[0]] if groups else fields)[name] = value

    (read,) = read_json(json.dumps(fields).encode()).values()

    assert not isinstance(read, str) or name in read or "JSON is malformed" in read or "truncated" in read


@settings(deadline=None)
@given(st.sampled_from(sorted(COLUMNS)), TEXTS)
def test_a_cell_with_anything_in_it_is_taken_or_named(column, cell):
    row = dict.fromkeys(COLUMNS, "") | {
        "discount.type": "FixedAmount",
        "source": "shop",
        column: cell.replace("\r", ""),
    }

    (reason,) = read_csv(csv_file(row)).values()

    assert isinstance(reason, str)
    assert " is missing" in reason or column in reason


@settings(deadline=None)
@given(st.lists(PIECES | st.binary(max_size=3), max_size=60).map(b"".join))
@pytest.mark.parametrize(("data_format", "before"), [(Format.JSON, b""), (Format.CSV, HEADER)])
def test_of_any_bytes_each_record_is_refused_on_its_own_and_none_comes_twice(data_format, before, data):
    last = 0
    for record in records_of(BytesIO(before + data), data_format):
        assert last < record.first <= record.last
        last = record.last
        with pytest.raises(NotATemplate):
            command_of(record)
