"""Scans begin at the bottom of an index, unless that is slow."""

import pytest

from coupon_clock.infrastructure.postgres.bottom_scans import BottomScans


@pytest.fixture
def slow() -> BottomScans:
    """The one at the time 100 was slow."""
    scans = BottomScans()
    scans.took(seconds=0.1, rows=0, now=100)
    return scans


def test_while_they_are_quick_all_begin_there():
    scans = BottomScans()
    for now in range(10):
        assert scans.due(now)
        scans.took(seconds=0.001, rows=0, now=now)


def test_after_a_slow_one_the_next_is_ten_seconds_later(slow):
    assert not slow.due(100.1)
    assert not slow.due(109.9)
    assert slow.due(110)


def test_time_spent_on_rows_is_not_slow():
    scans = BottomScans()
    scans.took(seconds=0.1, rows=2000, now=1)
    assert scans.due(2)


def test_when_something_may_be_left_the_next_begins_there_all_the_same(slow):
    slow.repeat()
    assert slow.due(101)
