"""Tells everybody else that a template ended: `Ended` events to an ordinary RocketMQ topic, at least once, in order.

Receivers tell repeats by `position`. Needs a topic of type NORMAL.
"""

import json
from collections.abc import Callable
from threading import Event

from coupon_clock.app import Application, Envelope
from coupon_clock.domain.events import Ended


def announcement(envelope: Envelope) -> bytes | None:
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


def announce(app: Application, publish: Callable[[bytes], object], stop: Event) -> None:
    """Follows the log for ever. What `publish` cannot send it must raise: the batch is then repeated whole."""

    def handler(envelopes: list[Envelope]) -> None:
        for message in filter(None, map(announcement, envelopes)):
            publish(message)

    app.follow("announce-ended", handler, stop=stop)


def rocketmq_publisher(endpoints: str, topic: str) -> Callable[[bytes], object]:
    """Through the client as it is, which keeps its log in the home folder (docs/rocketmq.md)."""
    from rocketmq import ClientConfiguration, Credentials, Message, Producer

    producer = Producer(ClientConfiguration(endpoints, Credentials()), (topic,))
    producer.startup()

    def publish(body: bytes) -> object:
        message = Message()
        message.topic = topic
        message.body = body
        return producer.send(message)

    return publish
