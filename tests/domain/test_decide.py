"""What each command leads to, in every state: it happens, is ignored, is refused, or conflicts."""

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from coupon_clock.domain.commands import Command
from coupon_clock.domain.coupon_template import (
    COUPON_TEMPLATES,
    CouponTemplate,
    due_at,
    evolve,
    fold,
    has_content_of,
)
from coupon_clock.domain.errors import (
    CommandConflict,
    CouponClockError,
    CouponTemplateNotFound,
    CouponTemplateOver,
    InvalidArgument,
    InvalidCommand,
)
from coupon_clock.domain.events import Ended, EndReason, Event, StockIncreased, ValidityChanged
from coupon_clock.testing.decider_spec import DeciderSpec
from coupon_clock.testing.given_when_then import given, then, then_refused, when
from examples import (
    EVENING,
    EXPIRED_AT_NOON,
    MICROSECOND,
    MORNING,
    NOON,
    OTHER_SHOP,
    SHOP,
    TEMPLATE,
    TERMINATED_IN_THE_MORNING,
    a_template,
    change,
    created,
    expire,
    increase,
    terminate,
)

NOTHING: list[Event] = []

ACTIVE = [created(valid_until=NOON)]
EXPIRED = [*ACTIVE, EXPIRED_AT_NOON]
TERMINATED = [*ACTIVE, TERMINATED_IN_THE_MORNING]
FULL = [*ACTIVE, *[StockIncreased(SHOP, 1)] * 999]

CREATE = a_template(template_id=TEMPLATE)
CREATE_OTHERWISE = a_template(template_id=TEMPLATE, name="Another")
INCREASE = increase(TEMPLATE, by=5)
CHANGE = change(TEMPLATE, until=EVENING)
TERMINATE = terminate(TEMPLATE)
EXPIRE = expire(TEMPLATE)
ALL_BUT_CREATE = [INCREASE, CHANGE, TERMINATE, EXPIRE]

INCREASED = StockIncreased(SHOP, 5)
CHANGED = ValidityChanged(SHOP, MORNING, EVENING)


Spec = DeciderSpec[CouponTemplate, Command, Event]


def history(*events: Event, at=MORNING) -> Spec:
    spec: Spec = DeciderSpec(COUPON_TEMPLATES, now=at)
    given(spec, *events)
    return spec


def refused(spec: Spec, command: Command, error: type[CouponClockError]) -> str:
    when(spec, command)
    return str(then_refused(spec, error))


def name(value: object) -> str:
    return type(value).__name__


# ── it happens ───────────────────────────────────────────────────────────────────────────────────


def test_a_template_is_created_with_its_name_trimmed_and_all_else_as_given():
    spec = history()
    when(spec, a_template(template_id=TEMPLATE, name="  Spring sale "))
    then(spec, created(name="Spring sale"))


def test_stock_is_increased():
    spec = history(*ACTIVE)
    when(spec, INCREASE)
    then(spec, INCREASED)


def test_a_validity_is_changed():
    spec = history(*ACTIVE)
    when(spec, CHANGE)
    then(spec, CHANGED)


def test_a_template_is_terminated_now():
    spec = history(*ACTIVE, at=MORNING)
    when(spec, TERMINATE)
    then(spec, Ended(SHOP, EndReason.TERMINATED, MORNING))


def test_a_template_expires_at_its_end():
    spec = history(*ACTIVE, at=NOON)
    when(spec, EXPIRE)
    then(spec, Ended(SHOP, EndReason.EXPIRED, NOON))


def test_a_template_can_be_changed_before_it_begins():
    spec = history(created(valid_from=NOON, valid_until=EVENING), at=MORNING)
    when(spec, INCREASE)
    then(spec, INCREASED)


# ── it is ignored ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("past", [ACTIVE, EXPIRED, TERMINATED, FULL], ids=["active", "expired", "terminated", "full"])
@pytest.mark.parametrize("at", [MORNING, NOON, EVENING])
def test_creating_again_what_exists_is_ignored_at_any_time(past, at):
    spec = history(*past, at=at)
    when(spec, CREATE)
    then(spec)


def test_creating_again_is_judged_by_what_was_created_not_by_what_became_of_it():
    spec = history(*ACTIVE, INCREASED, CHANGED)
    when(spec, CREATE)
    then(spec)


