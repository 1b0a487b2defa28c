"""The servers fail under us: templates still end once, not early, and soon; nothing that was stored is lost."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from coupon_clock.app import Application, Outcome, Settings
from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.event_store.store import Cause
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from coupon_clock.local_servers.ports import free_block
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from coupon_clock.testing import throw_away_database
from examples import SHOP, ending_in, increase
from serving import Footprint, serving
from waiting import eventually

pytestmark = pytest.mark.xdist_group("servers of their own")

TOPIC, GROUP = "coupon-expiry-faults", "coupon-clock-faults"
SETTLED, ENOUGH = 8, 20
"""Failed calls, before what a process takes is measured first, and last. Each makes a client and lets it go."""
MOST_GROWTH = Footprint(threads=4, descriptors=4, megabytes=16)
"""One client's threads and descriptors may just be in use, and memory settles late."""


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
    with app.database.connection() as connection:
        return connection.execute("SELECT bool_and(armed_at IS NOT NULL) FROM coupon_clock.alarm").fetchone() == (True,)


def then_it_works_by_message_again(app: Application) -> None:
    """Whatever is tried meanwhile ends by the reconciler; in the end one ends by its message."""

    def one_does() -> bool:
        template = ending_in(3)
        app.execute(template)
        return ends_by_message(app, template.template_id)

    eventually(one_does, within=90)


def ends_by_message(app: Application, template_id: UUID) -> bool:
    eventually(lambda: cause_of_end(app, template_id))
    return cause_of_end(app, template_id) == "message"


def cause_of_end(app: Application, template_id: UUID) -> Cause | None:
    last = app.history(SHOP, template_id)[-1]
    return last.cause if isinstance(last.event, Ended) else None


def then_the_promise_holds(app: Application) -> None:
    assert app.maintenance.verify_promise().violations == []


@pytest.mark.rocketmq
def test_a_broker_killed_with_alarms_armed_loses_nothing_and_is_used_again(database_url, fragile_rocketmq):
    with running_on(database_url, fragile_rocketmq.endpoints) as app:
        during = [ending_in(6 + n / 20) for n in range(20)]
        after = [ending_in(60) for _ in range(20)]
        app.execute_many([*during, *after])
        eventually(lambda: all_armed(app))
        fragile_rocketmq.kill()

        eventually(lambda: all_ended(app, during))
        assert {end_of(app, template).cause for template in during} == {"reconciler"}
        fragile_rocketmq.start()
        then_it_works_by_message_again(app)
        then_the_promise_holds(app)


@pytest.mark.rocketmq
def test_a_wiped_broker_is_healed_by_rearming(database_url, fragile_rocketmq):
    with running_on(database_url, fragile_rocketmq.endpoints) as app:
        templates = [ending_in(60) for _ in range(20)]
        sent = messages_sent()
        app.execute_many(templates)
        eventually(lambda: all_armed(app) and messages_sent() == sent + 20)
        fragile_rocketmq.kill()
        shutil.rmtree(fragile_rocketmq.folder / "store", ignore_errors=True)
        fragile_rocketmq.start()
        fragile_rocketmq.provision(TOPIC, GROUP)

        assert app.maintenance.rearm() == 20
        eventually(lambda: all_armed(app))
        eventually(lambda: all_ended(app, templates), within=90)
        then_the_promise_holds(app)


def messages_sent() -> float:
    """By the relays of this process: alarms are armed when they are claimed."""
    return REGISTRY.get_sample_value("coupon_clock_work_total", {"role": "relay", "what": "armed"}) or 0.0


@pytest.mark.rocketmq
def test_with_a_broker_that_was_never_there_commands_work_and_templates_end(database_url):
    nobody = f"127.0.0.1:{free_block(1)}"
    with running_on(database_url, nobody) as app:
        templates = [ending_in(1 + n / 20) for n in range(20)]
        assert all(isinstance(outcome, Outcome) for outcome in app.execute_many(templates))
        eventually(lambda: all_ended(app, templates))
        then_the_promise_holds(app)


@pytest.mark.rocketmq
def test_a_process_whose_broker_is_away_at_its_start_serves_and_grows_in_nothing_and_recovers_by_itself(
    request, database_url, fragile_rocketmq, tmp_path
):
    endpoints = fragile_rocketmq.endpoints
    fragile_rocketmq.kill()
    settings = Settings.load(
        database_url=database_url, rocketmq_endpoints=endpoints, rocketmq_topic=TOPIC, rocketmq_group=GROUP, lead=2
    )
    with Application.open(settings) as app, serving(settings, tmp_path / "log") as process:
        eventually(lambda: process.failed_ticks() >= SETTLED)
        assert process.says("RocketMQ cannot be used")
        before = process.footprint()

        over_at = monotonic() + 60 * request.config.getoption("--long-outage")
        while monotonic() < over_at or process.failed_ticks() < ENOUGH:
            template_id = process.create_template(0.5)
            eventually(lambda template_id=template_id: cause_of_end(app, template_id) == "reconciler")
            assert app.maintenance.verify_promise().overdue == []
        after = process.footprint()
        print(
            before,
            after,
            f"{process.failed_ticks()} failed calls",
            app.maintenance.verify_promise().lateness["reconciler"].worst,
            sep="\n",
        )
        assert after.grew(before).is_within(MOST_GROWTH)

        fragile_rocketmq.start()
        eventually(lambda: ends_by_message(app, process.create_template(3)), within=90)
        assert not app.maintenance.verify_promise().found_something


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_postgresql_restarted_under_load_keeps_what_was_answered_and_nothing_twice(fragile_postgres, how):
    with throw_away_database(fragile_postgres.url) as database_url, running_on(database_url, "") as app:
        template = ending_in(60, stock=1)
        app.execute(template)
        ending = [ending_in(2 + n / 20) for n in range(40)]
        app.execute_many(ending)
        stored: list[int] = []
        refused: list[CouponClockError] = []

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
