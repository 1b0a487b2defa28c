"""What is due is ended: by prepared endings or decided anew, with the same events, whatever others do meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event as Signal
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec.structs import replace
from psycopg.errors import SerializationFailure

from coupon_clock.app import Application
from coupon_clock.domain.coupon_template import COUPON_TEMPLATES
from coupon_clock.domain.events import Ended, EndReason, StoredEvent, ValidityChanged
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.scheduling.due_result import Completed, Failed, NotDue, Retry
from coupon_clock.runtime import Runtime
from coupon_clock.testing import TestApplication
from examples import EVENING, MICROSECOND, MORNING, NOON, SHOP, a_template, change, ending_in, increase, terminate
from waiting import eventually

NO_GRACE = timedelta(0)


def ended(app: Application, template_id: UUID) -> Ended | None:
    last = app.history(SHOP, template_id)[-1].event
    return last if isinstance(last, Ended) else None


def without_endings(app: TestApplication) -> Runtime:
    """The same log, by a decider that prepares none."""
    return Runtime(app.database, replace(COUPON_TEMPLATES, prepares_ending=False), StoredEvent)


def alarm(app: Application, template_id: UUID) -> tuple[object, ...] | None:
    with app.database.connection() as connection:
        statement = "SELECT due_at, version, topic, ending FROM coupon_clock.alarm WHERE stream_id = %s"
        return connection.execute(statement, (template_id,)).fetchone()


# ── endings ──────────────────────────────────────────────────────────────────────────────────────


def test_every_append_stores_with_the_alarm_what_the_end_will_be(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.execute(increase(template.template_id, by=1))
    due_at, version, topic, ending = alarm(app, template.template_id)
    assert (due_at, version, topic) == (NOON, 2, "CouponTemplate.Ended")
    assert b'"reason":"expired"' in ending

    app.execute(terminate(template.template_id))
    assert alarm(app, template.template_id) is None


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "decided"])
def test_the_same_histories_end_with_the_same_events_either_way(app, prepared):
    plain, increased, moved, moved_back, terminated = (a_template(valid_until=NOON) for _ in range(5))
    runtime = app.runtime if prepared else without_endings(app)
    runtime.execute_many(
        [
            *(plain, increased, moved, moved_back, terminated),
            increase(increased.template_id, by=3),
            change(moved.template_id, until=EVENING),
            change(moved_back.template_id, until=EVENING),
            change(moved_back.template_id, until=NOON + MICROSECOND),
            terminate(terminated.template_id),
        ]
    )
    expected = {
        plain: Ended(SHOP, EndReason.EXPIRED, NOON),
        increased: Ended(SHOP, EndReason.EXPIRED, NOON),
        moved: Ended(SHOP, EndReason.EXPIRED, EVENING),
        moved_back: Ended(SHOP, EndReason.EXPIRED, NOON + MICROSECOND),
        terminated: Ended(SHOP, EndReason.TERMINATED, MORNING),
    }
    for at in (NOON, EVENING):
        app.clock.set(at)
        runtime.deadlines.handle_due([], "reconciler")
    assert {each.template_id: ended(app, each.template_id) for each in expected} == {
        each.template_id: event for each, event in expected.items()
    }


def test_an_ending_is_stored_at_the_end_and_never_before(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.clock.set(NOON - MICROSECOND)
    report = app.runtime.deadlines.handle_due([template.template_id], "message")
    assert (report.ended, report.results) == (0, [NotDue(NOON)])

    app.clock.set(NOON)
    report = app.runtime.deadlines.handle_due([template.template_id], "message")
    assert (report.ended, report.results) == (1, [Completed(ended_now=True)])
    (_, last) = app.history(SHOP, template.template_id)
    assert (last.recorded_at, last.cause, last.version) == (NOON, "message", 2)


def test_a_stream_that_another_writer_changed_is_decided_anew(app, database_url):
    """Its prepared ending follows another version than the stream has now."""
    template = a_template(valid_until=NOON)
    app.execute(template)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, %s, %s)",
            (
                template.template_id,
                "CouponTemplate.StockIncreased",
                b'{"type":"CouponTemplate.StockIncreased","shop_number":1,"by":5}',
            ),
        )
    app.clock.set(NOON)
    assert app.runtime.deadlines.handle_due([template.template_id], "message").results == [Completed(ended_now=True)]
    assert [envelope.version for envelope in app.history(SHOP, template.template_id)] == [1, 2, 3]


def test_an_end_that_another_writer_moved_is_not_stored_at_the_old_one(app, database_url):
    """Who knows nothing of alarms leaves one with an ending that is no longer right."""
    template = a_template(valid_until=NOON)
    app.execute(template)
    moved = ValidityChanged(SHOP, valid_from=MORNING, valid_until=EVENING)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, %s, %s)",
            (template.template_id, *app.store.encoded(moved)),
        )
    app.clock.set(NOON)
    assert app.runtime.deadlines.handle_due([], "reconciler").ended == 0
    assert ended(app, template.template_id) is None
    assert alarm(app, template.template_id)[0] == EVENING


def test_an_alarm_that_is_due_before_its_stream_is_corrected(app, database_url):
    template = a_template(valid_until=EVENING)
    app.execute(template)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE coupon_clock.alarm SET due_at = %s, ending = NULL", (NOON,))
    app.clock.set(NOON)
    assert app.runtime.deadlines.handle_due([], "reconciler").ended == 0
    assert alarm(app, template.template_id)[0] == EVENING
    assert ended(app, template.template_id) is None


def test_a_message_about_no_stream_is_a_failure_with_its_id(app):
    (result,) = app.runtime.deadlines.handle_due([unknown := uuid4()], "message").results
    assert isinstance(result, Failed)
    assert str(unknown) in str(result.error)


def test_many_that_cannot_be_ended_at_the_head_hide_none_behind_them(app, database_url):
    innocent = [a_template(valid_until=NOON) for _ in range(5)]
    app.execute_many(innocent)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO coupon_clock.alarm (stream_id, due_at) "
            "SELECT gen_random_uuid(), %s FROM generate_series(1, 5000)",
            (MORNING,),
        )
    app.clock.set(NOON)
    report = app.runtime.deadlines.handle_due([], "reconciler")
    assert report.ended == 5
    failures = len(report.failures)
    while report.failures:
        report = app.runtime.deadlines.handle_due([], "reconciler")
        failures += len(report.failures)
    assert failures == 5000, "each was looked at once, and is left alone"


# ── what cannot be handled ───────────────────────────────────────────────────────────────────────

UNREADABLE = (
    "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 't', 'not JSON')"
)


def stuck_until(app: Application, template_id: UUID) -> datetime | None:
    with app.database.connection() as connection:
        statement = "SELECT stuck_until FROM coupon_clock.alarm WHERE stream_id = %s"
        (until,) = connection.execute(statement, (template_id,)).fetchone()
    return until


@pytest.fixture
def unreadable(app, database_url) -> UUID:
    """A template that is due at NOON, and whose second event nobody can read."""
    template = a_template(valid_until=NOON)
    app.execute(template)
    with psycopg.connect(database_url) as connection:
        connection.execute(UNREADABLE, (template.template_id,))
    return template.template_id


def test_what_cannot_be_handled_is_left_alone_for_longer_and_longer(app, unreadable):
    pauses = []
    for late in (0, 1, 3, 10, 100, 1_000):
        app.clock.set(NOON + timedelta(seconds=late))
        assert len(app.runtime.deadlines.handle_due([], "reconciler").failures) == 1
        assert app.runtime.deadlines.handle_due([], "reconciler").failures == [], "not again at once"
        pauses.append((stuck_until(app, unreadable) - app.clock.now).total_seconds())
    assert pauses == [1, 1, 3, 10, 60, 60]


def test_what_is_left_alone_is_told_to_who_asks_for_it(app, unreadable):
    app.clock.set(NOON)
    app.runtime.deadlines.handle_due([], "reconciler")
    (result,) = app.runtime.deadlines.handle_due([unreadable], "message").results
    assert isinstance(result, Failed)
    assert "cannot be read by this version" in str(result.error)


def test_the_next_command_frees_what_was_left_alone(app, database_url):
    template = a_template(valid_until=NOON)
    app.execute(template)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE coupon_clock.alarm SET stuck_since = now(), stuck_until = now() + interval '1 day', stuck_by = 'x'"
        )
    app.execute(increase(template.template_id))
    app.clock.set(NOON)
    assert app.runtime.deadlines.handle_due([], "reconciler").ended == 1


def test_stuck_streams_are_logged_once_and_then_summed_up(app, database_url, caplog):
    templates = [a_template(valid_until=NOON) for _ in range(40)]
    app.execute_many(templates)
    with psycopg.connect(database_url) as connection:
        for template in templates:
            connection.execute(UNREADABLE, (template.template_id,))
    reconciler = app.runtime.deadlines.parts(MemoryBroker()).reconciler
    for late in range(1, 100):
        app.clock.set(NOON + timedelta(seconds=late))
        reconciler.run_once()
    told, asked = caplog.messages
    assert told.startswith("left alone for a while action=handle_due streams=40 ")
    assert asked.startswith("cannot be ended action=reconcile streams=40 ")


def test_short_streams_do_not_wait_for_long_ones_that_have_to_be_decided_too(app, database_url):
    long, short = ([a_template(valid_until=NOON) for _ in range(number)] for number in (12, 150))
    app.execute_many(long + short)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) "
            "SELECT id, version, 'CouponTemplate.StockIncreased', %s FROM unnest(%s::uuid[]) AS stream (id), "
            "generate_series(2, 3000) AS version",
            (
                b'{"type":"CouponTemplate.StockIncreased","shop_number":1,"by":1}',
                [template.template_id for template in long],
            ),
        )
    runtime = without_endings(app)
    app.clock.set(NOON)
    runtime.deadlines.handle_due([], "reconciler")
    assert all(ended(app, template.template_id) for template in short)

    while runtime.deadlines.handle_due([], "reconciler").ended:
        pass
    assert all(ended(app, template.template_id) for template in long)


# ── locks ────────────────────────────────────────────────────────────────────────────────────────


def test_a_template_that_a_caller_holds_makes_no_other_late_and_is_tried_again(app):
    held, free = a_template(valid_until=NOON), a_template(valid_until=NOON)
    app.execute_many([held, free])
    app.clock.set(NOON)
    with app.database.connect() as caller, caller.transaction():
        caller.execute("SELECT FROM coupon_clock.alarm WHERE stream_id = %s FOR UPDATE", (held.template_id,))
        report = app.runtime.deadlines.handle_due([held.template_id, free.template_id], "message")
        assert isinstance(report.results[0], Retry)
        assert report.results[1] == Completed(ended_now=True)
    assert app.runtime.deadlines.handle_due([held.template_id], "message").results == [Completed(ended_now=True)]


def test_a_writer_that_locks_no_alarm_makes_no_other_stream_late(app, database_url):
    held, free = a_template(valid_until=NOON), a_template(valid_until=NOON)
    app.execute_many([held, free])
    app.clock.set(NOON)
    with psycopg.connect(database_url) as foreign:
        foreign.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 2, 't', 's')",
            (held.template_id,),
        )
        assert app.runtime.deadlines.handle_due([], "reconciler").ended == 1
        assert ended(app, free.template_id) is not None
        foreign.rollback()
    assert app.runtime.deadlines.handle_due([], "reconciler").ended == 1


def test_a_decision_made_before_a_stream_was_due_is_not_stored_after(app):
    """An increase that was decided in time, and comes to the log once the end has come."""
    template = a_template(valid_until=NOON, stock=10)
    app.execute(template)
    append = app.store.append

    def after_the_end(*arguments, **options):
        app.clock.set(NOON)
        return append(*arguments, **options)

    app.clock.set(NOON - MICROSECOND)
    app.store.append = after_the_end
    (refused,) = app.execute_many([increase(template.template_id, by=1)])
    assert "is over since" in str(refused)
    assert len(app.history(SHOP, template.template_id)) == 1


@pytest.mark.parametrize("number", [1, 3])
def test_a_template_that_ends_before_it_could_be_stored_is_refused_as_one_that_is_over(app, number):
    append = app.store.append

    def after_the_end(*arguments, **options):
        app.clock.set(NOON)
        return append(*arguments, **options)

    app.clock.set(NOON - MICROSECOND)
    app.store.append = after_the_end
    templates = [a_template(valid_until=NOON) for _ in range(number)]
    refused = app.execute_many(templates)
    assert [type(each).__name__ for each in refused] == ["InvalidCommand"] * number
    assert "valid_until must be after now" in str(refused[0])


def test_a_callers_transaction_that_moves_an_end_cannot_commit_once_that_end_has_come(app):
    template = a_template(valid_until=NOON)
    app.execute(template)
    with app.database.connect() as caller:
        caller.execute("BEGIN")
        app.execute(change(template.template_id, until=EVENING), connection=caller)
        app.clock.set(NOON)
        with pytest.raises(SerializationFailure):
            caller.execute("COMMIT")
    app.run_due()
    assert ended(app, template.template_id) == Ended(SHOP, EndReason.EXPIRED, NOON)


def test_an_increase_leaves_the_indexes_of_the_alarms_alone(live, database_url):
    template = a_template(valid_from=datetime.now(UTC), valid_until=datetime.now(UTC) + timedelta(hours=1))
    live.execute(template)
    for _ in range(20):
        live.execute(increase(template.template_id, by=1))
    statement = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'alarm'"

    def counted() -> bool:
        with psycopg.connect(database_url) as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
            updates, hot = connection.execute(statement).fetchone()
        return updates >= 20 and updates == hot

    eventually(counted, within=20)


STREAMS, ROUNDS_S = 300, 6.0


def test_writers_callers_and_enders_on_common_streams_never_deadlock_and_end_each_stream_once(live, database_url):
    def ending_soon(n: int):
        end = datetime.now(UTC) + timedelta(seconds=1 + ROUNDS_S * n / STREAMS)
        return a_template(valid_from=datetime.now(UTC), valid_until=end)

    templates = [ending_soon(n) for n in range(STREAMS)]
    live.execute_many(templates)
    ids = [template.template_id for template in templates]
    stop = Signal()

    def append(seed: int) -> None:
        while not stop.is_set():
            for start in range(seed, STREAMS, 37):
                live.execute_many([increase(each, by=1) for each in ids[start : start + 20][:: 1 - 2 * (seed % 2)]])

    def hold() -> None:
        with live.database.connect() as caller:
            for each in ids * 1_000:
                if stop.is_set():
                    return
                with caller.transaction(force_rollback=True):
                    caller.execute("SELECT FROM coupon_clock.alarm WHERE stream_id = %s FOR UPDATE", (each,))
                    stop.wait(0.005)

    def move() -> None:
        while not stop.is_set():
            for each in ids[::7]:
                live.execute_many([change(each, until=datetime.now(UTC) + timedelta(seconds=1))])

    def end() -> None:
        while not stop.is_set():
            live.runtime.deadlines.handle_due([], "reconciler")

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(append, 0), threads.submit(append, 1), *map(threads.submit, (hold, move, end, end))]
        stop.wait(ROUNDS_S)
        stop.set()
        for each in running:
            each.result(60)
    eventually(lambda: not live.runtime.deadlines.handle_due([], "reconciler").ended and all_over(live, ids), within=30)

    with psycopg.connect(database_url) as connection:
        (deadlocks,) = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        late = connection.execute(
            "SELECT count(*) FROM coupon_clock.event WHERE topic = 'CouponTemplate.Ended' AND recorded_at < "
            "(convert_from(state, 'UTF8')::jsonb ->> 'ended_at')::timestamptz"
        ).fetchone()
    assert deadlocks == 0
    assert late == (0,)
    for each in ids:
        events = [envelope.event for envelope in live.history(SHOP, each)]
        assert [isinstance(event, Ended) for event in events] == [False] * (len(events) - 1) + [True]
    assert list(live.maintenance.verify_alarms()) == []


def all_over(app: Application, ids: list[UUID]) -> bool:
    return all(ended(app, each) is not None for each in ids)


def test_while_a_snapshot_makes_looks_slow_what_is_committed_late_is_still_found(live, database_url):
    """30,000 alarms came and went under the snapshot; one more becomes visible an hour after it was due."""
    live.execute(template := ending_in(3600))
    with psycopg.connect(database_url) as reader, psycopg.connect(database_url, autocommit=True) as writer:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM coupon_clock.alarm")
        writer.execute(
            "INSERT INTO coupon_clock.alarm (stream_id, due_at) SELECT gen_random_uuid(), now() - interval '10 s' "
            "FROM generate_series(1, 30000)"
        )
        writer.execute("DELETE FROM coupon_clock.alarm WHERE due_at < now()")
        with live.running(["reconciler"]):
            live.execute(other := ending_in(0.5))
            eventually(lambda: ended(live, other.template_id), within=20)
            writer.execute("ALTER TABLE coupon_clock.alarm DISABLE TRIGGER refuse_late_move")
            writer.execute(
                "UPDATE coupon_clock.alarm SET due_at = now() - interval '1 hour', ending = NULL WHERE stream_id = %s",
                (template.template_id,),
            )
            eventually(lambda: corrected(live, template.template_id), within=20)


def corrected(app: Application, template_id: UUID) -> bool:
    """Whether the wrong alarm was found: its stream is not due yet."""
    found = alarm(app, template_id)
    return found is not None and found[0] > datetime.now(UTC)  # type: ignore[operator]
