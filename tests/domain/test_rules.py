"""Every rule on a command's content, on both sides of its boundary."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_clock.domain.commands import Command
from coupon_clock.domain.coupon_template import created_by, decide, fold
from coupon_clock.domain.discount import FixedAmount, Percentage, ThresholdAmount
from coupon_clock.domain.errors import InvalidCommand, Problem
from coupon_clock.domain.events import ConsumeRule, Event, ReceiveRule
from coupon_clock.infrastructure.event_store.store import EventFormat
from examples import (
    EVENING,
    MICROSECOND,
    MORNING,
    NOON,
    TEMPLATE,
    a_template,
    change,
    created,
    expire,
    increase,
    terminate,
)

LARGEST = 10**12
YEAR_9000 = datetime(9000, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")

ACCEPTED: list[tuple[str, list[Any]]] = [
    ("shop_number", [1, 2**63 - 1]),
    ("name", ["a", "a" * 100, "  " + "a" * 100 + "  ", "券" * 100]),
    ("source", ["shop", "platform"]),
    ("goods", ["a", "a" * 500]),
    ("discount", [FixedAmount(1), FixedAmount(LARGEST)]),
    ("discount", [ThresholdAmount(1, 1), ThresholdAmount(LARGEST, LARGEST)]),
    ("discount", [Percentage(1, 0, 1), Percentage(99, LARGEST, LARGEST)]),
    ("receive_rule", [ReceiveRule(1), ReceiveRule(2**63 - 1), ReceiveRule(1, "a" * 1000)]),
    ("consume_rule", [ConsumeRule(None), ConsumeRule(1), ConsumeRule(2**63 - 1), ConsumeRule(1, "a" * 500)]),
    ("valid_from", [NOON - MICROSECOND, datetime(1, 1, 1, tzinfo=UTC)]),
    ("valid_until", [MORNING + MICROSECOND, YEAR_9000]),
    ("stock", [1, 20_000_000]),
    ("actor", [None, "", "anna"]),
]

REFUSED: list[tuple[str, list[Any]]] = [
    ("shop_number", [0, -1, 2**63]),
    ("name", ["", "   ", "a" * 101, "nul\0", "\ud800"]),
    ("source", ["", "friend", "Shop"]),
    ("target", ["", "everything"]),
    ("goods", [None, "", "  ", "a" * 501, "nul\0", "\udfff"]),
    ("discount.amount_off", [FixedAmount(0), FixedAmount(-1), FixedAmount(LARGEST + 1)]),
    ("discount.amount_off", [ThresholdAmount(1, 0), ThresholdAmount(1000, 1001)]),
    ("discount.minimum_spend", [ThresholdAmount(LARGEST + 1, 1)]),
    ("discount.percent_off", [Percentage(0, 0, 1), Percentage(100, 0, 1)]),
    ("discount.minimum_spend", [Percentage(1, -1, 1), Percentage(1, LARGEST + 1, 1)]),
    ("discount.maximum_discount", [Percentage(1, 0, 0), Percentage(1, 0, LARGEST + 1)]),
    ("receive_rule.limit_per_person", [ReceiveRule(0), ReceiveRule(2**63)]),
    ("receive_rule.usage_instructions", [ReceiveRule(1, "a" * 1001), ReceiveRule(1, "\0")]),
    ("consume_rule.hours_after_claim", [ConsumeRule(0), ConsumeRule(2**63)]),
    ("consume_rule.explanation_of_unmet_conditions", [ConsumeRule(1, "a" * 501), ConsumeRule(1, "\0")]),
    ("valid_until", [MORNING, MORNING - MICROSECOND, YEAR_9000 + MICROSECOND]),
    ("stock", [0, -1, 20_000_001]),
    ("actor", ["\ud800"]),
]


def each(table: list[tuple[str, list[Any]]]) -> Any:
    cases = [(field, value) for field, values in table for value in values]
    return pytest.mark.parametrize(("field", "value"), cases, ids=[f"{f}={v!r:.40}" for f, v in cases])


def problems(command: Command, at: datetime = MORNING, state: Any = None) -> list[Problem]:
    """The rules that the command breaks, on a template valid from MORNING until NOON unless another is given."""
    past = None if command.template_id != TEMPLATE else state or fold([created()])
    try:
        decide(past, command, at)
    except InvalidCommand as refused:
        return refused.problems
    return []


def fields(found: list[Problem]) -> list[str]:
    return [problem.field for problem in found]


# ── creating ─────────────────────────────────────────────────────────────────────────────────────


@each(ACCEPTED)
def test_what_is_just_within_a_rule_is_accepted(field, value):
    command = a_template(**{"target": "product", "goods": "shoes", field: value})
    assert problems(command) == []


@each(REFUSED)
def test_what_is_just_outside_a_rule_is_refused_by_field(field, value):
    argument = field.partition(".")[0]
    command = a_template(**{"target": "product", "goods": "shoes", argument: value})
    assert set(fields(problems(command))) == {field}


@pytest.mark.parametrize("goods", ["shoes", ""])
def test_all_products_have_no_goods(goods):
    assert problems(a_template(target="all_products", goods=None)) == []
    assert fields(problems(a_template(target="all_products", goods=goods))) == ["goods"]


def test_a_template_that_would_be_over_at_once_is_refused():
    command = a_template(valid_until=NOON)

    assert problems(command, at=NOON - MICROSECOND) == []
    assert fields(problems(command, at=NOON)) == ["valid_until"]


def test_all_broken_rules_are_named_at_once_with_value_and_reason():
    found = problems(
        a_template(
            shop_number=0,
            name=" ",
            source="friend",
            target="product",
            discount=ThresholdAmount(minimum_spend=0, amount_off=5),
            receive_rule=ReceiveRule(0, "a" * 1001),
            consume_rule=ConsumeRule(0),
            valid_from=NOON,
            stock=0,
        )
    )

    assert fields(found) == [
        "shop_number",
        "name",
        "source",
        "goods",
        "discount.minimum_spend",
        "discount.amount_off",
        "receive_rule.limit_per_person",
        "receive_rule.usage_instructions",
        "consume_rule.hours_after_claim",
        "valid_until",
        "stock",
    ]
    assert str(found[2]) == "source must be one of shop, platform (got 'friend')"


def test_a_message_stays_short_however_long_the_value_is():
    assert len(str(InvalidCommand(problems(a_template(name="a" * 1_000_000))))) < 400


# ── increasing the stock ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by", [1, 20_000_000 - 100])
def test_stock_may_rise_up_to_its_limit(by):
    assert problems(increase(TEMPLATE, by=by), state=fold([created(stock=100)])) == []


@pytest.mark.parametrize("by", [0, -1, 20_000_000 - 99, 2**63, 10**5000], ids=lambda by: f"{by.bit_length()} bits")
def test_stock_may_not_rise_past_its_limit_nor_fall(by):
    assert fields(problems(increase(TEMPLATE, by=by), state=fold([created(stock=100)]))) == ["by"]


# ── changing the validity ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("until", [MORNING + MICROSECOND, EVENING, YEAR_9000])
def test_an_end_may_move_to_any_time_after_now(until):
    assert problems(change(TEMPLATE, until=until)) == []


@pytest.mark.parametrize("until", [MORNING, MORNING - MICROSECOND, YEAR_9000 + MICROSECOND])
def test_an_end_may_not_move_into_the_past_nor_past_the_year_9000(until):
    assert fields(problems(change(TEMPLATE, until=until, valid_from=MORNING - timedelta(days=1)))) == ["valid_until"]


def test_a_window_may_not_end_before_it_begins():
    assert problems(change(TEMPLATE, until=EVENING, valid_from=EVENING - MICROSECOND)) == []
    assert fields(problems(change(TEMPLATE, until=EVENING, valid_from=EVENING))) == ["valid_until"]


# ── times ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["valid_from", "valid_until"])
def test_a_naive_time_is_refused_with_a_sentence_that_names_the_fix(field):
    naive = datetime(2026, 3, 1, 9)  # noqa: DTZ001

    for command in (a_template(**{field: naive}), change(TEMPLATE, **{"until": EVENING, field: naive})):
        (problem,) = problems(command)
        assert problem.field == field
        assert problem.reason == "has no time zone: give it one, as in datetime(…, tzinfo=UTC)"


def test_a_time_of_any_zone_is_kept_as_utc():
    in_nepal = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))
    (event,) = decide(None, a_template(valid_until=in_nepal), MORNING)

    assert (event.valid_until, event.valid_until.tzinfo) == (NOON, UTC)


@pytest.mark.parametrize(
    ("field", "beyond"),
    [
        ("valid_until", datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))),
        ("valid_from", datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
    ],
)
def test_a_time_beyond_the_calendar_in_utc_is_refused(field, beyond):
    assert fields(problems(a_template(**{field: beyond}))) == [field]


def test_the_second_of_two_equal_looking_times_is_later_by_the_repeated_hour():
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    second = first.replace(fold=1)

    (event,) = decide(None, a_template(valid_from=first, valid_until=second), MORNING)
    assert event.valid_until - event.valid_from == timedelta(hours=1)


def test_a_window_that_only_looks_in_order_in_a_repeated_hour_is_refused():
    second = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)
    first = datetime(2026, 10, 25, 2, 45, fold=0, tzinfo=BERLIN)

    assert fields(problems(a_template(valid_from=second, valid_until=first))) == ["valid_until"]


def test_a_window_that_only_looks_in_order_in_a_skipped_hour_is_refused():
    skipped = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)  # as if clocks had not gone forward: 03:30
    until = datetime(2026, 3, 29, 3, 15, tzinfo=BERLIN)

    assert fields(problems(a_template(valid_from=skipped, valid_until=until))) == ["valid_until"]


# ── types ────────────────────────────────────────────────────────────────────────────────────────

COMMANDS = [a_template(), increase(TEMPLATE), change(TEMPLATE, EVENING), terminate(TEMPLATE), expire(TEMPLATE)]


@pytest.mark.parametrize("value", [object(), 1.5, b"1", True, ["1"]], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_every_field_of_another_type_is_named(command, value):
    names = command.__struct_fields__
    wrong = type(command)(**dict.fromkeys(names, value))

    with pytest.raises(InvalidCommand) as refused:
        decide(None, wrong, MORNING)
    assert fields(refused.value.problems) == list(names)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"shop_number": "1"}, "shop_number must be int, not str (got '1')"),
        ({"stock": True}, "stock must be int, not bool (got True)"),
        ({"stock": Decimal(3)}, "stock must be int, not Decimal (got Decimal('3'))"),
        ({"valid_until": None}, "valid_until must be datetime, not NoneType (got None)"),
        ({"valid_until": date(2026, 3, 1)}, "valid_until must be datetime, not date (got datetime.date(2026, 3, 1))"),
        ({"actor": 7}, "actor must be str or none, not int (got 7)"),
        ({"command_id": "one"}, "command_id must be UUID, not str (got 'one')"),
        ({"discount": FixedAmount("3")}, "discount.amount_off must be int, not str (got '3')"),  # type: ignore[arg-type]
        ({"receive_rule": ConsumeRule}, "receive_rule must be ReceiveRule, not StructMeta"),
        ({"discount": {"amount_off": 3}}, "discount must be FixedAmount or ThresholdAmount or Percentage, not dict"),
    ],
    ids=str,
)
def test_a_wrong_type_is_refused_in_words(values, problem):
    (found,) = problems(a_template(**values))
    assert str(found).startswith(problem)


def test_a_shop_command_without_a_shop_is_not_the_internal_one():
    assert fields(problems(increase(TEMPLATE, shop_number=None))) == ["shop_number"]


class Source(StrEnum):
    SHOP = "shop"


class TheirUUID(UUID):
    """As asyncpg has one."""


class TheirDateTime(datetime):
    """As pendulum has one."""


def test_values_of_other_libraries_that_are_what_they_should_be_are_accepted():
    command = a_template(
        command_id=TheirUUID(str(uuid4())),
        source=Source.SHOP,
        valid_from=TheirDateTime(2026, 3, 1, 8, tzinfo=UTC),
        valid_until=TheirDateTime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))),
    )
    (event,) = decide(None, command, MORNING)

    assert event == created(template_id=command.template_id)
    assert read_back(event) == event


SOME_TEXT = st.text("a 券\0\ud800", max_size=3)
SOME_ZONE = st.sampled_from([None, UTC, BERLIN, timezone(timedelta(hours=-5))])
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1, 2**63, 10**5000, 1.0, "shop", "all_products", EVENING, b"x", Decimal(1), date(2026, 3, 1)]),
    SOME_TEXT,
    st.datetimes(timezones=SOME_ZONE),
    st.uuids(),
    st.builds(FixedAmount, st.integers() | SOME_TEXT),
    st.builds(ReceiveRule, st.integers(), SOME_TEXT),
    st.builds(ConsumeRule, st.none() | st.integers(), SOME_TEXT),
)


@given(st.dictionaries(st.sampled_from(a_template().__struct_fields__), ANYTHING, max_size=3))
def test_whatever_is_accepted_can_be_stored_and_read_again(values):
    command = a_template(**values)
    try:
        (event,) = decide(None, command, MORNING)
    except InvalidCommand:
        return
    assert read_back(event) == event


def read_back(event: Event) -> Event:
    stored = EventFormat[Event](Event)
    return stored.decode(stored.encode(event))


# ── the length of a stream ───────────────────────────────────────────────────────────────────────


def test_a_stream_that_is_full_says_so_beside_other_broken_rules():
    full = msgspec.structs.replace(fold([created()]), version=1_000)

    assert fields(problems(increase(TEMPLATE, by=0), state=full)) == ["version", "by"]
    assert fields(problems(change(TEMPLATE, until=MORNING), state=full)) == ["version", "valid_until", "valid_until"]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────

TEXTS = {
    "name": lambda text: {"name": text},
    "goods": lambda text: {"target": "product", "goods": text},
    "actor": lambda text: {"actor": text},
    "usage_instructions": lambda text: {"receive_rule": ReceiveRule(limit_per_person=1, usage_instructions=text)},
    "explanation": lambda text: {"consume_rule": ConsumeRule(explanation_of_unmet_conditions=text)},
}


@pytest.mark.parametrize("given", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("text", ["a\x1b[2J", "a\0", "a\x7f", "a\u202eb", "a\u2067b", "a\u2028b", "a\ud800", "a\rb"])
def test_no_text_has_control_characters_or_changes_of_direction(given, text):
    (problem,) = problems(a_template(**given(text)))
    assert "control characters" in problem.reason


@pytest.mark.parametrize("given", TEXTS.values(), ids=TEXTS.keys())
def test_every_text_is_bounded(given):
    assert len(problems(a_template(**given("x" * 60_000_000)))) == 1


@pytest.mark.parametrize("text", ["\u200b", "\u200b\u2060 ", "\u00ad", "\u3000\ufeff"])
def test_what_nobody_can_see_is_no_name_and_no_goods(text):
    assert problems(a_template(name=text))
    assert problems(a_template(target="product", goods=text))


@pytest.mark.parametrize("field", ["usage_instructions", "explanation"])
def test_long_texts_may_have_lines(field):
    assert problems(a_template(**TEXTS[field]("one\n\ttwo"))) == []


def test_texts_are_kept_composed_and_trimmed_so_that_what_looks_the_same_is_the_same():
    decomposed, composed = a_template(name=" Cafe\u0301\u3000", goods="e\u0301 ", target="product"), "Caf\u00e9"
    made = created_by(decomposed)
    assert (made.name, made.goods) == (composed, "\u00e9")
    same = msgspec.structs.replace(decomposed, name=composed, goods="\u00e9")
    assert created_by(same) == made