@pytest.mark.parametrize("ended", [EXPIRED, TERMINATED], ids=["expired", "terminated"])
@pytest.mark.parametrize("command", [TERMINATE, EXPIRE], ids=name)
@pytest.mark.parametrize("at", [MORNING, NOON, EVENING])
def test_ending_what_has_ended_is_ignored(ended, command, at):
    spec = history(*ended, at=at)
    when(spec, command)
    then(spec)


def test_expiring_is_ignored_until_the_very_end():
    spec = history(*ACTIVE, at=NOON - MICROSECOND)
    when(spec, EXPIRE)
    then(spec)


def test_expiring_at_the_old_end_is_ignored_once_the_end_has_moved():
    spec = history(*ACTIVE, CHANGED, at=NOON)
    when(spec, EXPIRE)
    then(spec)
    spec = history(*ACTIVE, CHANGED, at=EVENING)
    when(spec, EXPIRE)
    then(spec, Ended(SHOP, EndReason.EXPIRED, EVENING))


# ── it is refused ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ended", [EXPIRED, TERMINATED], ids=["expired", "terminated"])
@pytest.mark.parametrize("command", [INCREASE, CHANGE], ids=name)
@pytest.mark.parametrize("at", [MORNING, NOON - MICROSECOND, NOON, EVENING])
def test_what_has_ended_cannot_be_changed(ended, command, at):
    refused(history(*ended, at=at), command, CouponTemplateOver)


@pytest.mark.parametrize("command", ALL_BUT_CREATE, ids=name)
def test_what_does_not_exist_is_not_found(command):
    refused(history(), command, CouponTemplateNotFound)


@pytest.mark.parametrize("past", [ACTIVE, EXPIRED, TERMINATED, FULL], ids=["active", "expired", "terminated", "full"])
@pytest.mark.parametrize("at", [MORNING, NOON], ids=["before its end", "at its end"])
@pytest.mark.parametrize(
    "command",
    [
        increase(TEMPLATE, by=0, shop_number=OTHER_SHOP),
        change(TEMPLATE, until=MORNING, shop_number=OTHER_SHOP),
        terminate(TEMPLATE, shop_number=OTHER_SHOP),
    ],
    ids=name,
)
def test_another_shops_template_cannot_be_reported_from_none(past, at, command):
    of_none = refused(history(at=at), command, CouponTemplateNotFound)
    assert refused(history(*past, at=at), command, CouponTemplateNotFound) == of_none


def test_a_refusal_says_since_when_the_template_is_over():
    assert "over since 2026-03-01T12:00:00.000000Z" in refused(
        history(*ACTIVE, at=EVENING), INCREASE, CouponTemplateOver
    )
    assert "over since 2026-03-01T08:00:00.000000Z" in refused(
        history(*TERMINATED, at=EVENING), INCREASE, CouponTemplateOver
    )


# ── it conflicts ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("past", [ACTIVE, EXPIRED, TERMINATED], ids=["active", "expired", "terminated"])
@pytest.mark.parametrize(
    "given_otherwise",
    [
        {"name": "Another"},
        {"shop_number": OTHER_SHOP},
        {"stock": 101},
        {"stock": 0},
        {"valid_until": NOON + MICROSECOND},
        {"target": "product", "goods": "shoes"},
    ],
    ids=str,
)
def test_a_taken_id_with_other_content_conflicts_whoever_owns_it(past, given_otherwise):
    refused(history(*past), a_template(template_id=TEMPLATE, **given_otherwise), CommandConflict)


def test_every_field_is_content():
    content = set(created().__struct_fields__)
    assert content == set(CREATE.__struct_fields__) - {"command_id", "actor", "expected_version"}


# ── over, but not ended yet ──────────────────────────────────────────────────────────────────────

LAST_MOMENT = NOON - MICROSECOND
OVER = [NOON, NOON + MICROSECOND, NOON + timedelta(days=365)]


@pytest.mark.parametrize(
    ("command", "before", "since"),
    [
        (CREATE, NOTHING, NOTHING),
        (CREATE_OTHERWISE, CommandConflict, CommandConflict),
        (INCREASE, [INCREASED], CouponTemplateOver),
        (CHANGE, [CHANGED], CouponTemplateOver),
        (TERMINATE, [Ended(SHOP, EndReason.TERMINATED, LAST_MOMENT)], [EXPIRED_AT_NOON]),
        (EXPIRE, NOTHING, [EXPIRED_AT_NOON]),
    ],
    ids=["create", "create otherwise", "increase", "change", "terminate", "expire"],
)
def test_a_command_is_judged_by_the_end_whether_it_is_recorded_or_not(command, before, since):
    for at, expected in [(LAST_MOMENT, before), *((at, since) for at in OVER)]:
        spec = history(*ACTIVE, at=at)
        when(spec, command)
        then(spec, *expected) if isinstance(expected, list) else then_refused(spec, expected)


