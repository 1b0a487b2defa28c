"""The scenario, and how it is carried out on an application whose clock is turned by hand."""

from collections import Counter
from datetime import timedelta

import pytest

from actions import ARMING_WINDOW, PATIENCE, MessageNotSent, Template, create, run_due, scenario
from coupon_clock import Ended, EndReason, MemoryBroker
from coupon_clock.testing import TestApplication
from examples import MORNING
from observer import Seen

END = MORNING + timedelta(seconds=10)
LATER = MORNING + timedelta(seconds=15)
ACTION = MORNING + timedelta(seconds=2)
BEFORE = ACTION - timedelta(microseconds=1)

FORTY = scenario(MORNING)


def test_forty_templates_of_three_shops_end_within_twenty_seconds():
    assert len(FORTY) == 40
    assert {template.shop_number for template in FORTY} == {1, 2, 3}
    assert all(timedelta(0) < template.ends_at - MORNING <= timedelta(seconds=20) for template in FORTY)


def test_twenty_end_at_one_instant_and_the_others_alone():
    together = Counter(template.ends_at for template in FORTY)

    assert sorted(together.values()) == [1] * 20 + [20]


def test_each_action_comes_once_and_both_ways_of_moving_an_end():
    assert Counter(t.action for t in FORTY if t.action) == {"terminate": 1, "move end": 2, "send again": 1}
    assert sorted(t.new_end > t.ends_at for t in FORTY if t.action == "move end") == [False, True]


def test_an_action_comes_once_its_message_can_be_sent_and_before_the_end():
    waiting = [template for template in FORTY if template.action in ("move end", "send again")]

    assert all(t.ends_at - ARMING_WINDOW <= t.action_at < t.ends_at for t in waiting)


def test_some_end_lies_beyond_the_arming_window_at_first():
    assert max(template.ends_at for template in FORTY) > MORNING + ARMING_WINDOW


def test_what_is_planned_is_created_with_discounts_of_each_kind(app):
    create(app, FORTY)

    events = [app.history(template.shop_number, template.template_id)[0].event for template in FORTY]
    assert [(event.name, event.valid_until) for event in events] == [(t.name, t.ends_at) for t in FORTY]
    assert len({type(event.discount) for event in events}) == 3


def created(app: TestApplication, action: str, **given: object) -> Template:
    template = Template(1, "Winter coats", END, action, ACTION, **given)
    create(app, [template])
    return template


def sent(template: Template) -> Seen:
    return Seen(sent={template.template_id: template.ends_at})


def test_terminates_when_its_time_has_come(app):
    template = created(app, "terminate")

    run_due(app, [template], BEFORE, Seen())
    assert [envelope.version for envelope in app.history(1, template.template_id)] == [1]

    run_due(app, [template], ACTION, Seen())
    assert app.history(1, template.template_id)[-1].event == Ended(1, EndReason.TERMINATED, template.ends_at)
    assert template.happened == "terminated"


def test_moves_an_end_only_after_its_message_was_sent(app):
    template = created(app, "move end", new_end=LATER)

    run_due(app, [template], ACTION, Seen())
    assert template.ends_at == END

    run_due(app, [template], ACTION, sent(template))
    assert template.ends_at == app.history(1, template.template_id)[-1].event.valid_until == LATER
    assert template.happened == f"later, was {END.astimezone():%H:%M:%S}"


def test_moves_an_end_earlier(app):
    template = created(app, "move end", new_end=MORNING + timedelta(seconds=5))

    run_due(app, [template], ACTION, sent(template))

    assert template.happened.startswith("earlier, was ")


def test_sends_a_message_again_once(app):
    template, broker = created(app, "send again"), MemoryBroker()
    relay = app.runtime.deadlines.parts(broker).relay
    relay.run_once()

    for _ in range(2):
        run_due(app, [template], ACTION, sent(template))
        relay.run_once()

    first, second = broker.receive(10, timedelta(seconds=10), timedelta(0))
    assert first.body == second.body
    assert str(template.template_id).encode() in first.body
    assert template.happened == "sent twice"


def test_gives_up_where_no_message_is_sent(app):
    template = created(app, "send again")

    with pytest.raises(MessageNotSent, match='"Winter coats" was not given to the broker within 4 s'):
        run_due(app, [template], ACTION + PATIENCE + timedelta(microseconds=1), Seen())
