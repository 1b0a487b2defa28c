"""The store on PostgreSQL keeps the contract that the property tests' log in memory keeps too."""

from collections.abc import Iterator

import pytest

from coupon_clock.domain.events import StoredEvent
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.settings import Settings
from event_store_contract import EventStoreContract


class TestStoreOnPostgreSQL(EventStoreContract):
    @pytest.fixture
    def store(self, settings: Settings) -> Iterator[EventStore]:
        with open_database(settings) as database:
            yield EventStore(database, ServerClock(), StoredEvent)
