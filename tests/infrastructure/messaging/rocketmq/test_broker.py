"""Against a real RocketMQ. What needs none is in test_unreachable.py."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from broker_contract import LONG, NO_LEAD, SHORT, BrokerContract, bodies, due_now, received
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, from_wire, to_wire
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection
from coupon_clock.infrastructure.messaging.rocketmq.errors import (
    DelayAboveCap,
    GroupMissing,
    TopicIsNotDelay,
    TopicMissing,
)
from coupon_clock.infrastructure.messaging.rocketmq.requests import Outgoing
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers import remoting
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from waiting import eventually

pytestmark = pytest.mark.rocketmq

TOPIC = GROUP = "broker-contract"
SECOND = timedelta(seconds=1)
PATIENCE = 90.0


@pytest.fixture(scope="module")
def settings(rocketmq: LocalRocketMQ) -> Settings:
    rocketmq.provision(TOPIC, GROUP)
    return Settings(rocketmq_endpoints=rocketmq.endpoints, rocketmq_topic=TOPIC, rocketmq_group=GROUP)


@pytest.fixture
def broker(settings: Settings) -> Iterator[RocketMQBroker]:
    with opened(settings) as broker:
        yield broker


class TestRocketMQBroker(BrokerContract):
    @pytest.fixture
    def invisible(self) -> timedelta:
        return 10 * SECOND


def test_nothing_is_delivered_before_its_time(broker: RocketMQBroker) -> None:
    messages = [ExpiryDue(uuid4(), datetime.now(UTC) + (3 + number / 7) * SECOND) for number in range(20)]
    early: list[Delivery] = []

    def note_the_early(deliveries: Sequence[Delivery]) -> None:
        now = datetime.now(UTC)
        early.extend(d for d in deliveries if now < delivery_time(d))

    broker.publish(messages, SECOND)
    received(broker, messages, each=note_the_early)
    assert early == []


def delivery_time(delivery: Delivery) -> datetime:
    """A second's lead, in whole seconds."""
    return (from_wire(delivery.body).due_at - SECOND).replace(microsecond=0)


def test_a_foreign_body_is_delivered_as_it_is(broker: RocketMQBroker, settings: Settings) -> None:
    foreign = b"\x1f\x8b neither JSON nor text \xff" + uuid4().bytes
    connection = Connection.for_sending(Access.of(settings))
    connection.start()
    assert connection.send([Outgoing("foreign", foreign, 1)]) == [None]
    connection.close()
    eventually(lambda: foreign in bodies(broker.receive(32, LONG, SHORT)), within=PATIENCE)


def test_a_missing_topic_is_named_with_the_command_that_makes_it(settings: Settings) -> None:
    with opened(settings, rocketmq_topic="no-such-topic") as broker:
        with pytest.raises(TopicMissing, match=r"mqadmin updateTopic .* -t no-such-topic -a \+message.type=DELAY"):
            broker.publish([due_now()], NO_LEAD)
        with pytest.raises(TopicMissing):
            broker.receive(1, LONG, SHORT)


def test_a_topic_that_is_not_delay_is_named_with_the_command_that_makes_it_so(
    settings: Settings, rocketmq: LocalRocketMQ
) -> None:
    remoting.make_topic(rocketmq.ports.broker, "a-normal-topic", "NORMAL")
    with opened(settings, rocketmq_topic="a-normal-topic") as broker:
        eventually(lambda: isinstance(refusal_of(broker), TopicIsNotDelay), within=PATIENCE)
        with pytest.raises(
            TopicIsNotDelay, match=r"type NORMAL, not DELAY.* -t a-normal-topic -a \+message.type=DELAY"
        ):
            broker.receive(1, LONG, SHORT)


def test_a_missing_group_is_named_with_the_command_that_makes_it_and_publishing_works(settings: Settings) -> None:
    with opened(settings, rocketmq_group="no-such-group") as broker:
        with pytest.raises(GroupMissing, match=r"mqadmin updateSubGroup .* -g no-such-group"):
            broker.receive(1, LONG, SHORT)
        broker.publish([due_now()], NO_LEAD)


def test_a_delay_above_the_brokers_cap_shrinks_the_arming_window(settings: Settings) -> None:
    days = timedelta(days=3)
    with opened(settings, arming_window=days.total_seconds()) as broker:
        assert broker.arming_window == days
        with pytest.raises(DelayAboveCap, match="COUPON_CLOCK_ARMING_WINDOW"):
            broker.publish([due_now(), ExpiryDue(uuid4(), datetime.now(UTC) + days - SECOND)], NO_LEAD)
        assert broker.arming_window < days
        while refusal_of(broker, datetime.now(UTC) + broker.arming_window):
            pass
        assert broker.arming_window >= timedelta(hours=12)


def test_a_broker_killed_and_restarted_is_used_again(broker: RocketMQBroker, rocketmq: LocalRocketMQ) -> None:
    received(broker, published(broker))
    armed = ExpiryDue(uuid4(), datetime.now(UTC) + 5 * SECOND)
    broker.publish([armed], NO_LEAD)
    rocketmq.kill()
    try:
        assert refusal_of(broker) is not None
        assert receive_or_nothing(broker) == []
    finally:
        rocketmq.start()
    eventually(lambda: refusal_of(broker) is None, within=PATIENCE)
    eventually(lambda: to_wire(armed) in receive_or_nothing(broker), within=PATIENCE)
    received(broker, published(broker))


@contextmanager
def opened(settings: Settings, **other: object) -> Iterator[RocketMQBroker]:
    broker = RocketMQBroker.open(settings.model_copy(update=other))
    try:
        yield broker
    finally:
        broker.close()


def published(broker: RocketMQBroker) -> list[ExpiryDue]:
    messages = [due_now()]
    broker.publish(messages, NO_LEAD)
    return messages


def refusal_of(broker: RocketMQBroker, due_at: datetime | None = None) -> BrokerUnavailable | None:
    try:
        broker.publish([ExpiryDue(uuid4(), due_at or datetime.now(UTC))], NO_LEAD)
    except BrokerUnavailable as reason:
        return reason
    return None


def receive_or_nothing(broker: RocketMQBroker) -> list[bytes]:
    try:
        return bodies(broker.receive(32, LONG, SHORT))
    except BrokerUnavailable:
        return []
