"""A header and one record a template, with every way that such files have of being wrong."""

from time import monotonic

import pytest
from formats import cells, csv_file, read_csv

from coupon_clock.domain.discount import FixedAmount, Percentage
from coupon_clock.domain.events import ConsumeRule, ReceiveRule
from coupon_clock.importing.csv_records import COLUMNS, HeaderUnusable
from examples import a_template

DISCOUNTS = [a_template().discount, FixedAmount(amount_off=5), Percentage(15, minimum_spend=0, maximum_discount=10**12)]


@pytest.mark.parametrize("discount", DISCOUNTS, ids=lambda discount: type(discount).__name__)
def test_every_field_of_a_template_has_its_column(discount):
    template = a_template(
        discount=discount,
        target="product",
        goods="tea, green",
        receive_rule=ReceiveRule(3, 'Say "please"'),
        consume_rule=ConsumeRule(24, "Too early"),
        actor="Ann",
        expected_version=0,
    )

    assert read_csv(csv_file(cells(template), columns=list(COLUMNS))) == {2: template}


def test_an_empty_cell_is_not_given():
    template = a_template(consume_rule=ConsumeRule())
    row = cells(template, goods="", receive_rule__usage_instructions="", consume_rule__hours_after_claim="")

    assert read_csv(csv_file(row)) == {2: template}
    assert read_csv(csv_file(row | {"stock": ""})) == {2: "stock is missing"}


def test_columns_may_stand_in_any_order_and_those_with_a_default_may_be_left_out():
    template = a_template(consume_rule=ConsumeRule())
    row = {name: cell for name, cell in cells(template).items() if not name.startswith("consume_rule")}
    del row["goods"], row["actor"], row["expected_version"], row["receive_rule.usage_instructions"]

    assert read_csv(csv_file(row, columns=sorted(row, reverse=True))) == {2: template}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_byte_order_mark_and_line_ends_of_either_kind_are_no_part_of_a_cell(mark, line_end):
    template = a_template(receive_rule=ReceiveRule(1, "last"))
    row = cells(template)
    columns = [*(set(row) - {"receive_rule.usage_instructions"}), "receive_rule.usage_instructions"]

    assert read_csv(mark + csv_file(row, columns=columns, line_end=line_end)) == {2: template}


def test_a_quoted_cell_may_hold_line_breaks_and_a_record_has_the_number_of_its_first_line():
    two, three = a_template(name="two\nthree\n\nfive"), a_template(name="six")

    assert read_csv(csv_file(cells(two), cells(three))) == {2: two, 6: three}


def test_blank_lines_are_passed_over():
    template = a_template()

    assert read_csv(csv_file(cells(template)).replace(b"\n", b"\n\r\n\n")) == {4: template}


def test_only_a_header_is_no_templates():
    assert read_csv(csv_file(cells(a_template())).splitlines(keepends=True)[0]) == {}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda header: header.replace(b"stock", b"colour"), "column 'colour' is unknown, column 'stock' is missing"),
        (lambda header: header.replace(b"goods", b"name"), "column 'name' is repeated"),
        (lambda header: header.replace(b",", b";"), "is unknown, column 'template_id' is missing"),
        (lambda header: header.replace(b"name", b'"name'), "a quote that is opened here is not closed"),
        (lambda header: header.decode().encode("utf-16"), "it is not UTF-8"),
        (lambda header: b"\n", "the file is empty"),
        (lambda header: b"", "the file is empty"),
    ],
    ids=["unknown", "repeated", "semicolons", "quote", "UTF-16", "blank", "empty"],
)
def test_a_header_that_cannot_be_used_is_refused_at_once_and_names_the_column(broken, says):
    header = csv_file(cells(a_template())).splitlines(keepends=True)[0]

    with pytest.raises(HeaderUnusable, match=says):
        read_csv(broken(header))


