"""What events make of a template, and that every event ever stored can still be read.

golden/events.jsonl holds one stored record a line. Lines are only ever added: docs/events.md.
"""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest
from msgspec import Struct, inspect

from coupon_clock.domain.coupon_template import CouponTemplate, evolve, fold
from coupon_clock.domain.events import Created, EndReason, Event, StockIncreased, StoredEvent, ValidityChanged
from coupon_clock.infrastructure.event_store.store import EventFormat
from examples import (
    EVENING,
    EXPIRED_AT_NOON,
    MORNING,
    NOON,
    SHOP,
    TEMPLATE,
    TERMINATED_IN_THE_MORNING,
    created,
)

GOLDEN = (Path(__file__).parent / "golden" / "events.jsonl").read_bytes().splitlines()
NO_LONGER_WRITTEN: set[int] = set()  # the numbers, from 1, of lines whose shape has a newer one further down
LINE_NUMBERS = [f"line {number}" for number in range(1, len(GOLDEN) + 1)]

STORED: EventFormat[Event] = EventFormat(StoredEvent)


# ── what events make of a template ───────────────────────────────────────────────────────────────


def test_a_template_begins_as_it_was_created():
    assert fold([created()]) == CouponTemplate(created(), MORNING, NOON, stock=100, ended=None, version=1)
    assert (fold([created()]).template_id, fold([created()]).shop_number) == (TEMPLATE, SHOP)


def test_nothing_happened_is_no_template():
    assert fold([]) is None


def test_increases_add_up():
    assert fold([created(stock=10), StockIncreased(SHOP, 5), StockIncreased(SHOP, 7)]).stock == 22


def test_the_last_change_of_validity_counts():
    template = fold([created(), ValidityChanged(SHOP, MORNING, EVENING), ValidityChanged(SHOP, NOON, EVENING)])
    assert (template.valid_from, template.valid_until) == (NOON, EVENING)


def test_an_end_keeps_its_reason_and_time():
    assert fold([created(), EXPIRED_AT_NOON]).ended == EXPIRED_AT_NOON
    assert fold([created(), TERMINATED_IN_THE_MORNING]).ended.reason is EndReason.TERMINATED


def test_every_event_counts_as_one_version():
    events = [created(), StockIncreased(SHOP, 5), ValidityChanged(SHOP, MORNING, EVENING), EXPIRED_AT_NOON]
    assert [fold(events[:n]).version for n in range(1, 5)] == [1, 2, 3, 4]


def test_a_state_stays_as_it_was_when_more_happens():
    before = fold([created(stock=10)])
    evolve(before, StockIncreased(SHOP, 5))
    assert before == fold([created(stock=10)])


def test_folding_goes_on_where_it_stopped():
    events = [created(), StockIncreased(SHOP, 5), EXPIRED_AT_NOON]
    assert fold(events[1:], fold(events[:1])) == fold(events)


def test_what_another_writer_put_after_the_end_is_assigned_and_not_refused():
    template = fold([created(stock=10), EXPIRED_AT_NOON, StockIncreased(SHOP, 5), TERMINATED_IN_THE_MORNING])
    assert (template.stock, template.ended, template.version) == (15, TERMINATED_IN_THE_MORNING, 4)


# ── every event ever stored ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("line", GOLDEN, ids=LINE_NUMBERS)
def test_what_was_stored_once_is_read_whatever_todays_rules_say(line):
    event = STORED.decode(line)

    assert isinstance(event, Event)
    assert isinstance(fold([event] if isinstance(event, Created) else [created(), event]), CouponTemplate)


@pytest.mark.parametrize(("number", "line"), list(enumerate(GOLDEN, 1)), ids=LINE_NUMBERS)
def test_what_was_read_is_written_as_it_was_stored(number, line):
    assert (STORED.encode(STORED.decode(line)) == line) is (number not in NO_LONGER_WRITTEN)


def test_every_shape_that_can_be_written_has_a_line():
    """Fails when a field is added, renamed or widened, or a new value is allowed: add a line that shows it."""
    events = [STORED.decode(line) for line in GOLDEN]
    unchanged = [event for event, line in zip(events, GOLDEN, strict=True) if STORED.encode(event) == line]

    shown = {shape for event in unchanged for shape in shapes_shown(event, "")}
    assert shown == set(shapes_declared(inspect.type_info(Event), ""))


def shapes_declared(declared: inspect.Type, path: str) -> Iterator[str]:
    """Every field with every type or value that it may have: `:CouponTemplate.Created.goods:NoneType`."""
    match declared:
        case inspect.UnionType():
            for alternative in declared.types:
                yield from shapes_declared(alternative, path)
        case inspect.StructType():
            for field in declared.fields:
                yield from shapes_declared(field.type, f"{path}:{declared.tag}.{field.name}")
        case inspect.EnumType():
            yield from (f"{path}:{value}" for value in declared.cls)
        case inspect.LiteralType():
            yield f"{path}:StrType"
        case _:
            yield f"{path}:{type(declared).__name__}"


def shapes_shown(value: object, path: str) -> Iterator[str]:
    match value:
        case Struct():
            for name in value.__struct_fields__:
                yield from shapes_shown(getattr(value, name), f"{path}:{value.__struct_config__.tag}.{name}")
        case Enum():
            yield f"{path}:{value}"
        case _:
            yield f"{path}:{type(inspect.type_info(type(value))).__name__}"
