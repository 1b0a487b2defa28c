"""The servers fail under us: templates still end once, not early, and soon; nothing that was stored is lost."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest

from coupon_clock.app import Application, Outcome, Settings
from coupon_clock.domain.errors import CouponError, OutcomeUnknown
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.database import DatabaseUnavailable
from coupon_clock.infrastructure.local.ports import free_block
from coupon_clock.infrastructure.local.postgres import LocalPostgres
from coupon_clock.infrastructure.local.rocketmq_server import LocalRocketMQ
from coupon_clock.testing import throw_away_database
from deadlines import eventually
from examples import SHOP, ending_in, increase

TOPIC, GROUP = "coupon-expiry-faults", "coupon-clock-faults"


@pytest.fixture(scope="module")
def fragile_rocketmq(server_folder: Path) -> Iterator[LocalRocketMQ]:
    """One of this module's own, to be killed."""
    server = LocalRocketMQ(server_folder / "fragile")
    server.start()
    server.provision(TOPIC, GROUP)
    yield server
    server.kill()


@pytest.fixture
def fragile_postgres() -> Iterator[LocalPostgres]:
    """One of this test's own, to be killed."""
    with TemporaryDirectory(prefix="coupon-clock-tests-", ignore_cleanup_errors=True) as folder:
        server = LocalPostgres(Path(folder) / "postgres")
        server.start()
        yield server
        server.kill()


@contextmanager
def running_on(database_url: str, endpoints: str, **settings: Any) -> Iterator[Application]:
    given = {"rocketmq_endpoints": endpoints, "rocketmq_topic": TOPIC, "rocketmq_group": GROUP} if endpoints else {}
    with Application.open(Settings.load(database_url=database_url, lead=2, **given, **settings)) as app, app.running():
        yield app


def end_of(app: Application, template) -> Any:
    last = app.history(SHOP, template.template_id)[-1]
    return last if isinstance(last.event, Ended) else None


def all_ended(app: Application, templates) -> bool:
    return all(end_of(app, template) for template in templates)


def all_armed(app: Application) -> bool:
    with app.pool.connection() as connection:
        return connection.execute("SELECT bool_and(armed_at IS NOT NULL) FROM alarm").fetchone() == (True,)


def then_it_works_by_message_again(app: Application) -> None:
    """Whatever is tried meanwhile ends by the sweep; in the end one ends by its message."""

    def ends_by_message() -> bool:
        template = ending_in(3)
        app.execute(template)
        eventually(lambda: end_of(app, template))
        return bool(end_of(app, template).cause == "message")

    eventually(ends_by_message, within=90)


def then_the_promise_holds(app: Application) -> None:
    assert app.check().violations == []


@pytest.mark.rocketmq
def test_a_broker_killed_with_alarms_armed_loses_nothing_and_is_used_again(database_url, fragile_rocketmq):
    with running_on(database_url, fragile_rocketmq.endpoints) as app:
        during = [ending_in(6 + n / 20) for n in range(20)]
        after = [ending_in(60) for _ in range(20)]
        app.execute_many([*during, *after])
        eventually(lambda: all_armed(app))
        fragile_rocketmq.kill()

        eventually(lambda: all_ended(app, during))
        assert {end_of(app, template).cause for template in during} == {"sweep"}
        fragile_rocketmq.start()
        then_it_works_by_message_again(app)
        then_the_promise_holds(app)


@pytest.mark.rocketmq
def test_a_wiped_broker_is_healed_by_rearming(database_url, fragile_rocketmq):
    with running_on(database_url, fragile_rocketmq.endpoints) as app:
        templates = [ending_in(30) for _ in range(20)]
        app.execute_many(templates)
        eventually(lambda: all_armed(app))
        fragile_rocketmq.kill()
        shutil.rmtree(fragile_rocketmq.folder / "store", ignore_errors=True)
        fragile_rocketmq.start()
        fragile_rocketmq.provision(TOPIC, GROUP)

        assert app.rearm(lambda done: None) == 20
        eventually(lambda: all_armed(app))
        eventually(lambda: all_ended(app, templates), within=60)
        then_the_promise_holds(app)


@pytest.mark.rocketmq
def test_with_a_broker_that_was_never_there_commands_work_and_templates_end(database_url):
    nobody = f"127.0.0.1:{free_block(1)}"
    with running_on(database_url, nobody) as app:
        templates = [ending_in(1 + n / 20) for n in range(20)]
        assert all(isinstance(outcome, Outcome) for outcome in app.execute_many(templates))
        eventually(lambda: all_ended(app, templates))
        then_the_promise_holds(app)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_postgresql_restarted_under_load_keeps_what_was_answered_and_nothing_twice(fragile_postgres, how):
    with throw_away_database(fragile_postgres.url) as database_url, running_on(database_url, "") as app:
        template = ending_in(60, stock=1)
        app.execute(template)
        ending = [ending_in(2 + n / 20) for n in range(40)]
        app.execute_many(ending)
        stored: list[int] = []
        refused: list[CouponError] = []

        def increase_until(count: int) -> None:
            while len(stored) < count:
                command = increase(template.template_id, by=1)
                while command is not None:
                    try:
                        stored.append(app.execute(command).version)
                        command = None
                    except (DatabaseUnavailable, OutcomeUnknown) as error:
                        refused.append(error)

        loader = Thread(target=increase_until, args=(400,))
        loader.start()
        eventually(lambda: len(stored) > 100)
        getattr(fragile_postgres, how)()
        eventually(lambda: refused)
        fragile_postgres.start()
        loader.join(timeout=60)

        assert sorted(stored) == list(range(2, len(stored) + 2))
        eventually(lambda: all_ended(app, ending))
        then_the_promise_holds(app)
        assert all(increase.event.by == 1 for increase in app.history(SHOP, template.template_id)[1:])
