"""Connections that are open, and on which nothing comes any more: every wait has an end, and what was due is ended."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import monotonic

import psycopg
import pytest

from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import OutcomeUnknown
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from deadlines import eventually
from examples import ending_in, increase
from silent_proxy import SilentProxy, silent_proxy

LONGEST_S = 20.0
"""A statement's limit of 10 s, 5 s more for the answer to its cancellation, and some for a busy machine."""


@pytest.fixture
def proxy(database_url: str) -> Iterator[SilentProxy]:
    with silent_proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(proxy: SilentProxy) -> Iterator[Application]:
    with Application.open(Settings.load(database_url=proxy.url)) as app:
        yield app


def test_every_call_ends_and_the_next_one_works(proxy, through_proxy):
    template = ending_in(3600)
    through_proxy.execute(template)
    shop, template_id = template.shop_number, template.template_id
    calls: list[Callable[[], object]] = [
        lambda: through_proxy.is_usable(shop, template_id),
        lambda: through_proxy.find(shop, template_id),
        lambda: through_proxy.history(shop, template_id),
        lambda: through_proxy.execute(increase(template_id)),
        lambda: through_proxy.execute_many([ending_in(3600)]),
    ]
    given_open_connections(through_proxy, len(calls))

    proxy.fall_silent()
    began = monotonic()
    with ThreadPoolExecutor(len(calls)) as threads:
        outcomes = [each.exception() or each.result() for each in [threads.submit(call) for call in calls]]

    assert monotonic() - began < LONGEST_S
    assert [type(outcome) for outcome in outcomes[:4]] == [DatabaseUnavailable] * 4
    assert [type(outcome) for outcome in outcomes[4]] == [DatabaseUnavailable]
    assert through_proxy.is_usable(shop, template_id)
    assert through_proxy.execute(increase(template_id)).version == 2


def test_an_append_whose_answer_never_comes_is_unknown_and_its_repetition_has_no_second_effect(
    proxy, through_proxy, database_url
):
    template = ending_in(3600)
    through_proxy.execute(template)
    command = increase(template.template_id)
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as thread:
        holder.execute("SELECT FROM coupon_clock.alarm FOR UPDATE")
        outcome = thread.submit(through_proxy.execute, command)
        eventually(lambda: somebody_waits(through_proxy))
        proxy.fall_silent()
        assert isinstance(outcome.exception(LONGEST_S), OutcomeUnknown)

    assert through_proxy.execute(command).version == 2


def test_templates_end_within_20_s_and_the_loops_stop_in_time(proxy, through_proxy):
    templates = [ending_in(2) for _ in range(20)]
    through_proxy.execute_many(templates)
    with through_proxy.running():
        eventually(lambda: through_proxy.database._pool.get_stats()["pool_size"] > 2)
        proxy.fall_silent()
        began = monotonic()
        eventually(lambda: all(ended(through_proxy, each) for each in templates), within=2 + LONGEST_S)

        proxy.fall_silent()
        began = monotonic()
    assert monotonic() - began < LONGEST_S


def test_a_follower_goes_on(proxy, through_proxy):
    seen: list[object] = []
    stop = Event()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(through_proxy.follow, "mails", seen.extend, stop=stop)
        through_proxy.execute(ending_in(3600))
        eventually(lambda: len(seen) == 1)
        proxy.fall_silent()
        eventually(lambda: succeeds(lambda: through_proxy.execute(ending_in(3600))), within=LONGEST_S)
        eventually(lambda: len(seen) >= 2, within=LONGEST_S)
        stop.set()
        following.result(LONGEST_S)


def given_open_connections(app: Application, number: int) -> None:
    together = Event()

    def hold() -> None:
        with app.database.connection():
            together.wait(10)

    with ThreadPoolExecutor(number) as threads:
        for _ in range(number):
            threads.submit(hold)
        eventually(lambda: app.database._pool.get_stats()["pool_available"] == 0)
        together.set()


def succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except (DatabaseUnavailable, OutcomeUnknown):
        return False
    return True


def ended(app: Application, template: object) -> bool:
    try:
        return len(app.history(template.shop_number, template.template_id)) == 2  # type: ignore[attr-defined]
    except DatabaseUnavailable:
        return False


def somebody_waits(app: Application) -> bool:
    with app.database.connection() as connection:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return connection.execute(waiting).rowcount > 0
