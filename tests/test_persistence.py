"""The eventsourcing library's own tests of its recorders and its factory, unchanged, and its applications, on our log.

Not provided: notification ids that do not interleave (NonInterleavingNotificationIDsBaseCase): writers draw positions
at the same time, which is what makes them fast.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.application import Application
from eventsourcing.cipher import AESCipher
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    AggregateRecorder,
    InfrastructureFactoryError,
    IntegrityError,
    ProcessRecorder,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.tests.persistence import (
    AggregateRecorderTestCase,
    InfrastructureFactoryTestCase,
    ProcessRecorderTestCase,
    TrackingRecorderTestCase,
)
from eventsourcing.utils import Environment, get_topic

from coupon_clock import persistence
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.recorder import EventLogRecorder
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import throw_away_database


class OnADatabase:
    """For the library's cases, which are written for unittest."""

    @pytest.fixture(autouse=True)
    def _on_a_database(self, postgres: LocalPostgres) -> Iterator[None]:
        with throw_away_database(postgres.url) as url:
            self.env = Environment("TestCase", {"COUPON_CLOCK_DATABASE_URL": url} | MODULE)
            factory = persistence.Factory(self.env)
            self.factory_of_the_fixture = factory
            yield
            factory.close()


MODULE = {"PERSISTENCE_MODULE": "coupon_clock.persistence"}


class TestAggregateRecorder(OnADatabase, AggregateRecorderTestCase):
    def create_recorder(self) -> AggregateRecorder:
        return self.factory_of_the_fixture.aggregate_recorder()


class TestSnapshotRecorder(OnADatabase, AggregateRecorderTestCase):
    def create_recorder(self) -> AggregateRecorder:
        return self.factory_of_the_fixture.aggregate_recorder("snapshots")


class TestTrackingRecorder(OnADatabase, TrackingRecorderTestCase):
    def create_recorder(self) -> TrackingRecorder:
        return self.factory_of_the_fixture.tracking_recorder()


class TestProcessRecorder(OnADatabase, ProcessRecorderTestCase):
    def create_recorder(self) -> ProcessRecorder:
        return self.factory_of_the_fixture.process_recorder()


