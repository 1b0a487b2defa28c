"""Streams: what goes in whole or not at all, conflicts as values, and an answer that never came."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Thread
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from msgspec import UNSET, Struct
from psycopg import Connection

from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.store import (
    Append,
    Appended,
    Busy,
    Conflict,
    EventStore,
    NewEvent,
    UnreadableEvent,
    Unstorable,
)
from coupon_clock.infrastructure.postgres.connection import connect, execute_script
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.postgres.errors import AnswerLost, RolledBack, TimedOut
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.settings import Settings
from waiting import eventually

LOW, MIDDLE, HIGH = (UUID(int=n) for n in (1, 2, 3))
NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


class Happened(Struct, frozen=True, tag="Happened"):
    what: str = "it"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with open_database(settings) as database:
        yield database


@pytest.fixture
def store(database: Database) -> EventStore[Happened]:
    return EventStore(database, ServerClock(), Happened)


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    """Of somebody else."""
    with connect(settings) as connection:
        yield connection


def new_events(*what: str) -> list[NewEvent[Happened]]:
    return [NewEvent(Happened(each), uuid4()) for each in what or ("it",)]


def append(stream_id: UUID, expected_version: int = 0, *what: str, due_at=UNSET) -> Append[Happened]:
    return Append(stream_id, expected_version, new_events(*what), due_at)


def then_holds(store: EventStore[Happened], stream_id: UUID, *what: str) -> None:
    envelopes, _ = store.load(stream_id)
    assert [(e.version, e.event.what) for e in envelopes] == list(enumerate(what, 1))


def then_alarms(connection: Connection, *alarms: tuple[UUID, datetime]) -> None:
    assert connection.execute("SELECT stream_id, due_at FROM coupon_clock.alarm ORDER BY stream_id").fetchall() == list(
        alarms
    )


@contextmanager
def in_background(call: Callable[[], object]) -> Iterator[Future[object]]:
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(call)


def is_waiting_for_a_lock(connection: Connection) -> bool:
    """Whether some other session of this database waits for another one's transaction."""
    found = connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return found.fetchone() is not None


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_comes_back_with_its_places_and_the_servers_time(store):
    (appended,) = store.append([append(LOW, 0, "one", "two")])
    envelopes, now = store.load(LOW)

    assert [(e.version, e.position, e.event.what) for e in envelopes] == [
        (1, appended.positions[0], "one"),
        (2, appended.positions[1], "two"),
    ]
    assert abs(datetime.now(UTC) - now) < timedelta(minutes=1)


def test_a_stream_that_does_not_exist_is_empty(store):
    assert store.load_many([LOW]).streams == {LOW: []}


def test_a_stream_that_cannot_be_read_spoils_no_other(store, connection):
    store.append([append(HIGH)])
    connection.execute(
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', '?')",
        (LOW,),
    )
    streams = store.load_many([LOW, HIGH]).streams

    assert isinstance(streams[LOW], UnreadableEvent)
    assert [envelope.event for envelope in streams[HIGH]] == [Happened()]
    with pytest.raises(UnreadableEvent):
        store.load(LOW)


# ── append ───────────────────────────────────────────────────────────────────────────────────────


def test_streams_and_their_alarms_go_in_together(store, connection):
    answers = store.append([append(HIGH, due_at=NOON), append(LOW, 0, "one", "two", due_at=LATER), append(MIDDLE)])

    assert all(isinstance(answer, Appended) for answer in answers)
    then_holds(store, LOW, "one", "two")
    then_alarms(connection, (LOW, LATER), (HIGH, NOON))


def test_an_end_drops_the_alarm_and_a_new_one_clears_its_marks(store, connection):
    store.append([append(LOW, due_at=NOON), append(HIGH, due_at=NOON)])
    connection.execute("UPDATE coupon_clock.alarm SET armed_at = due_at, leased_until = due_at")
    store.append([append(LOW, 1, due_at=None), append(HIGH, 1, due_at=LATER)])

    then_alarms(connection, (HIGH, LATER))
    assert connection.execute("SELECT armed_at, leased_until FROM coupon_clock.alarm").fetchone() == (None, None)


def test_an_alarm_at_the_same_time_keeps_its_marks(store, connection):
    store.append([append(LOW, due_at=NOON)])
    connection.execute("UPDATE coupon_clock.alarm SET armed_at = due_at")
    store.append([append(LOW, 1, due_at=NOON)])
    assert connection.execute("SELECT armed_at FROM coupon_clock.alarm").fetchone() == (NOON,)


def test_a_conflict_is_a_value_and_stops_no_other_stream(store, connection):
    store.append([append(LOW, 0, "first")])
    conflict, appended = store.append([append(LOW, 0, "late", "later", due_at=NOON), append(HIGH, due_at=NOON)])

    assert conflict == Conflict(LOW, expected_version=0, actual_version=1)
    assert isinstance(appended, Appended)
    then_holds(store, LOW, "first")
    then_alarms(connection, (HIGH, NOON))


def test_a_stream_goes_in_only_directly_after_its_previous_version(store):
    store.append([append(LOW)])
    assert store.append([append(LOW, 2)]) == [Conflict(LOW, 2, 1)]
    assert store.append([append(HIGH, 1)]) == [Conflict(HIGH, 1, 0)]
    then_holds(store, HIGH)


def test_a_conflict_inside_a_stream_stores_nothing_at_all(store, connection):
    """Only a writer that is not ours can have left version 2 without version 1."""
    connection.execute(
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 't', '')",
        (LOW,),
    )
    with pytest.raises(RolledBack):
        store.append([append(LOW, 0, "one", "two"), append(HIGH, due_at=NOON)])
    then_holds(store, HIGH)
    then_alarms(connection)


