"""From commands to outcomes: overtaken, repeated, timed out, unknown. What is decided is the coupon template's life."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from coupon_clock.app import Application, Outcome
from coupon_clock.domain.coupon_template import COUPON_TEMPLATES
from coupon_clock.domain.errors import CommandConflict, OutcomeUnknown
from coupon_clock.domain.events import Ended, StockIncreased
from coupon_clock.infrastructure.command_handling.handler import CommandHandler, Overtaken
from coupon_clock.infrastructure.event_store.recorder import MOST_BYTES, MOST_EVENTS, EventLogRecorder
from coupon_clock.infrastructure.event_store.store import Conflict, EventStore, UnreadableEvent
from coupon_clock.infrastructure.postgres.binary_cursor import BinaryCursor
from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, DecidedTooLate, RolledBack, TimedOut
from examples import SHOP, ending_in, increase, terminate
from waiting import eventually

HOLD = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, %s, 't', '?')"


@pytest.fixture
def connection(settings) -> Iterator[Connection]:
    """Of somebody else."""
    with connect(settings) as connection:
        yield connection


@contextmanager
def held(connection: Connection, stream_id: UUID, version: int) -> Iterator[None]:
    """While somebody else has that version under way, and in the end takes it back."""
    with connection.transaction(force_rollback=True):
        connection.execute(HOLD, (stream_id, version))
        yield


def end_those_who_wait(connection: Connection) -> bool:
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        ended = other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return ended.rowcount > 0


def stock(app: Application, template_id: UUID) -> int:
    created, *increases = (envelope.event for envelope in app.history(SHOP, template_id))
    return created.stock + sum(event.by for event in increases)


# ── overtaken ────────────────────────────────────────────────────────────────────────────────────


def test_no_increase_is_lost_when_many_come_at_once(live):
    template = ending_in(3600, stock=1)
    live.execute(template)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: live.execute(increase(template.template_id, by=1)), range(80)))
    assert stock(live, template.template_id) == 81


def test_no_increase_is_lost_within_a_chunk_that_others_overtake(live):
    templates = [ending_in(3600, stock=1) for _ in range(5)]
    live.execute_many(templates)

    def chunk(_: int) -> list[object]:
        return live.execute_many([increase(t.template_id, by=1) for t in templates for _ in range(4)])

    with ThreadPoolExecutor(4) as threads:
        outcomes = [outcome for outcomes in threads.map(chunk, range(10)) for outcome in outcomes]
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert [stock(live, template.template_id) for template in templates] == [41] * 5


def test_of_two_that_expect_the_same_version_one_is_refused(live):
    template = ending_in(3600)
    live.execute(template)
    commands = [increase(template.template_id, expected_version=1) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(lambda command: live.execute_many([command])[0], commands))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CommandConflict", "Outcome"]


def test_two_that_create_the_same_template_at_once_agree(live):
    template = ending_in(3600)
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda _: live.execute(template), range(8)))
    assert len({(outcome.version, outcome.position, outcome.events) for outcome in outcomes}) == 1


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_come_in_order_over_several_chunks(live):
    templates = [ending_in(3600) for _ in range(2_100)]
    outcomes = live.execute_many(templates)
    assert [outcome.template_id for outcome in outcomes] == [template.template_id for template in templates]
    assert live.execute_many(templates) == outcomes


def test_a_command_that_changes_nothing_has_the_streams_last_place(live):
    template = ending_in(3600)
    live.execute(template)
    ended = live.execute(terminate(template.template_id))
    again = live.execute(terminate(template.template_id))
    assert (again.version, again.position, again.events) == (ended.version, ended.position, ())


def test_the_same_command_twice_in_a_chunk_has_one_effect_and_one_outcome(live):
    template = ending_in(3600, stock=1)
    more = increase(template.template_id, by=2)
    _, first, second = live.execute_many([template, more, more])
    assert first == second
    assert stock(live, template.template_id) == 3


def test_one_execute_is_two_round_trips(live):
    template = ending_in(3600)
    sql, log = live.database.sql, EventLogRecorder
    assert statements_of(live, lambda: live.execute(template)) == [sql(log.LOAD_STREAMS), sql(log.APPEND)]


def statements_of(app: Application, call: Callable[[], object]) -> list[object]:
    """What goes over the wire during the call."""
    sent: list[object] = []

    class Listening(BinaryCursor):
        def execute(self, query, *arguments, **options):  # type: ignore[no-untyped-def]
            sent.append(query)
            return super().execute(query, *arguments, **options)

    app.database._pool.wait()
    with ExitStack() as all_of_them:
        for _ in range(app.database._pool.get_stats()["pool_size"]):
            all_of_them.enter_context(app.database.connection()).cursor_factory = Listening
    call()
    return sent


# ── what fails ───────────────────────────────────────────────────────────────────────────────────


def test_a_stream_that_must_wait_too_long_spoils_no_other(live, connection):
    stuck, *others = (ending_in(3600) for _ in range(8))
    with held(connection, stuck.template_id, 1):
        outcomes = live.execute_many([*others[:4], stuck, *others[4:]])
    failed = outcomes.pop(4)
    assert isinstance(failed, DatabaseUnavailable)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)


def test_a_stream_that_cannot_be_read_spoils_no_other(live, connection):
    unreadable, other = ending_in(3600), ending_in(3600)
    connection.execute(HOLD, (unreadable.template_id, 1))
    refused, outcome = live.execute_many([unreadable, other])
    assert isinstance(refused, UnreadableEvent)
    assert isinstance(outcome, Outcome)


def test_a_command_whose_connection_is_ended_has_an_unknown_outcome_and_its_repeat_has_one_effect(live, connection):
    template = ending_in(3600, stock=1)
    live.execute(template)
    more = increase(template.template_id, by=2)
    with held(connection, template.template_id, 2), ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(live.execute, more)
        eventually(lambda: end_those_who_wait(connection), within=20)
        with pytest.raises(OutcomeUnknown):
            outcome.result(20)
    live.execute(more)
    live.execute(more)
    assert stock(live, template.template_id) == 3


def test_only_streams_that_gain_events_have_an_unknown_outcome(live, connection):
    known, unknown = ending_in(3600), ending_in(3600)
    first = live.execute(known)
    with held(connection, unknown.template_id, 1), ThreadPoolExecutor(1) as thread:
        outcomes = thread.submit(live.execute_many, [known, unknown])
        eventually(lambda: end_those_who_wait(connection), within=20)
        assert outcomes.result(20)[0] == first
        assert isinstance(outcomes.result()[1], OutcomeUnknown)


def test_a_foreign_stream_with_a_hole_can_still_be_continued(live, connection):
    template = ending_in(3600)
    live.execute(template)
    copied = (
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) "
        "SELECT originator_id, 3, topic, state FROM coupon_clock.event WHERE originator_id = %s"
    )
    connection.execute(copied, (template.template_id,))
    outcome = live.execute(increase(template.template_id))
    assert outcome.version == 4


def test_an_id_used_for_another_command_is_refused(live):
    template = ending_in(3600)
    live.execute(template)
    first = increase(template.template_id, by=1)
    live.execute(first)
    with pytest.raises(CommandConflict):
        live.execute(increase(template.template_id, by=2, command_id=first.command_id))
    with pytest.raises(CommandConflict):
        live.execute(terminate(template.template_id, command_id=first.command_id))
    assert live.execute(increase(template.template_id, by=2, command_id=uuid4())).version == 3


class Slow:
    """A store whose every load takes too long."""

    def __init__(self) -> None:
        self.loads = 0

    def load_many(self, stream_ids):
        self.loads += 1
        raise TimedOut("as always")


@pytest.mark.parametrize(("patience_s", "loads"), [(60.0, 15), (0.0, 1)])
def test_what_times_out_is_halved_until_the_patience_with_it_is_over(patience_s, loads):
    store = Slow()
    handler = CommandHandler(store, COUPON_TEMPLATES, notify=lambda _: None, patience_s=patience_s)
    outcomes = handler.handle_many([ending_in(3600) for _ in range(8)])
    assert [type(outcome) for outcome in outcomes] == [TimedOut] * 8
    assert store.loads == loads


class RollsBack:
    """A store that rolls back what has more than one event, and, once a stream, a single one as decided too late."""

    def __init__(self, store: EventStore) -> None:
        self.load_many = store.load_many
        self._store = store
        self._met: set[UUID] = set()

    def append(self, appends, *arguments, **options):
        if sum(len(append.events) for append in appends) > 1:
            raise RolledBack("as if by a deadlock")
        if (stream_id := appends[0].stream_id) not in self._met:
            self._met.add(stream_id)
            raise DecidedTooLate("as if it became due meanwhile")
        return self._store.append(appends, *arguments, **options)


def test_commands_of_a_stream_keep_their_order_whatever_is_rolled_back_and_tried_again(live):
    templates = [ending_in(3600) for _ in range(3)]
    live.execute_many(templates)
    handler = CommandHandler(RollsBack(live.store), COUPON_TEMPLATES, notify=lambda _: None)
    outcomes = handler.handle_many(
        [increase(t.template_id) for t in templates] + [terminate(t.template_id) for t in templates]
    )
    assert [outcome.version for outcome in outcomes] == [2, 2, 2, 3, 3, 3]
    for template in templates:
        assert [type(each.event) for each in live.history(SHOP, template.template_id)][1:] == [StockIncreased, Ended]


class OthersComeFirst:
    """A store in which others always come first on one stream, and once on any other."""

    def __init__(self, store: EventStore, always: UUID) -> None:
        self.load_many = store.load_many
        self._store = store
        self._met: set[UUID] = set()
        self._always = always

    def append(self, appends, *arguments, **options):
        (stream_id, version) = appends[0].stream_id, appends[0].expected_version
        if stream_id == self._always or stream_id not in self._met:
            self._met.add(stream_id)
            return [Conflict(stream_id, version, version + 1)]
        return self._store.append(appends, *arguments, **options)


def test_a_chunk_that_is_overtaken_for_long_leaves_the_next_one_its_patience(live):
    templates = [ending_in(3600) for _ in range(2)]
    live.execute_many(templates)
    store = OthersComeFirst(live.store, always=templates[0].template_id)
    handler = CommandHandler(store, COUPON_TEMPLATES, notify=lambda _: None, chunk=1, patience_s=0.2)
    overtaken, stored = handler.handle_many([increase(template.template_id) for template in templates])
    assert isinstance(overtaken, Overtaken)
    assert stored.version == 2


# ── much to load ─────────────────────────────────────────────────────────────────────────────────

LENGTHEN = """
INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
SELECT id, version, 'CouponTemplate.StockIncreased',
       convert_to('{"type":"CouponTemplate.StockIncreased","shop_number":1,"by":1,"note":"' || repeat('x', %s) || '"}',
                  'UTF8')
  FROM unnest(%s::uuid[]) AS stream (id), generate_series(2, %s) AS version
"""


@pytest.mark.parametrize(("events", "bytes_each"), [(900, 1), (6, 1_000_000)], ids=["many events", "large events"])
def test_long_streams_are_loaded_a_few_at_a_time(live, connection, monkeypatch, events, bytes_each):
    templates = [ending_in(3600, stock=1) for _ in range(30)]
    live.execute_many(templates)
    ids = [template.template_id for template in templates]
    connection.execute("SET statement_timeout = 0")
    connection.execute(LENGTHEN, (bytes_each, ids, events))
    loads: list[tuple[int, int]] = []
    select = EventLogRecorder.select_streams

    def counted(recorder, stream_ids):
        now, found = select(recorder, stream_ids)
        loads.append((len(found), sum(len(event.state) for event in found)))
        return now, found

    monkeypatch.setattr(EventLogRecorder, "select_streams", counted)
    outcomes = live.execute_many([increase(template_id, by=1) for template_id in ids])

    assert [outcome.version for outcome in outcomes] == [events + 1] * 30
    assert max(events for events, _ in loads) <= MOST_EVENTS
    assert max(size for _, size in loads) <= MOST_BYTES
