from collections.abc import Iterator
from datetime import timedelta

import pytest

from broker_contract import BrokerContract
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    def broker(self) -> Iterator[MemoryBroker]:
        broker = MemoryBroker()
        yield broker
        broker.close()

    @pytest.fixture
    def invisible(self) -> timedelta:
        return timedelta(milliseconds=100)