@pytest.mark.parametrize("cell", ["1.0", "1e2", " 1", "1 ", "+1", "1_000", "1,000", "007", "0x1", "١", "many", "True"])
def test_a_number_is_a_whole_one_and_nothing_like_it(cell):
    found = read_csv(csv_file(cells(a_template(), receive_rule__limit_per_person=cell)))

    assert found == {2: f"receive_rule.limit_per_person must be a whole number, as 100 (got {cell!r})"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"template_id": "none"}, "template_id must be a UUID (got 'none')"),
        ({"valid_until": "2026-02-30T00:00:00Z"}, "valid_until must be a time, as 2026-01-31T00:00:00Z"),
        ({"discount.type": "Gift"}, "discount.type must be one of FixedAmount, ThresholdAmount, Percentage"),
        ({"discount.type": "FixedAmount"}, "discount.minimum_spend is not a field of FixedAmount"),
        ({"discount.amount_off": ""}, "discount.amount_off is missing"),
        ({"name": "Spr\udcffng"}, "name is not UTF-8"),
        ({"name": "Spring\nsa\udcffle\n"}, "name is not UTF-8"),
        ({"name": "x" * 10_000_000}, "the line is longer than 100,000 bytes"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_record_that_is_no_template_says_why_and_the_next_goes_in(row, reason):
    template = a_template()

    first, next_one = read_csv(csv_file(cells(a_template()) | row, cells(template))).values()

    assert reason in first
    assert next_one == template


@pytest.mark.parametrize("cut", [slice(1), slice(18), slice(20)], ids=["one", "one too few", "one too many"])
def test_a_record_has_as_many_cells_as_the_header(cut):
    header, record = csv_file(cells(a_template())).splitlines()
    some = [*record.split(b","), b"more"][cut]

    found = read_csv(header + b"\n" + b",".join(some))

    assert found == {2: f"the record has {len(some)} cells, the header has 19"}


@pytest.mark.parametrize("following", [1, 3, 500], ids="{} records follow".format)
@pytest.mark.parametrize("bad", ['"Spring', '"Spring"time', '"Spri\nng'], ids=["open", "between", "over two lines"])
def test_a_wrong_quote_spoils_the_line_that_it_is_in_and_no_record_after_it(bad, following):
    templates = [a_template(name=f'"{n}",\n') for n in range(following)]
    good = [cells(template) for template in templates]
    data = csv_file(cells(a_template(name="BAD")), *good).replace(b"BAD", bad.encode())

    found = read_csv(data)

    assert "quote" in found[2]
    assert [command for command in found.values() if not isinstance(command, str)] == templates


def test_a_quote_that_is_never_closed_is_reported_from_other_wrong_ones():
    header, record = csv_file(cells(a_template(name="BAD"))).splitlines()

    assert read_csv(header + b"\n" + record.replace(b"BAD", b'"BAD')) == {
        2: "a quote that is opened here is not closed"
    }


def test_a_carriage_return_within_a_line_must_be_quoted():
    template = a_template(name="a\rb")
    quoted = csv_file(cells(a_template())).replace(b"Spring sale", b'"a\rb"')

    assert [command.name for command in read_csv(quoted).values()] == [template.name]
    assert "carriage return outside of quotes" in read_csv(quoted.replace(b'"', b""))[2]


@pytest.mark.parametrize("line", [b'x","y\n', b'"x\n', b'",\n', b'a"b,"\n', b'""","\n'])
def test_a_file_of_wrong_quotes_is_read_in_linear_time(line):
    header = csv_file(cells(a_template())).partition(b"\n")[0] + b"\n"
    started = monotonic()
    read_csv(header + line * 20_000)
    assert monotonic() - started < 20


def test_empty_columns_and_lines_at_the_ends_are_passed_over():
    template = a_template()
    header, record = csv_file(cells(template)).splitlines()
    lines = [header + b",,", record + b",,", record + b",", record, b"," * 30, b"", b",,"]
    assert list(read_csv(b"\r\n".join(lines)).values()) == [template] * 3


def test_a_filled_cell_beyond_the_columns_is_refused():
    header, record = csv_file(cells(a_template())).splitlines()
    (refused,) = read_csv(header + b",\n" + record + b",x").values()
    assert "cells" in str(refused)
