"""Other code reacts to events: at least once, in order, from a durable checkpoint."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from threading import Event, Thread

import psycopg
import pytest

from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import InvalidArgument
from coupon_clock.domain.events import Created, StockIncreased
from examples import a_template, ending_in, increase
from history import run_sql, value
from waiting import eventually


@contextmanager
def following(app: Application, name: str, handler, **given) -> Iterator[Thread]:
    stop = Event()
    thread = Thread(target=app.follow, args=(name, handler), kwargs=given | {"stop": stop}, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_every_event_comes_in_order_with_its_stream(live):
    template = ending_in(3600)
    outcomes = live.execute_many([template, increase(template.template_id), ending_in(3600)])
    seen = []
    with following(live, "cache", seen.extend):
        eventually(lambda: len(seen) == 3)

    assert [envelope.position for envelope in seen] == sorted(outcome.position for outcome in outcomes)
    by_stream = [envelope.event for envelope in seen if envelope.stream_id == template.template_id]
    assert [type(event) for event in by_stream] == [Created, StockIncreased]


def test_it_goes_on_where_it_stopped(live):
    live.execute(ending_in(3600))
    seen = []
    with following(live, "cache", seen.extend):
        eventually(lambda: len(seen) == 1)
    live.execute(ending_in(3600))
    with following(live, "cache", seen.extend):
        eventually(lambda: len(seen) == 2)

    assert len({envelope.position for envelope in seen}) == 2


def test_a_batch_whose_handler_raises_is_repeated_whole_and_never_skipped(live):
    live.execute_many([ending_in(3600) for _ in range(5)])
    tries = []

    def handler(envelopes) -> None:
        tries.append([envelope.position for envelope in envelopes])
        if len(tries) < 3:
            raise RuntimeError("not now")

    with following(live, "cache", handler):
        eventually(lambda: len(tries) == 3)
    assert tries == [[1, 2, 3, 4, 5]] * 3


def test_from_now_on_leaves_out_what_was_before(live):
    live.execute(ending_in(3600))
    seen = []
    with following(live, "cache", seen.extend, start="now"):
        eventually(lambda: checkpoint(live, "cache") == 1)
        outcome = live.execute(ending_in(3600))
        eventually(lambda: seen)
    assert [envelope.position for envelope in seen] == [outcome.position]


def test_a_second_one_with_the_same_name_waits_until_the_first_stops(live, settings):
    first, second = [], []
    with Application.open(settings) as other:
        with following(live, "cache", first.extend):
            live.execute(ending_in(3600))
            eventually(lambda: len(first) == 1)
            with following(other, "cache", second.extend):
                live.execute(ending_in(3600))
                eventually(lambda: len(first) == 2)
            assert second == []
        with following(other, "cache", second.extend):
            live.execute(ending_in(3600))
            eventually(lambda: len(second) == 1)
    assert len(first) == 2


def test_closing_the_application_stops_it(settings):
    with Application.open(settings) as app:
        thread = Thread(target=app.follow, args=("cache", list.copy), daemon=True)
        thread.start()
        app.execute(a_template(valid_until=ending_in(60).valid_until))
        eventually(lambda: checkpoint(app, "cache") == 1)
    thread.join(timeout=30)
    assert not thread.is_alive()


def checkpoint(app: Application, name: str) -> int:
    with app.database.connection() as connection:
        row = connection.execute("SELECT position FROM coupon_clock.checkpoint WHERE name = %s", (name,)).fetchone()
    return row[0] if row else -1


def test_a_follower_with_a_stop_of_its_own_ends_when_the_application_closes(settings):
    with ThreadPoolExecutor(1) as thread, Application.open(settings) as app:
        app.execute(ending_in(3600))
        seen: list[object] = []
        following = thread.submit(app.follow, "mails", seen.extend, stop=Event())
        eventually(lambda: seen)
        app.close()
        following.result(20)


# ── wrong arguments ──────────────────────────────────────────────────────────────────────────────

WRONG = [
    ({"name": name}, "name")
    for name in ("", " ", "a ", "\0", "a\0b", "a\nb", "\u200b", "\ud800", "x" * 101, None, 1, b"mails", ["mails"])
]
WRONG += [({"batch": batch}, "batch") for batch in (0, -1, 1.5, True, "500", None, 10_001, 2**70, float("nan"))]
WRONG += [({"start": start}, "start") for start in (-1, 1.5, True, "Now", "0", None, 2**63, float("inf"), b"now")]
WRONG += [({"handler": "print"}, "handler"), ({"handler": None}, "handler"), ({"stop": True}, "stop")]
WRONG += [({"transactional": 1}, "transactional"), ({"transactional": None}, "transactional")]


@pytest.mark.parametrize(("given", "field"), WRONG)
def test_a_wrong_argument_is_refused_by_name_and_leaves_nothing(live, given, field):
    arguments = {"name": "mails", "handler": list.copy} | given
    with pytest.raises(InvalidArgument) as refused:
        live.follow(arguments.pop("name"), arguments.pop("handler"), **arguments)
    assert [problem.field for problem in refused.value.problems] == [field]
    assert checkpoint(live, "mails") == -1


def test_all_wrong_arguments_are_named_at_once(live):
    with pytest.raises(InvalidArgument) as refused:
        live.follow("", None, batch=0, start="Now")
    assert [problem.field for problem in refused.value.problems] == ["name", "handler", "batch", "start"]


@pytest.mark.parametrize("name", ["coupon_template", "coupon_template_shadow", "shop_month", "shop_month_shadow"])
def test_the_names_of_projections_are_refused(live, name):
    with pytest.raises(InvalidArgument, match="projection"):
        live.follow(name, list.copy)


def test_the_name_of_a_projection_that_only_another_process_has_is_refused_too(live, database_url):
    run_sql(
        database_url, "INSERT INTO coupon_clock.checkpoint (name, kind, position) VALUES ('sales', 'projection', 0)"
    )
    with pytest.raises(InvalidArgument, match="name is the name of a projection already"):
        live.follow("sales", list.copy)


@pytest.mark.parametrize("known", [False, True])
def test_a_start_beyond_the_log_is_refused_and_harms_nobody(live, settings, known):
    outcome = live.execute(ending_in(3600))
    if known:
        with following(live, "mails", list.copy):
            eventually(lambda: checkpoint(live, "mails") == 1)
    with pytest.raises(InvalidArgument, match="start must not be beyond the end of the log, 1"):
        live.follow("mails", list.copy, start=outcome.position + 1)

    with Application.open(settings) as other:
        other.execute(ending_in(3600))
        seen: list[object] = []
        with following(other, "cache", seen.extend, start=outcome.position):
            eventually(lambda: len(seen) == 1)


# ── together with the handler's own rows ─────────────────────────────────────────────────────────


@pytest.fixture
def mails(database_url: str) -> str:
    """A table of the user's own, without any constraint that would hide a second effect."""
    run_sql(database_url, "CREATE TABLE mail (position bigint)")
    return "SELECT array_agg(position ORDER BY position) FROM mail"


