"""The stage on an application whose clock is turned by hand: what a turn sends, and what it waits for."""

from datetime import timedelta

import pytest

from actions import PATIENCE, MessageNotSent, OnStage, Stage
from coupon_clock.app import Application
from coupon_clock.domain.events import EndReason
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import from_wire
from examples import MORNING
from scenario import MoveEnd, Planned, SendAgain, Terminate, Turn

END = MORNING + timedelta(seconds=10)
TURN = MORNING + timedelta(seconds=2)
BEFORE = TURN - timedelta(microseconds=1)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def staged(app: Application, broker: MemoryBroker, turn: Turn) -> tuple[Stage, OnStage]:
    stage = Stage(app, broker, MORNING)
    stage.create([Planned(1, "Winter coats", ends=10, turn=turn)])
    (template,) = stage.templates
    return stage, template


def test_terminates_when_its_time_has_come(app, broker):
    stage, template = staged(app, broker, Terminate(at=2))

    stage.tick(BEFORE, {})
    assert [e.version for e in stage.histories()[template.template_id]] == [1]

    stage.tick(TURN, {})
    assert stage.histories()[template.template_id][-1].event.reason is EndReason.TERMINATED
    assert template.twist == "terminated"


def test_moves_an_end_only_after_its_message_was_sent(app, broker):
    stage, template = staged(app, broker, MoveEnd(at=2, to=15))

    stage.tick(TURN, {})
    assert template.ends_at == END

    stage.tick(TURN, {template.template_id: END})
    assert template.ends_at == stage.last_end() == MORNING + timedelta(seconds=15)
    assert template.twist == "moved later"


def test_moves_an_end_earlier(app, broker):
    stage, template = staged(app, broker, MoveEnd(at=2, to=5))

    stage.tick(TURN, {template.template_id: END})

    assert template.twist == "moved earlier"


def test_sends_a_message_again_once(app, broker):
    stage, template = staged(app, broker, SendAgain(at=2))

    for _ in range(2):
        stage.tick(TURN, {template.template_id: END})

    (delivery,) = broker.receive(10, timedelta(seconds=10), timedelta(0))
    assert from_wire(delivery.body).stream_id == template.template_id
    assert template.twist == "sent twice"


def test_gives_up_where_no_message_is_sent(app, broker):
    stage, _ = staged(app, broker, SendAgain(at=2))

    with pytest.raises(MessageNotSent, match='"Winter coats" was not given to the broker within 4 s'):
        stage.tick(TURN + PATIENCE + timedelta(microseconds=1), {})
