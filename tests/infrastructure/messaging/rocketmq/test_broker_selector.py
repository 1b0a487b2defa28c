import pytest
from structlog.testing import capture_logs

from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.broker_selector import Lanes
from coupon_clock.infrastructure.messaging.rocketmq.requests import Lane

A, B, C = brokers = [Lane(name, None, None) for name in "abc"]


def test_receivers_spread_over_the_brokers() -> None:
    lanes = Lanes()
    with lanes.choose(brokers) as first, lanes.choose(brokers) as second, lanes.choose(brokers) as third:
        assert {first, second, third} == {A, B, C}


def test_one_receiver_asks_one_broker_after_the_other() -> None:
    lanes = Lanes()
    asked = []
    for _ in range(6):
        with lanes.choose(brokers) as lane:
            asked.append(lane)
    assert asked == [A, B, C, A, B, C]


def test_a_broker_that_keeps_failing_is_left_to_rest() -> None:
    lanes = Lanes()
    fail(lanes, A, times=10)
    for _ in range(4):
        with lanes.choose([A, B]) as lane:
            assert lane == B


def test_a_broker_that_works_again_is_asked_again() -> None:
    lanes = Lanes()
    fail(lanes, A, times=10)
    with lanes.choose([A]):
        pass
    with lanes.choose([A, B]) as first, lanes.choose([A, B]) as second:
        assert {first, second} == {A, B}


def test_where_all_rest_one_is_asked_nevertheless() -> None:
    lanes = Lanes()
    fail(lanes, A, times=10)
    assert not lanes.working([A])
    with lanes.choose([A]) as lane:
        assert lane == A


def test_one_that_failed_does_not_hide_one_that_works() -> None:
    lanes = Lanes()
    fail(lanes, A, times=1)
    assert lanes.working([A, B]) == [B]


def test_one_that_fails_is_told_once_until_it_works_again() -> None:
    lanes = Lanes()
    with capture_logs() as told:
        for _ in range(2):
            for _ in range(3):
                fail(lanes, A, times=1)
                lanes.tell_failed(A, Unreachable("as if"))
            for _ in range(3):
                with lanes.choose([A]):
                    pass
    assert [(line["action"], line["broker"]) for line in told] == [("one_lost", "a"), ("one_back", "a")] * 2


def fail(lanes: Lanes, lane: Lane, times: int) -> None:
    for _ in range(times):
        with pytest.raises(BrokerUnavailable), lanes.choose([lane]):
            raise Unreachable("as if")
