"""Alarms go to the broker once they come into its window: at least once, whoever dies in between."""

from datetime import timedelta

import pytest

from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, PartlyStored, Unreachable
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.scheduling.relay import Relay
from coupon_clock.testing import TestApplication
from examples import EVENING, NOON, a_template, change, terminate

LEAD = timedelta(seconds=10)


class Outbox(MemoryBroker):
    """Notes what is published; remembers or forgets, and fails, as a test wants."""

    arming_window = timedelta(hours=1)

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets
        self.is_away = False
        self.sent: list[object] = []

    def publish(self, messages, lead) -> None:
        if self.is_away:
            raise Unreachable("it restarts")
        self.sent += [(message.stream_id, message.due_at) for message in messages]


def relay_to(app: TestApplication, outbox: Outbox) -> Relay:
    return Relay(app.runtime.deadlines.alarms, outbox, app.runtime.clock, LEAD)


def turn(app: TestApplication, at) -> None:
    app.clock.set(at)
    app.store.learn_time()


@pytest.mark.parametrize("forgets", [True, False])
def test_an_alarm_is_sent_once_it_is_in_the_window_and_only_once(app, forgets):
    outbox = Outbox(forgets)
    relay = relay_to(app, outbox)
    template = a_template(valid_until=NOON)
    app.execute(template)
    assert not relay.run_once()

    turn(app, NOON - timedelta(minutes=59))
    assert relay.run_once() == {"armed": 1}
    assert not relay.run_once()
    assert outbox.sent == [(template.template_id, NOON)]


@pytest.mark.parametrize("forgets", [True, False])
def test_an_end_that_moved_is_sent_again(app, forgets):
    outbox = Outbox(forgets)
    relay = relay_to(app, outbox)
    template = a_template(valid_until=EVENING)
    app.execute(template)
    turn(app, EVENING - timedelta(minutes=30))
    relay.run_once()
    app.execute(change(template.template_id, until=EVENING + timedelta(minutes=5)))

    relay.run_once()
    assert outbox.sent[1:] == [(template.template_id, EVENING + timedelta(minutes=5))]


def test_an_end_that_moves_while_its_message_is_sent_is_not_marked(app):
    class MovesMeanwhile(Outbox):
        def publish(self, messages, lead) -> None:
            super().publish(messages, lead)
            if len(self.sent) == 1:
                app.execute(change(template.template_id, until=EVENING + timedelta(minutes=5)))

    outbox = MovesMeanwhile(forgets=False)
    relay = relay_to(app, outbox)
    template = a_template(valid_until=EVENING)
    app.execute(template)
    turn(app, EVENING - timedelta(minutes=30))
    relay.run_once()
    relay.run_once()

    assert [due_at for _, due_at in outbox.sent] == [EVENING, EVENING + timedelta(minutes=5)]


def test_what_could_not_be_sent_is_sent_as_soon_as_the_broker_is_back(app):
    outbox = Outbox(forgets=False)
    relay = relay_to(app, outbox)
    app.execute(a_template(valid_until=NOON))
    turn(app, NOON - timedelta(minutes=10))
    outbox.is_away = True
    with pytest.raises(BrokerUnavailable):
        relay.run_once()

    outbox.is_away = False
    assert relay.run_once() == {"armed": 1}


@pytest.mark.parametrize("forgets", [True, False])
def test_of_what_was_sent_only_what_is_missing_is_sent_again_and_at_once(app, forgets):
    class TakesOne(Outbox):
        def publish(self, messages, lead) -> None:
            super().publish(messages[:1], lead)
            if missing := messages[1:]:
                raise PartlyStored(missing, "one of its brokers is down")

    outbox = TakesOne(forgets)
    relay = relay_to(app, outbox)
    ends = [NOON + timedelta(seconds=n) for n in range(3)]
    app.execute_many([a_template(valid_until=end) for end in ends])
    turn(app, NOON - timedelta(minutes=10))

    assert [relay.run_once() for _ in range(4)] == [{"armed": 1}, {"armed": 1}, {"armed": 1}, {}]
    assert [due_at for _, due_at in outbox.sent] == ends


def test_what_a_dead_relay_had_claimed_is_not_sent_and_the_reconciler_ends_it(app):
    app.execute(template := a_template(valid_until=NOON))
    turn(app, NOON - timedelta(minutes=10))
    app.runtime.deadlines.alarms.claim(ahead=timedelta(hours=1), limit=10)
    assert not relay_to(app, Outbox(forgets=False)).run_once()

    turn(app, NOON + timedelta(seconds=1))
    assert app.runtime.deadlines.handle_due([], "reconciler", timedelta(seconds=1)).ended == 1
    assert len(app.history(template.shop_number, template.template_id)) == 2


def test_an_ended_template_is_not_sent(app):
    outbox = Outbox(forgets=False)
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.execute(terminate(template.template_id))
    turn(app, NOON - timedelta(minutes=10))

    assert not relay_to(app, outbox).run_once()


def test_another_process_takes_over_what_a_forgetting_broker_held_a_second_past_the_end(app):
    relay_to(app, Outbox(forgets=True)).run_once()
    app.execute(a_template(valid_until=NOON))
    turn(app, NOON - timedelta(minutes=1))
    relay_to(app, Outbox(forgets=True)).run_once()
    other = relay_to(app, Outbox(forgets=True))

    turn(app, NOON + timedelta(seconds=0.9))
    assert not other.run_once()
    turn(app, NOON + timedelta(seconds=1.1))
    assert other.run_once() == {"armed": 1}


def test_what_is_long_due_is_sent_again_only_once_its_lease_is_over(app):
    outbox = Outbox(forgets=True)
    relay = relay_to(app, outbox)
    app.execute(a_template(valid_until=NOON))
    turn(app, NOON + timedelta(seconds=2))
    assert relay.run_once() == {"armed": 1}
    assert not relay.run_once()

    turn(app, NOON + timedelta(seconds=33))
    assert relay.run_once() == {"armed": 1}


def test_a_clean_stop_hands_over_at_once(app):
    app.execute(a_template(valid_until=NOON))
    turn(app, NOON - timedelta(minutes=1))
    first = relay_to(app, Outbox(forgets=True))
    first.run_once()
    first.release()

    assert relay_to(app, Outbox(forgets=True)).run_once() == {"armed": 1}
