"""RocketMQ's Python client as its examples use it: a message delivered at the end, received by two threads, and
acknowledged once its row is written."""

import asyncio
import os
from collections.abc import Sequence
from threading import Semaphore, Thread
from time import sleep
from typing import Any

from job import main, record

from coupon_clock.infrastructure.messaging.rocketmq.library import library

ENDPOINTS = os.environ["COUPON_CLOCK_ROCKETMQ_ENDPOINTS"]
TOPIC = os.environ["COUPON_CLOCK_ROCKETMQ_TOPIC"]
IN_FLIGHT = 128
RECEIVERS = 2


def configuration() -> Any:
    rocketmq = library().rocketmq
    return rocketmq.ClientConfiguration(ENDPOINTS, rocketmq.Credentials("", ""), "", 3)


def schedule(times: Sequence[float]) -> None:
    producer = library().rocketmq.Producer(configuration(), {TOPIC})
    producer.startup()
    free = Semaphore(IN_FLIGHT)
    for n, at in enumerate(times):
        message = library().rocketmq.Message()
        message.topic, message.body, message.delivery_timestamp = TOPIC, str(n).encode(), int(at)
        free.acquire()
        producer.send_async(message).add_done_callback(lambda _: free.release())
    for _ in range(IN_FLIGHT):
        free.acquire()
    producer.shutdown()


def work() -> None:
    rocketmq = library().rocketmq
    consumer = rocketmq.SimpleConsumer(configuration(), TOPIC, {TOPIC: rocketmq.FilterExpression()}, await_duration=5)
    consumer.startup()
    threads = [Thread(target=receive, args=(consumer,)) for _ in range(RECEIVERS)]
    for thread in threads:
        thread.start()
    for thread in threads:  # once the main thread ends, Python takes the client's executors away
        thread.join()


def receive(consumer: Any) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())  # ack_async asks for one
    while True:
        try:
            messages = consumer.receive(32, 60)
        except Exception:  # right after a start, or a restart of the broker
            sleep(1)
            continue
        for message in messages:
            record(int(message.body))
            consumer.ack_async(message)


if __name__ == "__main__":
    main(schedule, work)
