"""Other code reacts to events: at least once, in order, from a durable checkpoint."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread

from coupon_clock.app import Application
from coupon_clock.domain.events import Created, StockIncreased
from deadlines import eventually
from examples import a_template, ending_in, increase


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
