"""Scans begin at the bottom of an index, unless that is slow."""

import pytest

from coupon_clock.infrastructure.postgres.bottom_scans import BottomScans


@pytest.fixture
def slow() -> BottomScans:
    """The two up to the time 100 were."""
    scans = BottomScans()
    scans.took(seconds=0.15, rows=0, now=99)
    scans.took(seconds=0.1, rows=0, now=100)
    return scans


def test_while_they_are_quick_all_begin_there():
    scans = BottomScans()
    for now in range(10):
        assert scans.due(now)
        scans.took(seconds=0.001, rows=0, now=now)


def test_after_slow_ones_the_pause_is_ten_times_as_long(slow):
    assert not slow.due(100.9)
    assert slow.due(101)


def test_no_pause_is_longer_than_ten_seconds(slow):
    slow.took(seconds=7, rows=0, now=200)
    slow.took(seconds=7, rows=0, now=200)
    assert not slow.due(209.9)
    assert slow.due(210)


def test_a_single_slow_one_makes_no_pause():
    scans = BottomScans()
    scans.took(seconds=1, rows=0, now=100)
    assert scans.due(100.1)


def test_time_spent_on_rows_is_not_slow():
    scans = BottomScans()
    for _ in range(2):
        scans.took(seconds=0.1, rows=2000, now=1)
    assert scans.due(1.1)


def test_when_something_may_be_left_the_next_begins_there_all_the_same(slow):
    slow.repeat()
    assert slow.due(100.1)
