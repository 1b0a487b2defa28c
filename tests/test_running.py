"""All loops together, on the in-process broker and on a real RocketMQ: templates end once, on time, whatever fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from coupon_clock.app import Application, Settings
from coupon_clock.deadlines import broker_for
from coupon_clock.domain.events import Ended, EndReason
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from examples import SHOP, change, ending_in, terminate
from waiting import eventually

KILLED_AFTER = Path(__file__).parent / "killed_after.py"
TOPIC, GROUP = "coupon-expiry-running", "coupon-clock-running"


@pytest.fixture(params=["memory", pytest.param("rocketmq", marks=pytest.mark.rocketmq)])
def broker_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "memory":
        return {}
    rocketmq = request.getfixturevalue("rocketmq")
    rocketmq.provision(TOPIC, GROUP)
    return {"rocketmq_endpoints": rocketmq.endpoints, "rocketmq_topic": TOPIC, "rocketmq_group": GROUP}


@pytest.fixture
def live(database_url: str, broker_settings: dict[str, str]) -> Iterator[Application]:
    settings = Settings.load(database_url=database_url, lead=2, **broker_settings)
    with Application.open(settings) as app:
        yield app


@contextmanager
def another_process(app: Application, *roles: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`coupon-clock run` with the same settings."""
    process = started(app, "-m", "coupon_clock.cli", "run", *roles)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def started(app: Application, *arguments: str) -> "subprocess.Popen[bytes]":
    settings = app.settings
    variables = {
        "COUPON_CLOCK_DATABASE_URL": settings.database(),
        "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": settings.rocketmq_endpoints,
        "COUPON_CLOCK_ROCKETMQ_TOPIC": settings.rocketmq_topic,
        "COUPON_CLOCK_ROCKETMQ_GROUP": settings.rocketmq_group,
        "COUPON_CLOCK_LEAD": "2",
    }
    return subprocess.Popen([sys.executable, *arguments], env=os.environ | variables)


def ends(app: Application, template) -> list[Ended]:
    return [e.event for e in app.history(SHOP, template.template_id) if isinstance(e.event, Ended)]


def then_all_ended_once_and_not_early(app: Application, templates) -> None:
    for template in templates:
        *_, last = history = app.history(SHOP, template.template_id)
        assert [e.event for e in history if isinstance(e.event, Ended)] == [last.event]
        assert last.event.reason == EndReason.EXPIRED
        assert last.recorded_at >= last.event.ended_at
    assert list(app.maintenance.verify()) == []
    assert app.maintenance.verify_promise().violations == []


def wait_until_all_ended(app: Application, templates) -> None:
    eventually(lambda: all(ends(app, template) for template in templates))
    last = max(app.history(SHOP, template.template_id)[-1].position for template in templates)
    app.find(SHOP, templates[0].template_id, at_least=last, timeout=30)


def armed(app: Application, template) -> bool:
    with app.database.connection() as connection:
        statement = "SELECT armed_at IS NOT NULL OR leased_until > due_at FROM coupon_clock.alarm WHERE stream_id = %s"
        row = connection.execute(statement, (template.template_id,)).fetchone()
    return bool(row and row[0])


def test_templates_end_at_their_ends_many_at_one_instant(live):
    templates = [ending_in(1 + n / 20) for n in range(20)]
    instant = ending_in(2.5).valid_until
    templates += [ending_in(3, valid_until=instant) for _ in range(200)]
    with live.running():
        live.execute_many(templates)
        wait_until_all_ended(live, templates)
        then_all_ended_once_and_not_early(live, templates)


def test_ends_moved_after_their_messages_were_sent_are_kept(live):
    later, earlier, terminated = ending_in(4), ending_in(3600), ending_in(3)
    with live.running():
        live.execute_many([later, earlier, terminated])
        eventually(lambda: armed(live, later) and armed(live, terminated))
        live.execute(change(later.template_id, until=later.valid_until + timedelta(seconds=2)))
        live.execute(change(earlier.template_id, until=ending_in(2).valid_until))
        live.execute(terminate(terminated.template_id))

        eventually(lambda: ends(live, later) and ends(live, earlier))
    assert ends(live, later)[0].ended_at == later.valid_until + timedelta(seconds=2)
    assert ends(live, earlier)[0].ended_at < earlier.valid_until
    assert [end.reason for end in ends(live, terminated)] == [EndReason.TERMINATED]


def test_a_template_created_with_its_end_within_the_lead_time_still_ends_by_its_message(live):
    with live.running():
        first = ending_in(1.5)
        live.execute(first)
        eventually(lambda: ends(live, first))
    then_all_ended_once_and_not_early(live, [first])


