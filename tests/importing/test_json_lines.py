"""One object a line: it becomes a command, or a reason that names the field."""

import json

import msgspec
import pytest
from formats import json_lines, read_json

from examples import TEMPLATE, a_template

LINE = """{"command_id":"01890000-0000-7000-8000-000000000001","template_id":"01890000-0000-7000-8000-000000000001",
"shop_number":1,"name":"t","source":"shop","target":"all_products","goods":null,"discount":{"type":"ThresholdAmount",
"minimum_spend":1000,"amount_off":300},"receive_rule":{"limit_per_person":10,"usage_instructions":""},"consume_rule":
{"hours_after_claim":48,"explanation_of_unmet_conditions":""},"valid_from":"2026-01-01T08:00:00+08:00","valid_until":
"2026-02-01T00:00:00Z","stock":100}""".replace("\n", "").encode()


def changed(**fields) -> bytes:
    return json.dumps(json.loads(LINE) | fields).encode()


def test_lines_become_commands_whatever_their_ends():
    template = a_template(template_id=TEMPLATE)
    line = msgspec.json.encode(template)

    assert read_json(b"\xef\xbb\xbf" + line + b"\r\n \r\n\n" + line) == {1: template, 4: template}


def test_a_line_as_documented_becomes_a_command():
    (command,) = read_json(LINE).values()

    assert command.discount.minimum_spend == 1000
    assert command.valid_from.isoformat() == "2026-01-01T08:00:00+08:00"


def test_an_empty_file_has_no_templates():
    assert read_json(b"") == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (changed(stock="many"), "stock must be int, not str (got 'many')"),
        (changed(stock=1.0), "stock must be int, not float (got 1.0)"),
        (changed(template_id="none"), "template_id must be a UUID (got 'none')"),
        (changed(valid_from="soon"), "valid_from must be a time, as 2026-01-31T00:00:00Z (got 'soon')"),
        (changed(discount={"type": "Gift"}), "discount.type must be one of FixedAmount, ThresholdAmount, Percentage"),
        (changed(discount={}), "discount.type is missing"),
        (changed(discount={"type": "FixedAmount", "amount_off": 1, "percent_off": 1}), "discount.percent_off is not a"),
        (changed(receive_rule={}), "receive_rule.limit_per_person is missing"),
        (changed(consume_rule={"hours": 1}), "consume_rule.hours is not a field of ConsumeRule (got 1)"),
        (changed(colour="red"), "colour is not a field (got 'red')"),
        (LINE.replace(b"{", b'{"stock":1,', 1), "stock is given more than once"),
        (LINE.replace(b'"type":', b'"type":"FixedAmount","t\\u0079pe":'), "type is given more than once"),
        (LINE.replace(b'"t"', b'"\xff"'), "name is not UTF-8 (got '\\udcff')"),
        (b'{"name": "\xff"', "JSON is not UTF-8"),
        (b"[]", "the line must be an object"),
        (b"{", "truncated"),
        (b"\0", "malformed"),
        (b'{"name":' + b"[" * 90_000, "nested too deeply"),
        (b'{"name":"' + b"x" * 10_000_000 + b'"}', "longer than 100,000 bytes"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_line_that_is_no_template_says_why_and_the_next_goes_in(line, reason):
    template = a_template()

    found = read_json(line + b"\n" + json_lines(template))

    assert reason in found[1]
    assert found[2] == template
