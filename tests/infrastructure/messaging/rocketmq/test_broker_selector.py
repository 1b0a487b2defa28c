import logging

import pytest

from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.broker_selector import BrokerSelector
from coupon_clock.infrastructure.messaging.rocketmq.requests import BrokerRoute

A, B, C = brokers = [BrokerRoute(name, None, None) for name in "abc"]


def test_receivers_spread_over_the_brokers() -> None:
    selector = BrokerSelector()
    with selector.choose(brokers) as first, selector.choose(brokers) as second, selector.choose(brokers) as third:
        assert {first, second, third} == {A, B, C}


def test_one_receiver_asks_one_broker_after_the_other() -> None:
    selector = BrokerSelector()
    asked = []
    for _ in range(6):
        with selector.choose(brokers) as route:
            asked.append(route)
    assert asked == [A, B, C, A, B, C]


def test_a_broker_that_keeps_failing_is_left_to_rest() -> None:
    selector = BrokerSelector()
    fail(selector, A, times=10)
    for _ in range(4):
        with selector.choose([A, B]) as route:
            assert route == B


def test_a_broker_that_works_again_is_asked_again() -> None:
    selector = BrokerSelector()
    fail(selector, A, times=10)
    with selector.choose([A]):
        pass
    with selector.choose([A, B]) as first, selector.choose([A, B]) as second:
        assert {first, second} == {A, B}


def test_where_all_rest_one_is_asked_nevertheless() -> None:
    selector = BrokerSelector()
    fail(selector, A, times=10)
    assert not selector.working([A])
    with selector.choose([A]) as route:
        assert route == A


def test_one_that_failed_does_not_hide_one_that_works() -> None:
    selector = BrokerSelector()
    fail(selector, A, times=1)
    assert selector.working([A, B]) == [B]


def test_one_that_fails_is_reported_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    selector = BrokerSelector()
    caplog.set_level(logging.INFO)
    for _ in range(2):
        for _ in range(3):
            fail(selector, A, times=1)
            selector.report_failure(A, Unreachable("as if"))
        for _ in range(3):
            with selector.choose([A]):
                pass
    logged = [message.split(" action=")[1].split(" reason=")[0] for message in caplog.messages]
    assert logged == ["one_lost broker=a", "one_back broker=a"] * 2


def fail(selector: BrokerSelector, route: BrokerRoute, times: int) -> None:
    for _ in range(times):
        with pytest.raises(BrokerUnavailable), selector.choose([route]):
            raise Unreachable("as if")
