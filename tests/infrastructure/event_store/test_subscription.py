"""No follower ever steps over an event, however writers commit, roll back or die; and no writer waits for one."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from random import Random
from threading import Event as Signal
from threading import Thread
from time import monotonic, sleep
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test
from msgspec import Struct
from psycopg import Connection
from psycopg.errors import IdleInTransactionSessionTimeout, InsufficientPrivilege

from coupon_clock.infrastructure.event_store.checkpoint import CheckpointLost
from coupon_clock.infrastructure.event_store.log_reader import LogReader, still_writing
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.recorder import PAGE_BYTES, EventLogRecorder
from coupon_clock.infrastructure.event_store.store import Append, EventStore, NewEvent, UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.settings import Settings
from waiting import eventually

INSERT = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
SELECT gen_random_uuid(), 1, 'Happened', convert_to(
       '{"type":"Happened"}', 'UTF8')
  FROM generate_series(1, %s)
RETURNING notification_id
"""
UNREADABLE = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
VALUES (gen_random_uuid(), 1, 'Happened', '?')
"""


class Happened(Struct, frozen=True, tag="Happened"):
    pass


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as database:
        yield database


@pytest.fixture
def store(database: Database) -> EventStore[Happened]:
    return EventStore(database, ServerClock(), Happened)


@pytest.fixture
def writer(settings: Settings) -> Iterator["Writer"]:
    with closing(connect(settings)) as connection:
        yield Writer(connection)


@pytest.fixture
def other_writer(settings: Settings) -> Iterator["Writer"]:
    with closing(connect(settings)) as connection:
        yield Writer(connection)


class Writer:
    """Somebody with a connection of their own, as with psql."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pid = connection.info.backend_pid

    def insert(self, events: int = 1) -> list[int]:
        return [position for (position,) in self.connection.execute(INSERT, (events,))]

    def begin(self) -> None:
        self.connection.execute("BEGIN")

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        self.connection.execute("ROLLBACK")


def positions(reader: LogReader, limit: int = 100) -> list[int]:
    return [event.position for event in reader.page(limit).events]


def all_positions(reader: LogReader, limit: int = 100) -> list[int]:
    """Until nothing comes any more."""
    found: list[int] = []
    while page := positions(reader, limit):
        found += page
    return found


# ── gaps ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_ends_before_what_is_still_under_way(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    other_writer.insert(2)
    writer.begin()
    writer.insert()
    other_writer.insert(2)

    assert all_positions(reader) == [1, 2]
    writer.commit()
    assert all_positions(reader) == [3, 4, 5]


