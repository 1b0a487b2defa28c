"""Two broker masters behind one proxy: both are asked, each hears its own acknowledgements, one down stalls nobody."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker_contract import NO_LEAD, bodies, due_now, received
from coupon_clock.infrastructure.broker import BrokerUnavailable, Delivery
from coupon_clock.infrastructure.local.rocketmq_cluster import BROKERS, LocalRocketMQCluster
from coupon_clock.infrastructure.messages import ExpiryDue, to_wire
from coupon_clock.infrastructure.rocketmq import RocketMQBroker
from coupon_clock.infrastructure.rocketmq_client.requests import receipt_of
from coupon_clock.infrastructure.settings import Settings
from deadlines import eventually

pytestmark = pytest.mark.rocketmq

NAME = "both"
SOON_AGAIN = timedelta(seconds=10)


@pytest.fixture
def cluster(server_folder: Path) -> Iterator[LocalRocketMQCluster]:
    cluster = LocalRocketMQCluster(server_folder / "cluster")
    cluster.start()
    cluster.provision(NAME, NAME)
    yield cluster
    cluster.kill()


@pytest.fixture
def broker(cluster: LocalRocketMQCluster) -> Iterator[RocketMQBroker]:
    settings = Settings(rocketmq_endpoints=cluster.endpoints, rocketmq_topic=NAME, rocketmq_group=NAME)
    broker = RocketMQBroker.open(settings)
    yield broker
    broker.close()


def test_both_are_asked_and_hear_their_own_acknowledgements_and_one_down_does_not_stall_the_other(
    cluster: LocalRocketMQCluster, broker: RocketMQBroker
) -> None:
    done, again = [due_now() for _ in range(100)], [due_now() for _ in range(100)]
    acknowledged = set(map(to_wire, done))
    broker.publish(done + again, NO_LEAD)
    first = received(broker, done + again, SOON_AGAIN, acknowledging=lambda d: d.body in acknowledged)
    assert set(map(broker_of, first)) == set(BROKERS)
    assert broker.receivers >= len(BROKERS)

    seen: set[bytes] = set()
    received(broker, again, each=lambda deliveries: seen.update(bodies(deliveries)))
    assert seen.isdisjoint(acknowledged)

    cluster.kill_broker("east")
    message = due_now()
    eventually(lambda: is_published(broker, message), within=60)
    eventually(lambda: to_wire(message) in bodies(receive_or_nothing(broker)), within=60)


def broker_of(delivery: Delivery) -> str:
    """As the broker wrote it into the receipt: the sixth of its words."""
    return receipt_of(delivery).handle.split(" ")[5]


def is_published(broker: RocketMQBroker, message: ExpiryDue) -> bool:
    try:
        broker.publish([message], NO_LEAD)
    except BrokerUnavailable:
        return False
    return True


def receive_or_nothing(broker: RocketMQBroker) -> list[Delivery]:
    try:
        return broker.receive(32, SOON_AGAIN, SOON_AGAIN)
    except BrokerUnavailable:
        return []