@pytest.mark.rocketmq
@pytest.mark.parametrize("broker_settings", ["rocketmq"], indirect=True)
def test_messages_sent_twice_stale_foreign_or_unreadable_end_nothing_twice(live):
    template, moved = ending_in(4), ending_in(3)
    broker = broker_for(live.settings)
    with live.running():
        live.execute_many([template, moved])
        eventually(lambda: armed(live, template) and armed(live, moved))
        live.execute(change(moved.template_id, until=template.valid_until))
        broker.publish([ExpiryDue(template.template_id, template.valid_until)] * 3, timedelta(0))
        broker.publish([unknown := ExpiryDue(uuid4(), template.valid_until)], timedelta(0))
        eventually(lambda: ends(live, template) and ends(live, moved))
        eventually(lambda: to_wire(unknown) in [rejected.body for rejected in live.maintenance.rejected(100)])
    broker.close()
    assert len(ends(live, template)) == len(ends(live, moved)) == 1


def test_a_process_killed_hard_with_messages_in_hand_loses_nothing(live):
    templates = [ending_in(3) for _ in range(50)]
    live.execute_many(templates)
    with another_process(live, "--role", "relay", "--role", "consumer") as process:
        eventually(lambda: all(armed(live, template) for template in templates))
        process.send_signal(signal.SIGKILL)
        process.wait()
    with live.running():
        wait_until_all_ended(live, templates)
        then_all_ended_once_and_not_early(live, templates)


def test_two_copies_of_every_role_end_everything_once(live):
    templates = [ending_in(3 + n / 50) for n in range(100)]
    with another_process(live), another_process(live), live.running():
        live.execute_many(templates)
        wait_until_all_ended(live, templates)
        then_all_ended_once_and_not_early(live, templates)


def test_the_reconciler_alone_ends_everything(live):
    templates = [ending_in(0.5) for _ in range(50)]
    live.execute_many(templates)
    with live.running(["reconciler", "projector"]):
        wait_until_all_ended(live, templates)
    then_all_ended_once_and_not_early(live, templates)


def test_a_stopped_process_gives_back_what_its_broker_would_forget(live):
    template = ending_in(3600, valid_until=ending_in(20).valid_until)
    with live.running():
        live.execute(template)
        eventually(lambda: armed(live, template))
    forgetting = not live.settings.rocketmq_endpoints
    assert armed(live, template) is not forgetting


@pytest.mark.rocketmq
@pytest.mark.parametrize("broker_settings", ["rocketmq"], indirect=True)
def test_a_consumer_that_stops_leaves_no_end_to_the_reconciler(database_url, broker_settings):
    """It ends what is due soon, and gives the rest back to the one that comes after it."""
    settings = Settings.load(database_url=database_url, **broker_settings)
    later = [ending_in(13) for _ in range(20)]
    with Application.open(settings) as first, Application.open(settings) as other:
        with other.running(["relay", "reconciler"]):
            with first.running(["consumer"]):
                other.execute_many(later)
                eventually(lambda: held() == 20)
                other.execute_many(soon := [ending_in(3) for _ in range(20)])
                eventually(lambda: held() == 40 or all(ends(other, template) for template in soon))
            assert all(ends(other, template) for template in soon)
            with first.running(["consumer"]):
                eventually(lambda: all(ends(other, template) for template in later))
        causes = {other.history(SHOP, template.template_id)[-1].cause for template in [*soon, *later]}
    assert causes == {"message"}


def held() -> float:
    return REGISTRY.get_sample_value("coupon_clock_held_messages") or 0.0


# Without a projector, whose lease another process takes over only after 15 s.
ENDING_ROLES = "relay,consumer,reconciler"


@pytest.mark.parametrize(
    ("step", "roles"),
    [
        ("claiming", ENDING_ROLES),
        ("publishing", ENDING_ROLES),
        ("receiving", ENDING_ROLES),
        ("appending the end", ENDING_ROLES),
        ("acknowledging", ENDING_ROLES),
        ("reconciling", "reconciler"),
    ],
)
def test_a_process_killed_right_after_any_step_leaves_nothing_undone(live, step, roles):
    killed_after_then_all_ended(live, step, roles)


@pytest.mark.parametrize("broker_settings", ["memory"], indirect=True)
def test_a_projector_killed_after_writing_rows_leaves_the_rows_to_another(live):
    killed_after_then_all_ended(live, "writing rows", "projector")


def killed_after_then_all_ended(live: Application, step: str, roles: str) -> None:
    templates = [ending_in(2) for _ in range(20)]
    live.execute_many(templates)
    process = started(live, str(KILLED_AFTER), step, roles)
    assert process.wait(timeout=60) == -signal.SIGKILL

    with live.running():
        wait_until_all_ended(live, templates)
        then_all_ended_once_and_not_early(live, templates)


@pytest.mark.parametrize("broker_settings", ["memory"], indirect=True)
def test_a_stopped_projector_is_replaced_and_harmless_when_it_wakes(live):
    with another_process(live, "--role", "projector") as process:
        first = live.execute(ending_in(3600))
        live.find(SHOP, first.template_id, at_least=first.position, timeout=30)
        process.send_signal(signal.SIGSTOP)

        with live.running(["projector"]):
            second = live.execute(ending_in(3600))
            live.find(SHOP, second.template_id, at_least=second.position, timeout=30)
            process.send_signal(signal.SIGCONT)
            third = live.execute(ending_in(3600))
            live.find(SHOP, third.template_id, at_least=third.position, timeout=30)
    assert list(live.maintenance.verify()) == []