class Counting(persistence.TrackingRecorder):
    """A user's own, with a row of its own."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        with self.transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS counted (events bigint)")

    def count(self, tracking: Tracking) -> None:
        with self.transaction() as connection:
            self.track(connection, tracking)
            connection.execute("INSERT INTO counted VALUES (1)")

    def counted(self) -> int:
        with self.transaction() as connection:
            ((number,),) = connection.execute("SELECT count(*) FROM counted")
        return number


class TestFactory(OnADatabase, InfrastructureFactoryTestCase[persistence.Factory]):
    def expected_factory_class(self) -> type[persistence.Factory]:
        return persistence.Factory

    def expected_aggregate_recorder_class(self) -> type[AggregateRecorder]:
        return persistence.AggregateRecorder

    def expected_application_recorder_class(self) -> type[EventLogRecorder]:
        return EventLogRecorder

    def expected_tracking_recorder_class(self) -> type[TrackingRecorder]:
        return persistence.TrackingRecorder

    def tracking_recorder_subclass(self) -> type[TrackingRecorder]:
        return Counting

    def expected_process_recorder_class(self) -> type[ProcessRecorder]:
        return persistence.ProcessRecorder


# ── applications of the library ──────────────────────────────────────────────────────────────────


class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        self.tricks.append(trick)


class School(Application[UUID]):
    is_snapshotting_enabled = True

    def register(self, name: str) -> UUID:
        dog = Dog(name)
        self.save(dog)
        return dog.id

    def add_trick(self, dog_id: UUID, trick: str) -> None:
        dog: Dog = self.repository.get(dog_id)
        dog.add_trick(trick)
        self.save(dog)

    def tricks(self, dog_id: UUID, version: int | None = None) -> list[str]:
        dog: Dog = self.repository.get(dog_id, version=version)
        return dog.tricks


@pytest.fixture
def env(database_url: str) -> dict[str, str]:
    return {"COUPON_CLOCK_DATABASE_URL": database_url} | MODULE


@pytest.fixture
def school(env: dict[str, str]) -> Iterator[School]:
    with School(env) as school:
        yield school


def test_the_log_of_an_application_is_a_schema_with_its_name(school, database_url):
    dog_id = school.register("Fido")
    school.add_trick(dog_id, "roll over")

    assert school.tricks(dog_id) == ["roll over"]
    assert [n.id for n in school.notification_log.select(start=1, limit=10)] == [1, 2]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM school.event").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM coupon_clock.event").fetchone() == (0,)


def test_snapshots_ciphers_and_compressors_of_the_library_keep_working(env, database_url):
    secret = {"CIPHER_KEY": AESCipher.create_key(16), "COMPRESSOR_TOPIC": "zlib"}
    with School(env | secret) as school:
        dog_id = school.register("Fido")
        for number in range(5):
            school.add_trick(dog_id, f"trick {number}")
        school.take_snapshot(dog_id)
        school.add_trick(dog_id, "bow")

        assert school.tricks(dog_id)[-2:] == ["trick 4", "bow"]
        assert school.tricks(dog_id, version=3) == ["trick 0", "trick 1"]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT originator_version FROM school.snapshot").fetchall() == [(6,)]
        states = connection.execute("SELECT state FROM school.event").fetchall()
    assert not any(b"trick" in state for (state,) in states)


def test_of_two_who_change_one_aggregate_the_second_is_told(school):
    dog_id = school.register("Fido")
    one, other = (school.repository.get(dog_id) for _ in range(2))
    one.add_trick("bow")
    other.add_trick("jump")
    school.save(one)
    with pytest.raises(IntegrityError):
        school.save(other)
    assert school.tricks(dog_id) == ["bow"]


class CountDogs(Projection[Counting]):
    name = "counting"
    topics = (get_topic(Dog.Registered),)

    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        self.view.count(tracking)


def test_a_projection_runner_of_the_library_misses_nothing_of_many_writers(env):
    with (
        School(env) as school,
        ProjectionRunner(application_class=School, projection_class=CountDogs, view_class=Counting, env=env) as runner,
        ThreadPoolExecutor(8) as threads,
    ):
        for _ in threads.map(school.register, [f"Dog {number}" for number in range(400)]):
            pass
        runner.wait(school.recorder.max_notification_id(), timeout=30)
        assert runner.projection.view.counted() == 400


def test_a_notification_log_ends_before_what_is_still_under_way(school, database_url):
    insert = "INSERT INTO school.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', 's')"
    school.register("Fido")
    with psycopg.connect(database_url) as writer:
        writer.execute(insert, (uuid4(),))
        school.register("Rex")
        for topics in ((), [get_topic(Dog.Registered)]):
            assert [n.id for n in school.recorder.select_notifications(1, 10, topics=topics)] == [1]
        writer.commit()
    assert [n.id for n in school.recorder.select_notifications(1, 10)] == [1, 2, 3]


def test_what_was_rolled_back_hides_nothing_that_comes_after_it(school, database_url):
    insert = "INSERT INTO school.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', 's')"
    school.register("Fido")
    with psycopg.connect(database_url) as writer:
        writer.execute(insert, (uuid4(),))
        writer.rollback()
    school.register("Rex")
    assert [n.id for n in school.recorder.select_notifications(2, 10)] == [3]
    assert [n.id for n in school.recorder.select_notifications(1, 10, stop=2)] == [1]


def test_a_subscription_hands_on_a_new_event_soon(school):
    received: list[int] = []

    def read() -> None:
        with school.recorder.subscribe(gt=0) as subscription:
            received.append(next(subscription).id)

    reader = Thread(target=read)
    reader.start()
    school.register("Fido")
    reader.join(10)
    assert received == [1]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_two_applications_have_a_log_each(env, database_url):
    with School(env) as school, School(env | {"POSTGRES_SCHEMA": "evening_school"}) as evening:
        school.register("Fido")
        assert evening.notification_log.select(start=1, limit=10) == []


def test_tables_are_made_only_where_that_is_asked_for(env):
    with pytest.raises(CouponClockError, match="coupon-clock migrate"):
        School(env | {"CREATE_TABLE": "no"})
    with School(env):
        pass
    with School(env | {"CREATE_TABLE": "no"}) as school:
        school.register("Fido")


def test_a_missing_url_is_named(monkeypatch):
    monkeypatch.delenv("COUPON_CLOCK_DATABASE_URL", raising=False)
    with pytest.raises(CouponClockError, match="COUPON_CLOCK_DATABASE_URL is not set"):
        School(MODULE)


def test_what_there_is_no_recorder_for_is_refused(env):
    with pytest.raises(InfrastructureFactoryError, match="not of archives"):
        persistence.Factory(env).aggregate_recorder("archives")