def test_numbers_that_were_rolled_back_are_passed_once_their_writer_is_gone(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert(2)
    other_writer.insert()

    assert all_positions(reader) == []
    writer.roll_back()
    assert all_positions(reader) == [3]


def test_a_writer_that_began_after_the_gap_was_noted_is_not_waited_for(database, writer, other_writer, settings):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    other_writer.insert()
    assert positions(reader) == []

    other_writer.begin()
    other_writer.insert()
    writer.commit()
    assert all_positions(reader) == [1, 2]
    other_writer.commit()
    assert all_positions(reader) == [3]


def test_a_page_read_before_its_holders_were_noted_is_read_again(database, writer, other_writer):
    """The writer commits between the page and the look at the locks: nobody holds any, and still its event counts."""

    class CommittedMeanwhile(EventLogRecorder):
        def writers(self) -> frozenset[str]:
            writer.commit()
            return super().writers()

    writer.begin()
    writer.insert()
    other_writer.insert()
    assert positions(LogReader(CommittedMeanwhile(database), 0)) == [1, 2]


def test_two_readers_of_one_pool_judge_their_gaps_each_for_itself(database, writer, other_writer):
    early, late = LogReader(EventLogRecorder(database), 0), LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    other_writer.insert()
    assert positions(early) == []

    other_writer.begin()
    other_writer.insert()
    writer.roll_back()
    writer.insert()
    assert all_positions(early) == [2]
    assert all_positions(late) == [], "it cannot know that the other writer began after number 1 was lost"

    other_writer.commit()
    assert all_positions(early) == [3, 4]
    assert all_positions(late) == [2, 3, 4]


def test_a_savepoint_rolled_back_is_a_number_lost_and_no_reason_to_skip_another(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.connection.execute("SAVEPOINT before")
    writer.insert()
    writer.connection.execute("ROLLBACK TO before")
    writer.insert()
    other_writer.insert()

    assert all_positions(reader) == []
    writer.commit()
    assert all_positions(reader) == [2, 3]


def test_a_transaction_prepared_for_two_phase_commit_is_still_under_way_under_another_name():
    assert still_writing(frozenset({"3/17"}), frozenset({"3/17", "4/1"})) == {"3/17"}
    assert still_writing(frozenset({"3/17"}), frozenset({"-1/712"})) == {"-1/712"}


def test_a_writer_whose_session_fires_no_triggers_is_waited_for_as_any_other(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.connection.execute("SET session_replication_role = replica")
    writer.begin()
    writer.insert()
    other_writer.insert()

    assert positions(reader) == []
    writer.commit()
    assert all_positions(reader) == [1, 2]


def test_a_role_that_may_not_write_cannot_keep_a_reader_at_a_gap(database, database_url, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    writer.roll_back()
    other_writer.insert()
    with psycopg.connect(database_url, autocommit=True) as reading, a_role(reading, "reading"):
        reading.execute("GRANT USAGE ON SCHEMA coupon_clock TO reading; GRANT SELECT ON coupon_clock.event TO reading")
        reading.execute("SET ROLE reading; BEGIN; LOCK TABLE coupon_clock.event IN ACCESS SHARE MODE")
        with pytest.raises(InsufficientPrivilege), reading.transaction():
            reading.execute("LOCK TABLE coupon_clock.event IN ROW EXCLUSIVE MODE")

        assert positions(reader) == [2]
        reading.execute("ROLLBACK")


@contextmanager
def a_role(connection: psycopg.Connection, name: str) -> Iterator[None]:
    connection.execute(f"CREATE ROLE {name}")
    try:
        yield
    finally:
        connection.execute(f"RESET ROLE; DROP OWNED BY {name}; DROP ROLE {name}")


def test_no_writer_waits_for_a_reader_at_a_gap(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    other_writer.insert()
    assert reader.page(100).blocked_for is not None

    other_writer.connection.execute("SET lock_timeout = '1ms'")
    other_writer.insert()


def test_a_writer_that_pauses_too_long_is_ended_by_the_server(database, settings, writer, other_writer):
    """With a shorter bound: it is an argument of the trigger."""
    other_writer.connection.execute(
        "CREATE OR REPLACE TRIGGER bound_writer BEFORE INSERT ON coupon_clock.event "
        "FOR EACH STATEMENT EXECUTE FUNCTION coupon_clock.bound_writer('50ms', '60s')"
    )
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    other_writer.insert()

    found: list[int] = []
    eventually(lambda: found.extend(positions(reader)) or found, within=20)
    assert found == [2]
    with pytest.raises(IdleInTransactionSessionTimeout):
        writer.commit()


def test_a_writer_whose_connection_is_killed_leaves_a_gap_that_is_passed(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    other_writer.insert()
    assert positions(reader) == []

    other_writer.connection.execute("SELECT pg_terminate_backend(%s)", (writer.pid,))
    found: list[int] = []
    eventually(lambda: found.extend(positions(reader)) or found, within=20)
    assert found == [2]


@pytest.mark.parametrize("lock_free", [False, True])
def test_the_librarys_own_recorder_is_covered(database, settings, writer, lock_free):
    with stock_recorder(settings, lock_free) as stock:
        reader = LogReader(EventLogRecorder(database), 0)
        stock.insert_events([StoredEvent(uuid4(), 1, "topic", b"state")])
        if lock_free:
            writer.begin()
            writer.insert()
        stock.insert_events([StoredEvent(uuid4(), 1, "topic", b"state")])
        assert all_positions(reader) == ([1] if lock_free else [1, 2])
        if lock_free:
            writer.commit()
            assert all_positions(reader) == [2, 3]


@contextmanager
def stock_recorder(settings: Settings, lock_free: bool) -> Iterator[PostgresApplicationRecorder]:
    url = urlsplit(settings.database_url.get_secret_value())
    (host,) = parse_qs(url.query)["host"]
    datastore = PostgresDatastore(
        url.path[1:], host, 5432, "postgres", "", schema="coupon_clock", enable_db_functions=lock_free
    )
    with datastore:
        recorder = PostgresApplicationRecorder(datastore, events_table_name="event")
        recorder.create_table()
        yield recorder


def test_what_filled_a_gap_comes_in_pages_no_longer_than_others(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert(2_000)
    other_writer.insert()
    assert positions(reader, 10) == []
    writer.commit()

    pages: list[list[int]] = []
    while page := positions(reader, 10):
        pages.append(page)
    assert max(map(len, pages)) == 10
    assert [position for page in pages for position in page] == list(range(1, 2_002))


def test_a_gap_in_what_filled_a_gap_is_final_too(database, writer, other_writer):
    reader = LogReader(EventLogRecorder(database), 0)
    writer.begin()
    writer.insert()
    writer.connection.execute("SAVEPOINT before")
    writer.insert(20)
    writer.connection.execute("ROLLBACK TO before")
    writer.insert()
    other_writer.insert()
    writer.commit()
    assert all_positions(reader, 1) == [1, 22, 23]


def test_pages_of_large_events_are_cut_and_say_that_there_is_more(database, writer):
    large = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state, actor) "
    large += "SELECT gen_random_uuid(), 1, 'Happened', decode(repeat('00', %s), 'hex'), repeat('x', %s) "
    large += "FROM generate_series(1, 3)"
    writer.connection.execute(large, (PAGE_BYTES // 2, PAGE_BYTES // 2))
    writer.insert(2)

    reader = LogReader(EventLogRecorder(database), 0)
    pages = [reader.page(100) for _ in range(4)]
    assert [(len(page.events), page.more) for page in pages] == [(1, True), (1, True), (1, True), (2, False)]


def test_the_settled_end_of_the_log_waits_for_those_under_way(store, writer, other_writer):
    writer.begin()
    writer.insert()
    other_writer.insert()
    assert store.end() == 2
    with ThreadPoolExecutor(1) as thread:
        settled = thread.submit(store.settled_end)
        assert not settled.done()
        writer.commit()
        assert settled.result(20) == 2


# ── followers ────────────────────────────────────────────────────────────────────────────────────


class Taken(list[int]):
    """What a follower delivered, and whether it may."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.failures = 0
        self.before_advance: Callable[[], None] = lambda: None

    def deliver(self, batch: Batch[Happened]) -> None:
        if self.failures:
            self.failures -= 1
            raise ValueError("the handler's own")
        self.before_advance()
        with self.database.connection() as connection:
            batch.advance(connection)
        self += [envelope.position for envelope in batch.envelopes]


def follower(database: Database, store: EventStore[Happened], taken: Taken, **given: object) -> Subscription[Happened]:
    return Subscription(store, "mails", "follower", taken.deliver, **given)


def checkpoint(database: Database) -> tuple[int, UUID | None]:
    with database.connection() as connection:
        return connection.execute(
            "SELECT position, holder FROM coupon_clock.checkpoint LEFT JOIN coupon_clock.lease USING (name) "
            "WHERE name = 'mails'"
        ).fetchone()


def takes_over(subscription: Subscription[Happened]) -> bool:
    """Whether it is the one that follows now."""
    subscription._leased()
    return subscription.lease.is_held()


def test_a_checkpoint_moves_with_each_batch_and_outlives_the_follower(database, store, writer):
    taken = Taken(database)
    writer.insert(3)
    first = follower(database, store, taken, batch=2)
    assert first.run_once() == {"followed": 2}
    first.release()
    second = follower(database, store, taken)
    second.run_once()
    assert not second.run_once()

    assert taken == [1, 2, 3]
    assert checkpoint(database) == (3, second.lease.holder)


def test_a_batch_whose_handler_fails_is_repeated_whole(database, store, writer):
    taken = Taken(database)
    taken.failures = 2
    writer.insert(3)
    one = follower(database, store, taken)
    for _ in range(2):
        with pytest.raises(ValueError, match="own"):
            one.run_once()
    one.run_once()
    assert taken == [1, 2, 3]


def test_a_second_process_waits_until_the_first_releases(database, store, writer):
    taken = Taken(database)
    first, second = follower(database, store, taken), follower(database, store, taken)
    writer.insert()
    first.run_once()
    writer.insert()
    assert not second.run_once()

    first.release()
    second.run_once()
    assert taken == [1, 2]


def test_a_second_process_takes_over_from_one_that_shows_no_life_and_the_first_steps_back(database, store, writer):
    taken = Taken(database)
    first, second = follower(database, store, taken), follower(database, store, taken, patience_s=0.2)
    writer.insert()
    first.run_once()
    eventually(lambda: takes_over(second), within=20)
    writer.insert()
    second.run_once()
    writer.insert()

    with pytest.raises(CheckpointLost):
        first.run_once()
    assert not first.run_once()
    second.run_once()
    assert taken == [1, 2, 3]


def test_a_handler_slower_than_anybodys_patience_keeps_its_lease(database, store, writer):
    slow, other = Taken(database), Taken(database)
    first = follower(database, store, slow, patience_s=0.3)
    second = follower(database, store, other, patience_s=0.5)
    writer.insert()

    def meanwhile() -> None:
        deadline = monotonic() + 2
        while monotonic() < deadline:
            assert not takes_over(second)
            sleep(0.02)

    slow.before_advance = meanwhile
    first.run_once()
    assert slow == [1]
    assert checkpoint(database) == (1, first.lease.holder)


def test_the_first_of_two_with_the_same_batch_counts(database, store, writer):
    """As after a pause of the whole process, in which nothing renewed its lease."""
    slow, other = Taken(database), Taken(database)
    first, second = follower(database, store, slow), follower(database, store, other, patience_s=0.2)
    writer.insert()
    slow.before_advance = lambda: eventually(lambda: takes_over(second), within=20)
    first.run_once()
    assert slow == [1]
    with pytest.raises(CheckpointLost):
        second.run_once()
    assert checkpoint(database) == (1, second.lease.holder)


def test_now_begins_after_all_that_is_stored_or_under_way_and_only_the_first_time(database, store, writer):
    taken = Taken(database)
    writer.insert(3)
    first = follower(database, store, taken, start="now")
    assert not first.run_once()
    writer.insert()
    first.release()

    follower(database, store, taken, start="now").run_once()
    assert taken == [4]


def test_what_cannot_be_read_holds_up_only_what_comes_after_it(database, store, writer):
    taken = Taken(database)
    writer.insert(2)
    writer.connection.execute(UNREADABLE)
    writer.insert()
    one = follower(database, store, taken)

    one.run_once()
    for _ in range(2):
        with pytest.raises(UnreadableEvent):
            one.run_once()
    assert taken == [1, 2]
    assert checkpoint(database)[0] == 2


def test_lag_tells_caught_up_from_behind_and_from_blocked_at_a_gap(database, store, writer, other_writer):
    one = follower(database, store, Taken(database), batch=2)
    writer.insert(5)
    one.run_once()
    assert (one.lag.events, one.lag.blocked_for) == (3, None)
    assert one.lag.seconds > 0

    one.run_once()
    one.run_once()
    one.run_once()
    assert one.lag == (0, 0.0, None)

    writer.begin()
    writer.insert()
    other_writer.insert()
    one.run_once()
    assert one.lag.events == 2
    assert one.lag.blocked_for is not None


def test_pauses_grow_up_to_what_the_loop_asks_and_begin_anew_with_each_event(database, store, writer):
    one = follower(database, store, Taken(database))
    pauses: list[float] = []
    wait = one.paced(pauses.append)
    for _ in range(4):
        wait(0.01)
    writer.insert()
    one.run_once()
    wait(0.01)
    assert pauses == [0.002, 0.004, 0.008, 0.01, 0.002]


# ── against a model ──────────────────────────────────────────────────────────────────────────────


class Interleavings(RuleBasedStateMachine):
    """Writers begin, insert, commit, roll back and are killed, in any order, while readers read on between any two."""

    url: str
    database: Database

    idle, writing = Bundle("idle"), Bundle("writing")

    def __init__(self) -> None:
        super().__init__()
        start = EventLogRecorder(self.database).max_notification_id() or 0
        self.readers = [LogReader(EventLogRecorder(self.database), start) for _ in range(2)]
        self.read: list[list[int]] = [[], []]
        self.committed: set[int] = set()
        self.undecided: dict[Writer, list[int]] = {}

    @rule(target=writing)
    def begin(self) -> Writer:
        writer = Writer(psycopg.connect(self.url, autocommit=True))
        writer.begin()
        self.undecided[writer] = []
        return writer

    @rule(writer=writing, events=st.integers(1, 3))
    def insert(self, writer: Writer, events: int) -> None:
        self.undecided[writer] += writer.insert(events)

    @rule(events=st.integers(1, 3))
    def insert_at_once(self, events: int) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            self.committed |= set(Writer(connection).insert(events))

    @rule(writer=consumes(writing))
    def commit(self, writer: Writer) -> None:
        writer.commit()
        self.committed |= set(self.undecided.pop(writer))
        writer.connection.close()

    @rule(writer=consumes(writing))
    def roll_back(self, writer: Writer) -> None:
        writer.roll_back()
        del self.undecided[writer]
        writer.connection.close()

    @rule(writer=consumes(writing))
    def kill(self, writer: Writer) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (writer.pid,))
            gone = "SELECT FROM pg_stat_activity WHERE pid = %s"
            eventually(lambda: connection.execute(gone, (writer.pid,)).fetchone() is None, within=20)
        del self.undecided[writer]
        writer.connection.close()

    @rule(reader=st.integers(0, 1), limit=st.integers(1, 4))
    def read_on(self, reader: int, limit: int) -> None:
        self.read[reader] += positions(self.readers[reader], limit)

    @invariant()
    def nothing_was_stepped_over(self) -> None:
        for reader, read in zip(self.readers, self.read, strict=True):
            assert read == sorted(p for p in self.committed if p <= reader.position)
            assert not any(p <= reader.position for held in self.undecided.values() for p in held)

    def teardown(self) -> None:
        """Once nobody writes any more, every reader comes to the end."""
        for writer in list(self.undecided):
            self.commit(writer)
        for number, reader in enumerate(self.readers):
            self.read[number] += all_positions(reader)
            assert self.read[number] == sorted(self.committed)


def test_a_reader_sees_exactly_what_the_model_says(database_url, database):
    Interleavings.url, Interleavings.database = database_url, database
    run_state_machine_as_test(
        Interleavings,
        settings=hypothesis_settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# ── many real processes ──────────────────────────────────────────────────────────────────────────


def write_wildly(url: str, seed: int, seconds: float) -> None:
    """Pauses inside transactions, rolls back, and in the end kills itself with one under way."""
    random = Random(seed)
    writer = Writer(psycopg.connect(url, autocommit=True))
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        writer.begin()
        writer.insert(random.randint(1, 3))
        sleep(random.choice((0, 0, 0, 0.001, 0.02)))
        random.choice((writer.commit, writer.commit, writer.roll_back))()
    writer.begin()
    writer.insert()
    os.kill(os.getpid(), signal.SIGKILL)


def append_quickly(url: str, seconds: float) -> None:
    with open_database(Settings.load(database_url=url)) as database:
        store: EventStore[Happened] = EventStore(database, ServerClock(), Happened)
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            store.load(uuid4())
            store.append([Append(uuid4(), 0, [NewEvent(Happened(), uuid4())] * 3) for _ in range(3)])


def test_two_followers_miss_nothing_of_many_processes(database_url, database):
    processes = [
        *(get_context("spawn").Process(target=write_wildly, args=(database_url, n, 2)) for n in range(4)),
        *(get_context("spawn").Process(target=append_quickly, args=(database_url, 2)) for _ in range(2)),
    ]
    for process in processes:
        process.start()
    done = Signal()
    read: list[list[int]] = [[], []]

    def follow(number: int) -> None:
        reader = LogReader(EventLogRecorder(database), 0)
        while (page := positions(reader, 50)) or not done.is_set():
            read[number] += page
        read[number] += all_positions(reader)

    followers = [Thread(target=follow, args=(number,)) for number in range(2)]
    for thread in followers:
        thread.start()
    for process in processes:
        process.join(60)
    with psycopg.connect(database_url, autocommit=True) as connection:
        recorder = EventLogRecorder(database)
        eventually(lambda: not recorder.writers(), within=20)
        done.set()
        for thread in followers:
            thread.join(60)
        stored = [p for (p,) in connection.execute("SELECT notification_id FROM coupon_clock.event ORDER BY 1")]
    assert len(stored) > 100
    assert read == [stored, stored]