def send_mails(envelopes, connection) -> None:
    connection.cursor().executemany("INSERT INTO mail VALUES (%s)", [(each.position,) for each in envelopes])


def test_what_a_transactional_handler_writes_is_undone_with_a_batch_that_fails(live, database_url, mails):
    live.execute_many([ending_in(3600) for _ in range(5)])
    failures = iter([True, True, False])

    def handler(envelopes, connection) -> None:
        send_mails(envelopes, connection)
        if next(failures, False):
            raise RuntimeError("not now")

    with following(live, "mails", handler, batch=5, transactional=True):
        eventually(lambda: checkpoint(live, "mails") == 5)
    assert value(database_url, mails) == [1, 2, 3, 4, 5]


def test_a_transactional_handler_may_give_commands_in_its_transaction(live, database_url):
    template = ending_in(3600)
    live.execute(template)

    def handler(envelopes, connection) -> None:
        if any(isinstance(envelope.event, Created) for envelope in envelopes):
            live.execute(increase(template.template_id), connection=connection)

    with following(live, "restock", handler, transactional=True):
        eventually(lambda: checkpoint(live, "restock") == 2)
    assert [type(each.event) for each in live.history(1, template.template_id)] == [Created, StockIncreased]


def follow_until_killed(url: str) -> None:
    """Kills itself between its rows and the commit, in every third batch."""
    batches = iter(range(1, 1_000))

    def handler(envelopes, connection) -> None:
        send_mails(envelopes, connection)
        if next(batches) % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with Application.open(Settings.load(database_url=url)) as app:
        app.follow("mails", handler, batch=7, transactional=True)


def test_each_event_has_one_effect_whenever_a_transactional_follower_is_killed(live, database_url, mails):
    events = len(live.execute_many([ending_in(3600) for _ in range(50)]))
    spawned = get_context("spawn")
    for _ in range(4):
        process = spawned.Process(target=follow_until_killed, args=(database_url,), daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        run_sql(database_url, "DELETE FROM coupon_clock.lease")  # instead of waiting until it is seen to be stale
        if checkpoint(live, "mails") >= events - 14:
            break
    with following(live, "mails", send_mails, transactional=True):
        eventually(lambda: checkpoint(live, "mails") == events)
    assert value(database_url, mails) == list(range(1, events + 1))


def test_a_transactional_handler_that_breaks_its_connection_is_repeated(live, database_url, mails):
    live.execute(ending_in(3600))
    tries = []

    def handler(envelopes, connection) -> None:
        send_mails(envelopes, connection)
        tries.append(envelopes)
        if len(tries) == 1:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    with following(live, "mails", handler, transactional=True):
        eventually(lambda: checkpoint(live, "mails") == 1)
    assert (len(tries), value(database_url, mails)) == (2, [1])