def test_an_append_waits_for_one_under_way_on_its_stream_and_yields_to_it(store, connection):
    with connection.transaction():
        given_held(connection, LOW)
        with in_background(lambda: store.append([append(LOW)])) as answers:
            with connect_like(connection) as watcher:
                eventually(lambda: is_waiting_for_a_lock(watcher), within=20)
            execute_script(connection, "COMMIT; BEGIN")
            assert answers.result(20) == [Conflict(LOW, 0, 1)]


def test_an_append_goes_in_when_the_one_under_way_is_rolled_back(store, connection):
    with connection.transaction(force_rollback=True):
        given_held(connection, LOW)
        with in_background(lambda: store.append([append(LOW)])) as answers:
            with connect_like(connection) as watcher:
                eventually(lambda: is_waiting_for_a_lock(watcher), within=20)
            execute_script(connection, "ROLLBACK; BEGIN")
            (answer,) = answers.result(20)
    assert isinstance(answer, Appended)


def test_two_batches_in_opposite_order_never_deadlock(store):
    def given_turns(streams: list[UUID]) -> None:
        for version in range(100):
            appends = [append(stream_id, version, due_at=LATER + version * NOON.resolution) for stream_id in streams]
            for each, outcome in zip(appends, store.append(appends), strict=True):
                if outcome == Busy():
                    store.append([each])

    with ThreadPoolExecutor(4) as threads:
        turns = [[LOW, MIDDLE, HIGH], [HIGH, MIDDLE, LOW]] * 2
        for done in [threads.submit(given_turns, streams) for streams in turns]:
            done.result()
    for stream_id in (LOW, MIDDLE, HIGH):
        assert [e.version for e in store.load(stream_id)[0]] == list(range(1, 101))


def test_an_append_that_must_wait_too_long_is_rolled_back_and_says_so(store, connection):
    with connection.transaction(force_rollback=True):
        given_held(connection, HIGH)
        with pytest.raises(TimedOut, match="lock timeout"):
            store.append([append(LOW), append(HIGH)])
        then_holds(store, LOW)


def test_of_appends_each_for_itself_only_the_one_that_waits_in_vain_is_left_out(store, connection):
    store.append([append(LOW)])
    with connection.transaction(force_rollback=True):
        given_held(connection, MIDDLE)
        conflict, busy, appended = store.append(
            [append(LOW, due_at=NOON), append(MIDDLE, due_at=NOON), append(HIGH, 0, "a", "b", due_at=LATER)],
            longest_wait=timedelta(milliseconds=5),
            each_stream=True,
        )
    assert (conflict, busy) == (Conflict(LOW, 0, 1), Busy())
    assert isinstance(appended, Appended)
    assert len(appended.positions) == 2
    then_holds(store, MIDDLE)
    then_holds(store, HIGH, "a", "b")
    then_alarms(connection, (HIGH, LATER))


def test_what_cannot_be_encoded_is_refused_before_anything_is_stored(store):
    with pytest.raises(Unstorable, match="surrogates not allowed"):
        store.append([append(LOW), append(HIGH, 0, "\ud800")])
    with pytest.raises(Unstorable, match="naive"):
        store.append([append(LOW, due_at=NOON.replace(tzinfo=None))])
    then_holds(store, LOW)


def test_a_load_that_takes_too_long_says_so(store, connection):
    store.load(LOW)
    with connection.transaction():
        connection.execute("LOCK TABLE coupon_clock.event IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TimedOut):
            store.load(LOW)


# ── an answer that never came ────────────────────────────────────────────────────────────────────


def test_an_append_whose_connection_is_ended_is_not_called_a_conflict(store, connection):
    with connection.transaction():
        given_held(connection, LOW)
        with in_background(lambda: store.append([append(LOW)])) as answers:
            with connect_like(connection) as watcher:
                eventually(lambda: is_waiting_for_a_lock(watcher), within=20)
                watcher.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            with pytest.raises(AnswerLost):
                answers.result(20)


def test_an_append_whose_answer_is_lost_on_the_way_may_have_been_stored(settings, store):
    with cable(settings) as (cut, through_cable), open_database(through_cable) as far_away:
        far_away._pool.wait()
        far = EventStore(far_away, ServerClock(), Happened)
        for version in range(4):  # so that all its connections have prepared the statement
            far.append([append(HIGH, version)])
        cut()
        with pytest.raises(AnswerLost):
            far.append([append(LOW)])
    eventually(lambda: store.load(LOW)[0], within=20)
    then_holds(store, LOW, "it")


@contextmanager
def cable(settings: Settings) -> Iterator[tuple[Callable[[], None], Settings]]:
    """Settings that lead through a wire; once cut, it still carries what is sent, but hangs up instead of answering."""
    cut = False

    def set_cut() -> None:
        nonlocal cut
        cut = True

    def carry(source: socket.socket, target: socket.socket, answers: bool) -> None:
        while data := source.recv(65536):
            if cut and answers:
                break
            target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(f"{folder}/.s.PGSQL.5432")
            for source, target, answers in ((near, far, False), (far, near, True)):
                Thread(target=carry, args=(source, target, answers), daemon=True).start()

    url = urlsplit(settings.database_url.get_secret_value())
    (folder,) = parse_qs(url.query)["host"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        yield set_cut, Settings.load(database_url=f"postgresql://postgres@127.0.0.1:{port}{url.path}")
        listener.shutdown(socket.SHUT_RDWR)


def given_held(connection: Connection, stream_id: UUID) -> None:
    """Version 1 of the stream, in a transaction that stays open."""
    connection.execute(
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, %s, %s)",
        (stream_id, "Happened", msgspec.json.encode(Happened())),
    )


@contextmanager
def connect_like(connection: Connection) -> Iterator[Connection]:
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        yield other
