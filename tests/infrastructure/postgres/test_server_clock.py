"""PostgreSQL's time, from the host's monotonic clock and what loads teach."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coupon_clock.infrastructure.postgres import server_clock
from coupon_clock.infrastructure.postgres.server_clock import ServerClock

START = datetime(2026, 3, 1, 8, tzinfo=UTC)


@given(
    st.lists(st.tuples(st.floats(0.0001, 5), st.floats(0.0001, 0.1), st.floats(0.0001, 0.1)), min_size=1, max_size=20),
)
def test_it_is_never_ahead_of_the_server_and_behind_by_at_most_a_round_trip(loads):
    clock, host = ServerClock(), 1000.0
    shortest = float("inf")
    for pause, before, after in loads:
        host += pause
        started, host = host, host + before + after
        clock.learn(START + timedelta(seconds=started + before), started, host)
        shortest = min(shortest, before + after)
        behind = START + timedelta(seconds=host) - at(clock, host)
        assert timedelta(microseconds=-2) <= behind <= timedelta(seconds=shortest, microseconds=2)


def test_a_server_clock_that_steps_is_followed_at_once():
    clock = ServerClock()
    clock.learn(START, 10.0, 10.001)
    clock.learn(START - timedelta(seconds=2), 11.0, 11.001)

    assert abs(at(clock, 11.001) - (START - timedelta(seconds=2))) <= timedelta(seconds=0.002)


def test_before_the_first_load_it_is_the_hosts_own():
    assert abs(ServerClock().now() - datetime.now(UTC)) < timedelta(minutes=1)


def at(clock: ServerClock, host: float) -> datetime:
    """What the clock says when the host's monotonic clock says `host`."""
    real, server_clock.monotonic = server_clock.monotonic, lambda: host
    try:
        return clock.now()
    finally:
        server_clock.monotonic = real
