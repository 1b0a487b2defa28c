"""RocketMQ's Python client as its examples use it: the reference for what we build on it.

Messages are delivered at the end itself and handled as they come; handling costs nothing here, so that its figures
are the best it can do.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Lock, Semaphore, Thread
from typing import Any

from coupon_clock.infrastructure.messaging.rocketmq.library import library
from coupon_clock.local_servers.servers import LocalServers

IN_FLIGHT = 128
"""Sends under way at once: more gain nothing (measured)."""
RECEIVERS = 2
"""Threads that receive: more gain nothing either."""
PATIENCE_S = 60.0

# Its acknowledgements still under way at the end complain there, each with two tracebacks.
logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)


def provisioned(running: LocalServers, name: str) -> str:
    """The endpoints of a RocketMQ with a topic and a group of that name."""
    assert running.rocketmq
    running.rocketmq.provision(name, name)
    return running.rocketmq.endpoints


def send(
    endpoints: str, topic: str, deliver_at: Sequence[float], body: Callable[[float], bytes] | None = None
) -> float:
    """Pipelined; `deliver_at` in epoch seconds. Returns the seconds from the first send to the last receipt.

    `body`: of the message for a time, by default that time.
    """
    producer = library().rocketmq.Producer(_configuration(endpoints), {topic})
    producer.startup()
    free = Semaphore(IN_FLIGHT)
    started = time.monotonic()
    for at in deliver_at:
        free.acquire()
        producer.send_async(_message(topic, at, body)).add_done_callback(partial(_note_sent, free))
    for _ in range(IN_FLIGHT):
        free.acquire()
    took = time.monotonic() - started
    producer.shutdown()
    return took


def lateness(endpoints: str, topic: str, group: str, deliver_at: Sequence[float]) -> list[float]:
    """Sends them all, receives them all, acknowledges each; seconds from delivery time to receipt, of each."""
    receivers = _Receivers(endpoints, topic, group, len(deliver_at))
    receivers.start()
    send(endpoints, topic, deliver_at)
    return receivers.finish()


class _Receivers:
    def __init__(self, endpoints: str, topic: str, group: str, expected: int) -> None:
        rocketmq = library().rocketmq
        self._consumer = rocketmq.SimpleConsumer(
            _configuration(endpoints), group, {topic: rocketmq.FilterExpression()}, await_duration=5
        )
        self._expected = expected
        self._lock = Lock()
        self._late: dict[str, float] = {}
        self._done = Event()
        self._threads = [Thread(target=self._receive, daemon=True) for _ in range(RECEIVERS)]

    def start(self) -> None:
        self._consumer.startup()
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[float]:
        self._done.wait(PATIENCE_S + max(0, self._expected / 1_000))
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._consumer.shutdown()
        return list(self._late.values())

    def _receive(self) -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())  # ack_async asks for one
        while not self._done.is_set():
            try:
                messages = self._consumer.receive(32, 60)
            except Exception:  # right after a start its settings may not have come yet
                continue
            self._note(messages, time.time())
            for message in messages:
                self._consumer.ack_async(message)

    def _note(self, messages: Sequence[Any], now: float) -> None:
        with self._lock:
            for message in messages:
                self._late.setdefault(message.message_id, now - float(message.body))
            if len(self._late) >= self._expected:
                self._done.set()


def _message(topic: str, deliver_at: float, body: Callable[[float], bytes] | None) -> Any:
    """The client takes whole seconds."""
    message = library().rocketmq.Message()
    message.topic = topic
    message.body = body(deliver_at) if body else repr(deliver_at).encode()
    message.delivery_timestamp = int(deliver_at)
    return message


def _note_sent(free: Semaphore, sent: Any) -> None:
    sent.result()
    free.release()


def _configuration(endpoints: str) -> Any:
    rocketmq = library().rocketmq
    return rocketmq.ClientConfiguration(endpoints, rocketmq.Credentials("", ""), "", 3)
