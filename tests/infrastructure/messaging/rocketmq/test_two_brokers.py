"""Two broker masters behind one proxy: both are asked, each hears its own acknowledgements, one down stalls nobody."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest

from broker_contract import NO_LEAD, bodies, due_now, received
from coupon_clock.app import Application
from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.infrastructure.event_store.store import Cause
from coupon_clock.infrastructure.loop import Counts, Loop
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Delivery, PartlyStored
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection
from coupon_clock.infrastructure.messaging.rocketmq.requests import receipt_of
from coupon_clock.infrastructure.settings import Settings
from examples import SHOP, ending_in
from rocketmq_cluster import BROKERS, LocalRocketMQCluster
from waiting import eventually

pytestmark = [pytest.mark.rocketmq, pytest.mark.xdist_group("servers of their own")]

EAST, WEST = BROKERS
NAME = "both"
INVISIBLE = timedelta(seconds=10)
LONG_POLL = timedelta(seconds=5)


@pytest.fixture(scope="module")
def started(server_folder: Path) -> Iterator[LocalRocketMQCluster]:
    cluster = LocalRocketMQCluster(server_folder / "cluster")
    try:
        cluster.start()
        cluster.provision(NAME, NAME)
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def settings(started: LocalRocketMQCluster, database_url: str) -> Settings:
    given = {"rocketmq_endpoints": started.endpoints, "rocketmq_topic": NAME, "rocketmq_group": NAME}
    return Settings.load(database_url=database_url, lead=2, **given)


@pytest.fixture
def cluster(started: LocalRocketMQCluster, settings: Settings) -> LocalRocketMQCluster:
    """Both brokers in order and in the proxy's route, whatever the test before did."""
    started.restore_broker(EAST)
    eventually(lambda: routed(settings) == set(BROKERS))
    return started


@pytest.fixture
def broker(cluster: LocalRocketMQCluster, settings: Settings) -> Iterator[RocketMQBroker]:
    broker = RocketMQBroker.open(settings)
    yield broker
    broker.close()


def test_both_are_asked_and_what_either_heard_acknowledged_never_comes_again(broker: RocketMQBroker) -> None:
    done, again = [due_now() for _ in range(100)], [due_now() for _ in range(100)]
    acknowledged = set(map(to_wire, done))
    broker.publish(done + again, NO_LEAD)
    first = received(broker, done + again, INVISIBLE, acknowledging=lambda d: d.body in acknowledged)
    assert {broker_of(d) for d in first if d.body in acknowledged} == set(BROKERS)
    assert {broker_of(d) for d in first if d.body not in acknowledged} == set(BROKERS)
    assert broker.receivers >= len(BROKERS)

    seen: set[bytes] = set()
    received(broker, again, each=lambda deliveries: seen.update(bodies(deliveries)))
    assert seen.isdisjoint(acknowledged)


@pytest.mark.parametrize("fails", [LocalRocketMQCluster.hang_broker, LocalRocketMQCluster.kill_broker])
def test_one_that_fails_delays_no_message_of_the_other_and_spoils_none_of_its_acknowledgements(
    cluster: LocalRocketMQCluster, broker: RocketMQBroker, fails: Callable[[LocalRocketMQCluster, str], None]
) -> None:
    messages = [due_now() for _ in range(40)]
    with receiving(broker) as inbox:
        broker.publish(messages, NO_LEAD)
        eventually(lambda: {to_wire(message) for message in messages} <= set(inbox))
        of_east = [inbox[to_wire(m)][0] for m in messages if broker_of(inbox[to_wire(m)][0]) == EAST]
        unacknowledged, *of_west = [inbox[to_wire(m)][0] for m in messages if broker_of(inbox[to_wire(m)][0]) == WEST]

        fails(cluster, EAST)
        with suppress(BrokerUnavailable):
            broker.acknowledge([*of_east, *of_west])

        for _ in range(3):
            stored = {to_wire(message) for message in stored_by_the_other(broker)}
            eventually(lambda stored=stored: stored <= set(inbox), within=LONG_POLL.total_seconds())
        eventually(lambda: len(inbox[unacknowledged.body]) > 1)
        assert [len(inbox[delivery.body]) for delivery in of_west] == [1] * len(of_west)


def test_templates_end_once_and_on_time_while_one_is_killed(cluster: LocalRocketMQCluster, settings: Settings) -> None:
    with Application.open(settings) as app, app.running():
        before = [ending_in(6 + n / 10) for n in range(12)]
        app.execute_many(before)
        eventually(lambda: all_armed(app))
        cluster.kill_broker(EAST)
        after = [ending_in(6 + n / 10) for n in range(12)]
        app.execute_many(after)
        eventually(lambda: all_armed(app))

        eventually(lambda: app.maintenance.verify_promise().ended == {"expired": 24})
        report = app.maintenance.verify_promise()
        assert not report.found_something
        assert "message" in {cause_of_end(app, template) for template in before}


@contextmanager
def receiving(broker: RocketMQBroker) -> Iterator[dict[bytes, list[Delivery]]]:
    """What came, by body, in as many threads as the application has; nothing is acknowledged. Closes the broker."""
    inbox: dict[bytes, list[Delivery]] = defaultdict(list)
    stop = Event()

    def receive() -> Counts:
        for delivery in broker.receive(32, INVISIBLE, LONG_POLL):
            inbox[delivery.body].append(delivery)
        return Counts()

    receivers = [
        Thread(target=Loop("test", receive, 0, stop.wait).run_forever, args=(stop,)) for _ in range(broker.receivers)
    ]
    for receiver in receivers:
        receiver.start()
    try:
        yield inbox
    finally:
        stop.set()
        broker.close()
        for receiver in receivers:
            receiver.join()


def stored_by_the_other(broker: RocketMQBroker) -> Sequence[ExpiryDue]:
    """Those of some new messages that were stored, at least one."""
    messages = [due_now() for _ in range(16)]
    try:
        broker.publish(messages, NO_LEAD)
    except PartlyStored as partly:
        return [message for message in messages if message not in partly.missing]
    return messages


def routed(settings: Settings) -> set[str]:
    """The brokers that a client would ask now."""
    connection = Connection.for_receiving(Access.of(settings))
    try:
        connection.start()
        return {route.broker for route in connection.routes()}
    finally:
        connection.close()


def all_armed(app: Application) -> bool:
    with app.database.connection() as connection:
        return connection.execute("SELECT bool_and(armed_at IS NOT NULL) FROM coupon_clock.alarm").fetchone() == (True,)


def cause_of_end(app: Application, template: CreateCouponTemplate) -> Cause:
    return app.history(SHOP, template.template_id)[-1].cause


def broker_of(delivery: Delivery) -> str:
    """As the broker wrote it into the receipt: its sixth part."""
    return receipt_of(delivery).handle.split(" ")[5]