def test_what_is_over_is_refused_before_its_rules_are_looked_at():
    refused(history(*ACTIVE, at=NOON), increase(TEMPLATE, by=0), CouponTemplateOver)
    refused(history(*FULL, at=NOON), INCREASE, CouponTemplateOver)


# ── how long a stream may be ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("command", "event"), [(INCREASE, INCREASED), (CHANGE, CHANGED)], ids=name)
def test_the_ten_thousandth_event_is_the_last(command, event):
    spec = history(*FULL[:-1])
    when(spec, command)
    then(spec, event)
    assert "1,000 events" in refused(history(*FULL), command, InvalidCommand)


def test_even_a_full_stream_can_end():
    spec = history(*FULL, at=MORNING)
    when(spec, TERMINATE)
    then(spec, TERMINATED_IN_THE_MORNING)
    spec = history(*FULL, at=NOON)
    when(spec, TERMINATE)
    then(spec, EXPIRED_AT_NOON)
    spec = history(*FULL, at=NOON)
    when(spec, EXPIRE)
    then(spec, EXPIRED_AT_NOON)


# ── the same id again ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "events"),
    [
        (CREATE, [created()]),
        (INCREASE, [INCREASED]),
        (CHANGE, [CHANGED]),
        (TERMINATE, [TERMINATED_IN_THE_MORNING]),
        (TERMINATE, [EXPIRED_AT_NOON]),
        (EXPIRE, [EXPIRED_AT_NOON]),
    ],
    ids=name,
)
def test_a_command_knows_what_it_led_to(command, events):
    assert has_content_of(fold([created()]), events, command)


@pytest.mark.parametrize(
    ("command", "events"),
    [
        (CREATE_OTHERWISE, [created()]),
        (increase(TEMPLATE, by=6), [INCREASED]),
        (INCREASE, [CHANGED]),
        (change(TEMPLATE, until=EVENING + MICROSECOND), [CHANGED]),
        (change(TEMPLATE, until=EVENING, valid_from=MORNING + MICROSECOND), [CHANGED]),
        (TERMINATE, [INCREASED]),
        (EXPIRE, [TERMINATED_IN_THE_MORNING]),
        (CREATE, [created(), INCREASED]),
        (INCREASE, [INCREASED, INCREASED]),
    ],
    ids=name,
)
def test_a_command_does_not_claim_what_another_led_to(command, events):
    assert not has_content_of(fold([created()]), events, command)


def test_the_same_times_in_another_zone_are_the_same_content():
    tokyo = ZoneInfo("Asia/Tokyo")
    again = change(TEMPLATE, until=EVENING.astimezone(tokyo), valid_from=MORNING.astimezone(tokyo))
    assert has_content_of(fold([created()]), [CHANGED], again)


def test_a_wrong_type_is_refused_also_where_the_id_is_known():
    with pytest.raises(InvalidCommand):
        has_content_of(fold([created()]), [CHANGED], change(TEMPLATE, until=None))


# ── is it over? is it usable? ────────────────────────────────────────────────────────────────────


def test_a_template_is_usable_from_its_beginning_until_its_end():
    template = fold(ACTIVE)

    assert [template.is_usable(at) for at in (MORNING - MICROSECOND, MORNING, LAST_MOMENT, NOON)] == [
        False,
        True,
        True,
        False,
    ]
    assert [template.is_over(at) for at in (MORNING - MICROSECOND, LAST_MOMENT, NOON)] == [False, False, True]


def test_what_was_terminated_is_usable_at_no_time():
    template = fold(TERMINATED)
    assert not any(template.is_usable(at) for at in (MORNING, LAST_MOMENT, NOON))


def test_usable_at_a_naive_time_is_no_question():
    with pytest.raises(InvalidArgument, match="has no time zone: give it one"):
        fold(ACTIVE).is_usable(NOON.replace(tzinfo=None))


def test_an_alarm_is_due_at_the_end_as_it_is_now_and_none_once_ended():
    template = fold(ACTIVE)

    assert due_at(template) == NOON
    assert due_at(evolve(template, CHANGED)) == EVENING
    assert due_at(fold(EXPIRED)) is None
