"""Connections that are open, and on which nothing comes any more: every wait has an end, and what was due is ended."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from time import monotonic

import psycopg
import pytest

from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import OutcomeUnknown
from coupon_clock.infrastructure.postgres import time_limit
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from coupon_clock.infrastructure.postgres.time_limit import LONG_STATEMENT_LIMIT_S, NoAnswer
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS
from coupon_clock.projections.rebuild.rebuild import rebuild
from coupon_clock.projections.rebuild.run import Step
from examples import SHOP, ending_in, increase
from silent_proxy import SilentProxy, silent_proxy
from waiting import eventually

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


def test_a_command_in_a_callers_transaction_ends_and_its_connection_is_closed(proxy, through_proxy):
    template = ending_in(3600)
    through_proxy.execute(template)
    with psycopg.connect(proxy.url) as caller, caller.transaction():
        through_proxy.execute(increase(template.template_id), connection=caller)
        proxy.fall_silent()
        began = monotonic()
        with pytest.raises(DatabaseUnavailable):
            through_proxy.execute(increase(template.template_id), connection=caller)
        assert monotonic() - began < LONGEST_S
        assert caller.closed


def test_a_rebuild_ends_and_the_next_one_works(proxy, through_proxy):
    templates = [ending_in(3600) for _ in range(50)]
    through_proxy.execute_many(templates)

    def fall_silent(step: Step) -> None:
        if step == "replay":
            proxy.fall_silent()

    began = monotonic()
    with pytest.raises(DatabaseUnavailable):
        rebuild(through_proxy.store, TEMPLATE_ROWS, after_step=fall_silent)
    assert monotonic() - began < 2 * LONGEST_S  # its own connection, and the one that gives the lease back

    assert through_proxy.maintenance.rebuild().events == 50
    assert list(through_proxy.maintenance.verify()) == []


def test_loops_stop_and_an_application_closes_in_time_where_new_connections_are_silent_too(proxy, through_proxy):
    through_proxy.execute(template := ending_in(1))
    given_open_connections(through_proxy, 10)
    with through_proxy.running():
        eventually(lambda: ended(through_proxy, template))
        proxy.stay_silent()
        with pytest.raises(DatabaseUnavailable):
            through_proxy.is_usable(SHOP, ending_in(3600).template_id)  # by now, every loop waits
        began = monotonic()
    through_proxy.close()
    assert monotonic() - began < LONGEST_S


# ── statements that may take long ────────────────────────────────────────────────────────────────


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "LOOK_AFTER_S", 0.3)
    monkeypatch.setattr(time_limit, "LOOK_AGAIN_S", 0.1)


def test_a_long_statement_goes_on_while_postgresql_works_on_it(through_proxy, looking_often):
    with through_proxy.database.connect(LONG_STATEMENT_LIMIT_S) as connection:
        assert connection.execute("SELECT 7 FROM pg_sleep(2)").fetchone() == (7,)


def test_a_long_statement_whose_answer_is_lost_ends_soon_after_its_work(proxy, through_proxy, looking_often):
    with through_proxy.database.connect(LONG_STATEMENT_LIMIT_S) as connection, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(connection.execute, "SELECT pg_sleep(2)")
        eventually(lambda: sleeping(through_proxy))
        proxy.fall_silent()
        with pytest.raises(NoAnswer, match="at work on it no longer"):
            waiting.result(LONGEST_S)


@pytest.mark.parametrize("silence", [SilentProxy.fall_silent, SilentProxy.stay_silent])
def test_a_long_statement_that_never_arrives_ends(proxy, through_proxy, looking_often, silence):
    with through_proxy.database.connect(LONG_STATEMENT_LIMIT_S) as connection:
        silence(proxy)
        with pytest.raises(NoAnswer):
            connection.execute("SELECT 1")


def test_a_long_copy_that_goes_silent_ends(proxy, through_proxy, looking_often):
    """The server works until nobody takes what it sends any more."""
    endless = "COPY (SELECT repeat('x', 1000), generate_series(1, 1000000000)) TO STDOUT"

    def read_on() -> None:
        connect = through_proxy.database.connect(LONG_STATEMENT_LIMIT_S)
        with connect as connection, connection.cursor().copy(endless) as copy:
            copy.read()
            proxy.stop_reading()
            while copy.read():
                pass

    with pytest.raises(NoAnswer):
        read_on()


def sleeping(app: Application) -> bool:
    with app.database.connection() as connection:
        asleep = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        return connection.execute(asleep).rowcount > 0


# ── what the above needs ─────────────────────────────────────────────────────────────────────────


def given_open_connections(app: Application, number: int) -> None:
    together = Barrier(number)

    def hold() -> None:
        with app.database.connection():
            together.wait(10)

    with ThreadPoolExecutor(number) as threads:
        assert [each.exception() for each in [threads.submit(hold) for _ in range(number)]] == [None] * number


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
