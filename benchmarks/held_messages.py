"""Memory of a consumer that holds as many messages as one does by default, in a process of its own.

It receives them from RocketMQ, and nothing acts on them: their instant is far enough away.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from time import monotonic, sleep
from uuid import uuid4

import psutil
from measure import Figure, application, at_most, say
from prometheus_client import REGISTRY
from raw_rocketmq import provisioned

from coupon_clock.app import Application, Settings
from coupon_clock.deadlines import broker_for
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from coupon_clock.local_servers.servers import LocalServers

HELD_MESSAGES = 200_000
PUBLISHED_AT_ONCE = 2_000
LEAD_S = 200
"""Messages are delivered that long before their instant, and held: long enough for all to be there at the same time."""
PATIENCE_S = 190.0


def held_messages(running: LocalServers) -> Iterator[Figure]:
    say(f"memory of a consumer that holds {HELD_MESSAGES:,} messages")
    with application(
        running.postgres.url,
        rocketmq_endpoints=provisioned(running, "held"),
        rocketmq_topic="held",
        rocketmq_group="held",
        lead=LEAD_S,
    ) as app:
        before, after = memory_of_consumer(app)
    name = f"memory of a consumer that holds {HELD_MESSAGES:,} messages, more than before"
    yield at_most(name, (after - before) / 1e6, "MB", 150)
    yield Figure("memory of a consumer that holds none", round(before / 1e6), "MB")


def memory_of_consumer(app: Application) -> tuple[int, int]:
    """Bytes with none, and with all. Messages are published once the consumer is there."""
    environment = os.environ | {
        "COUPON_CLOCK_DATABASE_URL": app.settings.database(),
        "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": app.settings.rocketmq_endpoints,
        "COUPON_CLOCK_ROCKETMQ_TOPIC": app.settings.rocketmq_topic,
        "COUPON_CLOCK_ROCKETMQ_GROUP": app.settings.rocketmq_group,
        "COUPON_CLOCK_LEAD": str(LEAD_S),
    }
    command = [sys.executable, __file__, str(HELD_MESSAGES)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as consumer:
        assert consumer.stdout
        before = json.loads(consumer.stdout.readline())
        publish(app)
        return before, json.loads(consumer.stdout.readline())


def publish(app: Application) -> None:
    broker = broker_for(app.settings)
    due_at = datetime.now(UTC) + timedelta(seconds=LEAD_S)
    for _ in range(0, HELD_MESSAGES, PUBLISHED_AT_ONCE):
        broker.publish([ExpiryDue(uuid4(), due_at) for _ in range(PUBLISHED_AT_ONCE)], app.settings.lead_time)
    broker.close()


# ── in the process of its own ────────────────────────────────────────────────────────────────────


def hold(messages: int) -> None:
    """Prints its memory in bytes, a line each: when it has received nothing yet, and when it holds so many."""
    with Application.open(Settings.load()) as app:
        broker = broker_for(app.settings)
        consumer = app.runtime.deadlines.parts(broker).consumer
        stop = Event()

        def receive() -> None:
            while not stop.is_set():
                try:
                    consumer.receive()
                except BrokerUnavailable:  # its settings may not have come yet
                    stop.wait(0.1)

        threads = [Thread(target=receive, daemon=True) for _ in range(broker.receivers)]
        for thread in threads:
            thread.start()
        sleep(2)  # all receive by then
        print(memory(), flush=True)
        give_up_at = monotonic() + PATIENCE_S
        while (held := REGISTRY.get_sample_value("coupon_clock_held_messages") or 0) < messages:
            assert monotonic() < give_up_at, f"held only {held:,} messages"
            sleep(0.1)
        print(memory(), flush=True)
        stop.set()
        broker.close()


def memory() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    hold(int(sys.argv[1]))
