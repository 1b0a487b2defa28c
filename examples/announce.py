"""Tells everybody else that a template ended: `Ended` events to an ordinary RocketMQ topic, at least once.

Receivers tell repeats by `position`, and may get them in another order. Needs a topic of type NORMAL:

    with Application.open(Settings.load()) as app, rocketmq_publisher("127.0.0.1:8081", "coupon-ended") as publish:
        announce(app, publish, stop)
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as StopEvent

from coupon_clock import Application, Ended, Envelope, Event


def announcement(envelope: Envelope[Event]) -> bytes | None:
    """The message for an event, None where nobody needs to know."""
    event = envelope.event
    if not isinstance(event, Ended):
        return None
    content = {
        "type": "CouponTemplateEnded",
        "template_id": str(envelope.stream_id),
        "shop_number": event.shop_number,
        "reason": event.reason,
        "ended_at": event.ended_at.isoformat(),
        "position": envelope.position,
    }
    return json.dumps(content).encode()


def announce(app: Application, publish: Callable[[bytes], object], stop: StopEvent) -> None:
    """Follows the log for ever. What `publish` cannot send it must raise: the batch is then repeated whole."""

    def handler(envelopes: list[Envelope[Event]]) -> None:
        for message in filter(None, map(announcement, envelopes)):
            publish(message)

    app.follow("announce-ended", handler, stop=stop)


@contextmanager
def rocketmq_publisher(endpoints: str, topic: str) -> Iterator[Callable[[bytes], object]]:
    """Uses RocketMQ's client as it is; imported here because it sets up logging anew (docs/rocketmq.md)."""
    import rocketmq

    producer = rocketmq.Producer(rocketmq.ClientConfiguration(endpoints, rocketmq.Credentials()), {topic})

    def publish(body: bytes) -> object:
        message = rocketmq.Message()
        message.topic = topic
        message.body = body
        return producer.send(message)

    producer.startup()
    try:
        yield publish
    finally:
        producer.shutdown()
