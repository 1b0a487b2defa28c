"""When a connection is replaced. Two brokers with addresses of their own do not fit on one machine: proxies behind one
name server share a port number, so here connections only pretend to be some."""

from threading import Event
from typing import Any

import pytest

from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.supervisor import Supervisor
from waiting import eventually


class Pretended:
    def __init__(self) -> None:
        self.busy = False
        self.closed = Event()

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


def supervisor() -> tuple[Supervisor, list[Any]]:
    built: list[Any] = []

    def build() -> Any:
        built.append(Pretended())
        return built[-1]

    return Supervisor("testing", build), built


def test_one_connection_serves_all_until_it_fails() -> None:
    supervised, built = supervisor()
    for _ in range(3):
        with supervised.connection():
            pass
    with pytest.raises(BrokerUnavailable), supervised.connection():
        raise Unreachable("as if")
    with supervised.connection() as connection:
        assert connection is built[1]
    eventually(built[0].closed.is_set)
    assert len(built) == 2


def test_a_renewed_connection_still_serves_the_calls_under_way() -> None:
    supervised, built = supervisor()
    with supervised.connection() as former:
        former.busy = True
        supervised.renew(former)
        assert supervised.current() is built[1]
        assert not built[0].closed.is_set()
        former.busy = False
    eventually(built[0].closed.is_set)


def test_renewing_what_others_renewed_already_changes_nothing() -> None:
    supervised, built = supervisor()
    former = supervised.current()
    supervised.renew(former)
    latter = supervised.current()
    supervised.renew(former)
    assert supervised.current() is latter
    assert len(built) == 2
