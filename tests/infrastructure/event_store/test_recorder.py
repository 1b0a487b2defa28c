"""The eventsourcing library's own tests of a recorder, unchanged, on the log's table with all its triggers."""

from collections.abc import Iterator
from threading import Thread
from uuid import uuid4

import pytest
from eventsourcing.persistence import ApplicationRecorder, IntegrityError, OperationalError, StoredEvent
from eventsourcing.tests.persistence import ApplicationRecorderTestCase

from coupon_clock.app import Application
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.recorder import EventLogRecorder
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import throw_away_database


class TestRecorder(ApplicationRecorderTestCase[ApplicationRecorder]):
    @pytest.fixture(autouse=True)
    def _on_an_empty_log(self, postgres: LocalPostgres) -> Iterator[None]:
        with throw_away_database(postgres.url) as url, open_database(Settings.load(database_url=url)) as database:
            self.database = database
            yield

    def create_recorder(self) -> ApplicationRecorder:
        return EventLogRecorder(self.database)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as database:
        yield database


@pytest.fixture
def recorder(database: Database) -> EventLogRecorder:
    return EventLogRecorder(database)


def an_event(version: int = 1, **given: object) -> StoredEvent:
    return StoredEvent(**{"originator_id": uuid4(), "originator_version": version, "topic": "t", "state": b"s"} | given)


def test_positions_come_back_in_the_order_given(recorder):
    later, earlier = sorted((an_event(), an_event()), key=lambda event: event.originator_id, reverse=True)
    assert recorder.insert_events([later, earlier]) == [1, 2]
    assert [n.originator_id for n in recorder.select_notifications(1, 10)] == [
        later.originator_id,
        earlier.originator_id,
    ]


def test_a_conflict_in_one_stream_stores_nothing_of_the_others(recorder):
    taken, other = an_event(), an_event()
    recorder.insert_events([taken])

    with pytest.raises(IntegrityError):
        recorder.insert_events([other, taken])
    assert recorder.select_events(other.originator_id) == []


def test_a_subscription_waits_for_what_comes(recorder):
    received = []
    with recorder.subscribe(gt=0) as subscription:
        reader = Thread(target=lambda: received.append(next(subscription)))
        reader.start()
        event = an_event()
        recorder.insert_events([event])
        reader.join(10)
    assert [(n.originator_id, n.id) for n in received] == [(event.originator_id, 1)]


def test_a_server_that_is_away_is_an_error_of_the_librarys(tmp_path):
    server = LocalPostgres(tmp_path / "postgres")
    server.start()
    Application.migrate(settings := Settings.load(database_url=server.url))
    with open_database(settings) as database:
        server.kill()
        with pytest.raises(OperationalError):
            EventLogRecorder(database).insert_events([an_event()])
