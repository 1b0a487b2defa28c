"""Alarms: claimed by one, marked only while unchanged, never in the way of an append."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from psycopg import Connection

from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms
from coupon_clock.testing import TestApplication
from examples import EVENING, MORNING, NOON, a_template, change

HOURS = timedelta(hours=1)


@pytest.fixture
def alarms(app: TestApplication) -> Alarms:
    return Alarms(app.database)


@pytest.fixture
def connection(settings) -> Iterator[Connection]:
    """Of somebody else."""
    with connect(settings) as connection:
        yield connection


def given(app: TestApplication, *ends: datetime) -> list[Alarm]:
    templates = [a_template(valid_until=end) for end in ends]
    app.execute_many(templates)
    return [Alarm(template.template_id, template.valid_until) for template in templates]


def test_those_due_within_reach_are_claimed_soonest_first_and_once(app, alarms):
    noon, evening, soon = given(app, NOON, EVENING, MORNING + HOURS)
    assert alarms.claim(4 * HOURS, 10) == [soon, noon]
    assert alarms.claim(4 * HOURS, 10) == []
    assert alarms.claim(24 * HOURS, 10) == [evening]


def test_no_more_are_claimed_than_asked_for(app, alarms):
    given(app, *[NOON] * 10)
    assert [len(alarms.claim(24 * HOURS, 4)) for _ in range(4)] == [4, 4, 2, 0]


def test_several_relays_at_once_claim_each_alarm_once(app, alarms):
    given(app, *[NOON] * 200)
    with ThreadPoolExecutor(4) as relays:
        claims = [claim for claims in relays.map(lambda _: alarms.claim(24 * HOURS, 20), range(20)) for claim in claims]
    assert len(claims) == len(set(claims))
    claims += alarms.claim(24 * HOURS, 200)
    assert len(set(claims)) == 200


def test_what_is_armed_is_not_claimed_again_until_it_is_released(app, alarms):
    given(app, NOON)
    claimed = alarms.claim(24 * HOURS, 10)
    app.clock.advance(minutes=5)
    assert alarms.claim(24 * HOURS, 10) == []

    assert alarms.release(claimed) == 1
    assert alarms.claim(24 * HOURS, 10) == claimed


def test_an_alarm_that_moved_after_it_was_claimed_is_free_at_its_new_time(app, alarms):
    (alarm,) = given(app, NOON)
    claimed = alarms.claim(24 * HOURS, 10)
    app.execute(change(alarm.stream_id, until=EVENING))
    assert alarms.release(claimed) == 0
    assert alarms.claim(24 * HOURS, 10) == [Alarm(alarm.stream_id, EVENING)]


def test_what_a_forgetting_broker_holds_is_taken_over_a_second_past_its_end(app, alarms):
    (alarm,) = given(app, NOON)
    alarms.lease(24 * HOURS, 10)
    app.clock.set(NOON + timedelta(milliseconds=999))
    assert alarms.lease(HOURS, 10) == []
    app.clock.set(NOON + timedelta(seconds=1))
    assert alarms.lease(HOURS, 10) == [alarm]


def test_what_is_past_its_end_is_leased_again_only_after_a_while(app, alarms):
    """Each time by another process: one whose scans are slow looks so far back every 10 s only."""
    claimed = given(app, NOON)
    app.clock.set(NOON + timedelta(seconds=5))
    assert alarms.lease(HOURS, 10) == claimed
    app.clock.advance(seconds=29)
    assert Alarms(app.database).lease(HOURS, 10) == []
    app.clock.advance(seconds=1)
    assert Alarms(app.database).lease(HOURS, 10) == claimed


def test_rearming_frees_all_that_is_armed_some_at_a_time(app, alarms):
    given(app, *[NOON] * 5)
    alarms.claim(24 * HOURS, 10)
    app.clock.advance(seconds=1)
    assert [alarms.rearm(app.clock.now, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert len(alarms.claim(24 * HOURS, 10)) == 5


def test_rearming_leaves_alone_what_was_armed_since(app, alarms):
    given(app, NOON)
    alarms.claim(24 * HOURS, 10)
    assert alarms.rearm(app.clock.now, 10) == 0


def test_nothing_here_waits_for_an_alarm_that_somebody_holds(app, alarms, connection):
    held, free = given(app, NOON, NOON)
    with connection.transaction():
        connection.execute("SELECT FROM coupon_clock.alarm WHERE stream_id = %s FOR UPDATE", (held.stream_id,))
        assert alarms.claim(24 * HOURS, 10) == [free]
        assert alarms.rearm(app.clock.now + HOURS, 10) == 1
        assert alarms.release([held]) == 0
