"""Whatever becomes of the messages, the final state is the same, and the next message is received as ever."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest
from msgspec.structs import replace

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from coupon_clock.testing import TestApplication, given, open_test_application, throw_away_database
from examples import EVENING, MORNING, NOON, SHOP, a_template, change, terminate

MINUTE = timedelta(minutes=1)
WEEK = timedelta(weeks=1)

Messages = Sequence[ExpiryDue]


class Unruly(MemoryBroker):
    """The in-process broker, but `trouble` decides what becomes of what is published."""

    def __init__(self, trouble: Callable[[Messages], Messages]) -> None:
        super().__init__()
        self.trouble = trouble

    def publish(self, messages: Messages, lead: timedelta) -> None:
        super().publish(self.trouble(messages), lead)


def twice(messages: Messages) -> Messages:
    return [*messages, *messages]


def shuffled(messages: Messages) -> Messages:
    return Random(7).sample([*messages, *messages], 2 * len(messages))


def never(messages: Messages) -> Messages:
    return []


def due_long_ago(messages: Messages) -> Messages:
    return [replace(message, due_at=MORNING - WEEK) for message in messages]


def due_in_years(messages: Messages) -> Messages:
    return [replace(message, due_at=message.due_at + 500 * WEEK) for message in messages]


def about_nobody(messages: Messages) -> Messages:
    return [*messages, *(replace(message, stream_id=UUID(int=message.stream_id.int ^ 1)) for message in messages)]


class AWeekLate:
    """Keeps all back until it is released."""

    def __init__(self) -> None:
        self.kept: list[ExpiryDue] = []

    def __call__(self, messages: Messages) -> Messages:
        self.kept += messages
        return []


def live(app: TestApplication, broker: Unruly) -> None:
    """Some end at noon and after, some are moved either way, some are terminated; a minute at a time."""
    app.ticks[0] = app.runtime.deadlines.parts(broker).run_once
    templates = [a_template(template_id=UUID(int=100 + n), valid_until=NOON + n * MINUTE) for n in range(12)]
    given(app, *templates)
    app.run_due()
    app.clock.set(NOON - MINUTE)
    app.run_due()
    moved = [change(t.template_id, until=end) for t, end in zip(templates[6:], [EVENING, NOON] * 2, strict=False)]
    given(app, *moved, *(terminate(t.template_id) for t in templates[4:6]))
    for _ in range(14):
        app.clock.advance(minutes=1)
        app.run_due()
    app.clock.set(EVENING + MINUTE)
    app.run_due()


def final_state(app: TestApplication) -> list[list[Event]]:
    return [[envelope.event for envelope in app.history(SHOP, UUID(int=100 + n))] for n in range(12)]


def then_a_new_one_ends_by_its_message(app: TestApplication, broker: Unruly) -> None:
    broker.trouble = list
    template = a_template(valid_from=EVENING, valid_until=EVENING + WEEK + 2 * MINUTE)
    given(app, template)
    app.clock.set(template.valid_until)
    app.runtime.store.learn_time()
    parts = app.runtime.deadlines.parts(broker)
    parts.relay.run_once()
    parts.consumer.run_once()
    assert app.history(SHOP, template.template_id)[-1].cause == "message"


@pytest.fixture(scope="module")
def undisturbed(postgres) -> list[list[Event]]:
    with throw_away_database(postgres.url) as url, open_test_application(url, MORNING) as app:
        live(app, Unruly(list))
        return final_state(app)


@pytest.mark.parametrize("trouble", [twice, shuffled, never, due_long_ago, due_in_years, about_nobody])
def test_the_final_state_is_the_same_and_receiving_never_stops(undisturbed, app, trouble):
    broker = Unruly(trouble)
    live(app, broker)
    assert final_state(app) == undisturbed
    then_a_new_one_ends_by_its_message(app, broker)
    assert app.maintenance.verify_promise().violations == []


def test_messages_that_come_a_week_late_change_nothing(undisturbed, app):
    late = AWeekLate()
    broker = Unruly(late)
    live(app, broker)
    app.clock.advance(days=7)
    broker.trouble = list
    broker.publish(late.kept, timedelta(0))
    app.run_due()

    assert len(late.kept) >= 8
    assert final_state(app) == undisturbed
    then_a_new_one_ends_by_its_message(app, broker)
