"""Whole days in a named zone become a half-open window in UTC, whatever its clocks do."""

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from coupon_clock.domain.coupon_template import decide
from coupon_clock.domain.errors import InvalidArgument, InvalidCommand
from coupon_clock.domain.validity import Validity, utc
from examples import MICROSECOND, MORNING, a_template

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
HAVANA = ZoneInfo("America/Havana")


def length(window: Validity) -> timedelta:
    return window.valid_until - window.valid_from


def then_each_moment_of_these_days_is_inside(window: Validity, first: date, last: date, zone: ZoneInfo) -> None:
    def day_there(moment: datetime) -> date:
        return moment.astimezone(zone).date()

    assert day_there(window.valid_from - MICROSECOND) < first == day_there(window.valid_from)
    assert day_there(window.valid_until - MICROSECOND) == last < day_there(window.valid_until)


# ── days ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_of_a_month_in_berlin():
    window = Validity.days(date(2026, 1, 1), date(2026, 1, 31), BERLIN)

    assert window.valid_from == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert window.valid_until == datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert {moment.tzinfo for moment in window} == {UTC}


def test_one_day_is_a_window_too():
    window = Validity.days(date(2026, 1, 1), date(2026, 1, 1), UTC)
    assert window == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/New_York", date(2026, 3, 8), 23),
        ("America/New_York", date(2026, 11, 1), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # 00:00 became 01:00: the day had no midnight
        ("America/Sao_Paulo", date(2018, 2, 17), 25),  # 24:00 became 23:00
        ("Asia/Beirut", date(2024, 3, 31), 23),
        ("America/Havana", date(2025, 11, 2), 25),  # 01:00 became 00:00: two midnights
    ],
)
def test_a_day_on_which_clocks_change_is_whole(zone, day, hours):
    window = Validity.days(day, day, ZoneInfo(zone))

    assert length(window) == timedelta(hours=hours)
    then_each_moment_of_these_days_is_inside(window, day, day, ZoneInfo(zone))


def test_days_around_a_change_of_clocks_meet_without_gap_or_overlap():
    days = [date(2026, 10, 24), date(2026, 10, 25), date(2026, 10, 26)]
    before, during, after = (Validity.days(day, day, BERLIN) for day in days)

    assert (before.valid_until, during.valid_until) == (during.valid_from, after.valid_from)


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        (date(2028, 2, 28), date(2028, 2, 29), 2),
        (date(2028, 2, 29), date(2028, 2, 29), 1),
        (date(2028, 2, 28), date(2028, 3, 1), 3),
        (date(2026, 2, 28), date(2026, 3, 1), 2),
        (date(2100, 2, 28), date(2100, 3, 1), 2),
        (date(2026, 1, 1), date(2026, 12, 31), 365),
        (date(2028, 1, 1), date(2028, 12, 31), 366),
    ],
)
def test_leap_days_count(first, last, days):
    assert length(Validity.days(first, last, UTC)) == timedelta(days=days)
    assert length(Validity.days(first, last, BERLIN)) == timedelta(days=days)


@pytest.mark.parametrize("offset", [timedelta(hours=14), timedelta(hours=-12), timedelta(hours=5, minutes=45)])
def test_a_fixed_offset_is_a_zone_too(offset):
    window = Validity.days(date(2026, 3, 1), date(2026, 3, 1), timezone(offset))
    assert window.valid_from == datetime(2026, 3, 1, tzinfo=UTC) - offset


@given(
    first=st.dates(date(2000, 1, 1), date(2037, 12, 31)),
    length_in_days=st.integers(0, 400),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Beirut", "Asia/Kolkata"]),
)
@example(date(2018, 11, 4), 0, "America/Sao_Paulo")
def test_a_window_holds_its_days_and_nothing_else_in_any_zone(first, length_in_days, zone):
    last = first + timedelta(days=length_in_days)
    window = Validity.days(first, last, ZoneInfo(zone))

    then_each_moment_of_these_days_is_inside(window, first, last, ZoneInfo(zone))


# ── days that are refused ────────────────────────────────────────────────────────────────────────


def then_refused(first: object, last: object, zone: object) -> str:
    with pytest.raises(InvalidArgument) as refused:
        Validity.days(first, last, zone)
    return str(refused.value)


def test_days_in_the_wrong_order_are_refused():
    assert "last must not be before the first day, 2026-03-02" in then_refused(
        date(2026, 3, 2), date(2026, 3, 1), BERLIN
    )


@pytest.mark.parametrize("nowhere", [None, "Europe/Berlin"])
def test_days_nowhere_are_refused_instead_of_meaning_those_of_this_computer(nowhere):
    assert "zone must be a time zone, as in ZoneInfo('Europe/Berlin')" in then_refused(
        date(2026, 3, 1), date(2026, 3, 1), nowhere
    )


@pytest.mark.parametrize("no_day", [MORNING, MORNING.replace(tzinfo=None), "2026-03-01", None])
def test_what_is_no_day_is_refused_instead_of_losing_its_time(no_day):
    a_day = date(2026, 3, 1)
    assert "first must be a date without a time, as in date(" in then_refused(no_day, a_day, BERLIN)
    assert "last must be a date without a time, as in date(" in then_refused(a_day, no_day, BERLIN)


def test_all_that_is_wrong_with_days_is_named_at_once():
    refusal = then_refused(MORNING, "2026-03-01", "Europe/Berlin")
    assert all(f"{field} must be a" in refusal for field in ("first", "last", "zone"))


def test_a_day_that_a_zone_left_out_is_refused():
    skipped = date(2011, 12, 30)
    assert "left out of the calendar in Pacific/Apia" in then_refused(skipped, skipped, ZoneInfo("Pacific/Apia"))


@pytest.mark.parametrize(("first", "last"), [(date(2026, 3, 1), date.max), (date.min, date(2026, 3, 1))])
def test_days_at_the_edge_of_the_calendar_are_refused(first, last):
    assert "within the calendar" in then_refused(first, last, BERLIN)


def test_the_last_days_that_a_template_may_have_are_those_before_the_year_9000():
    def created_until(last: date) -> list:
        return decide(None, a_template(**Validity.days(date(2026, 3, 1), last, UTC)._asdict()), MORNING)

    assert created_until(date(8999, 12, 31))
    with pytest.raises(InvalidCommand, match="must not be after the year 9000 begins"):
        created_until(date(9000, 1, 1))


# ── one time, in UTC ─────────────────────────────────────────────────────────────────────────────


def test_a_time_in_a_repeated_hour_is_either_of_two():
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)

    assert utc(first) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert utc(first.replace(fold=1)) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_a_time_in_a_skipped_hour_is_as_if_clocks_had_not_changed():
    assert utc(datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_a_time_in_a_repeated_hour_compares_once_it_is_utc():
    repeated = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)

    assert repeated != datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "PEP 495, and why we compare in UTC"
    assert utc(repeated) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


@given(st.datetimes(timezones=st.sampled_from([UTC, BERLIN, NEW_YORK, HAVANA])))
def test_utc_is_the_same_instant_and_settled(moment):
    settled = utc(moment)

    assume(settled.tzinfo is UTC)
    assert settled.timestamp() == pytest.approx(moment.timestamp(), abs=1e-3)
    assert utc(settled) == settled
