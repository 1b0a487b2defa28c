"""What every broker must do. A test module inherits BrokerContract and offers the fixtures `broker` and `invisible`.

Messages of one test are known from those of another by their stream ids, so brokers may be shared.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from time import monotonic
from uuid import uuid4

import pytest

from coupon_clock.infrastructure.messaging.broker import Broker, BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire

NO_LEAD = timedelta()
LONG = timedelta(seconds=60)
SHORT = timedelta(seconds=1)
DEADLINE = 60.0


class BrokerContract:
    def test_what_is_published_is_received(self, broker: Broker) -> None:
        message = due_now()
        broker.publish([message], NO_LEAD)
        assert bodies(received(broker, [message])) == [to_wire(message)]

    def test_a_due_time_long_past_is_delivered_at_once(self, broker: Broker) -> None:
        message = ExpiryDue(uuid4(), datetime(2001, 1, 1, tzinfo=UTC))
        broker.publish([message], timedelta(seconds=10))
        assert bodies(received(broker, [message])) == [to_wire(message)]

    def test_a_thousand_messages_all_arrive_once(self, broker: Broker) -> None:
        messages = [due_now() for _ in range(1_000)]
        broker.publish(messages, NO_LEAD)
        assert Counter(bodies(received(broker, messages))) == Counter(map(to_wire, messages))

    def test_the_unacknowledged_comes_again_and_the_acknowledged_does_not(
        self, broker: Broker, invisible: timedelta
    ) -> None:
        done = [due_now() for _ in range(20)]
        again = [due_now() for _ in range(20)]
        acknowledged = set(map(to_wire, done))
        broker.publish(done + again, NO_LEAD)
        first = received(broker, done + again, invisible, acknowledging=lambda d: d.body in acknowledged)
        assert Counter(bodies(first)) == Counter(map(to_wire, done + again))
        seen: set[bytes] = set()
        received(broker, again, each=lambda deliveries: seen.update(bodies(deliveries)))
        assert seen.isdisjoint(acknowledged)

    def test_acknowledging_twice_is_no_error(self, broker: Broker) -> None:
        messages = [due_now(), due_now()]
        broker.publish(messages, NO_LEAD)
        deliveries = received(broker, messages)
        broker.acknowledge(deliveries)
        broker.acknowledge(deliveries)

    def test_acknowledging_what_was_redelivered_is_no_error(self, broker: Broker, invisible: timedelta) -> None:
        message = due_now()
        broker.publish([message], NO_LEAD)
        early = received(broker, [message], invisible, acknowledging=lambda d: False)
        late = received(broker, [message], LONG, acknowledging=lambda d: False)
        broker.acknowledge(early)
        broker.acknowledge(late)

    def test_what_is_given_back_comes_again_soon(self, broker: Broker) -> None:
        messages = [due_now() for _ in range(20)]
        broker.publish(messages, NO_LEAD)
        first = received(broker, messages, LONG, acknowledging=lambda d: False)
        began = monotonic()
        broker.give_back(first)
        again = received(broker, messages, LONG)
        assert monotonic() - began < LONG.total_seconds() / 2
        assert Counter(bodies(again)) == Counter(map(to_wire, messages))

    def test_giving_back_what_was_acknowledged_is_no_error(self, broker: Broker) -> None:
        message = due_now()
        broker.publish([message], NO_LEAD)
        broker.give_back([])
        broker.give_back(received(broker, [message]))

    def test_no_more_than_the_limit_is_received(self, broker: Broker) -> None:
        messages = [due_now() for _ in range(20)]
        broker.publish(messages, NO_LEAD)
        sizes = []
        received(broker, messages, limit=3, each=lambda deliveries: sizes.append(len(deliveries)))
        assert max(sizes) <= 3

    def test_nothing_to_publish_or_acknowledge_is_no_error(self, broker: Broker) -> None:
        broker.publish([], NO_LEAD)
        broker.acknowledge([])

    def test_close_ends_a_receive_under_way(self, broker: Broker) -> None:
        under_way = Event()

        def receive() -> None:
            under_way.set()
            broker.receive(1, LONG, LONG)

        receiver = Thread(target=receive, daemon=True)
        receiver.start()
        under_way.wait()
        broker.close()
        receiver.join(LONG.total_seconds() / 2)
        assert not receiver.is_alive()

    def test_stopping_to_receive_ends_a_receive_under_way_and_what_it_did_not_return_is_for_others(
        self, broker: Broker
    ) -> None:
        under_way = Event()

        def receive() -> None:
            under_way.set()
            broker.receive(1, LONG, LONG)

        receiver = Thread(target=receive, daemon=True)
        receiver.start()
        under_way.wait()
        while receiver.is_alive():
            broker.stop_receiving()
            receiver.join(0.1)
        assert broker.receive(1, LONG, LONG) == []
        broker.publish([due_now()], NO_LEAD)
        broker.acknowledge([])

    def test_after_close_nothing_is_received(self, broker: Broker) -> None:
        broker.close()
        assert broker.receive(1, LONG, LONG) == []


def due_now() -> ExpiryDue:
    return ExpiryDue(uuid4(), datetime.now(UTC))


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def received(
    broker: Broker,
    messages: Sequence[ExpiryDue],
    invisible: timedelta = LONG,
    limit: int = 100,
    acknowledging: Callable[[Delivery], bool] = lambda delivery: True,
    each: Callable[[Sequence[Delivery]], object] = lambda deliveries: None,
) -> list[Delivery]:
    """All that came until every one of the messages had come, acknowledged as asked for; others are dropped."""
    missing = set(map(to_wire, messages))
    wanted = frozenset(missing)
    collected: list[Delivery] = []
    deadline = monotonic() + DEADLINE
    while missing:
        assert monotonic() < deadline, f"{len(missing)} of {len(messages)} messages did not come"
        deliveries = broker.receive(limit, invisible, SHORT)
        each(deliveries)
        broker.acknowledge([d for d in deliveries if d.body not in wanted or acknowledging(d)])
        collected += [d for d in deliveries if d.body in wanted]
        missing.difference_update(bodies(deliveries))
    return collected


def refusals(broker: Broker) -> list[BrokerUnavailable]:
    """What publishing and receiving raise where neither works."""
    with pytest.raises(BrokerUnavailable) as to_publish:
        broker.publish([due_now()], NO_LEAD)
    with pytest.raises(BrokerUnavailable) as to_receive:
        broker.receive(1, LONG, SHORT)
    return [to_publish.value, to_receive.value]
