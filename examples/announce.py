"""Tells everybody else that a template ended: CloudEvents on an ordinary RocketMQ topic, at least once.

Receivers tell repeats by `source` and `id`, and may get them in another order. `data` is the event as it is stored:
`coupon-clock schema events` prints its JSON Schema. Needs a topic of type NORMAL:

    with Application.open(Settings.load()) as app, rocketmq_publisher("127.0.0.1:8081", "coupon-ended") as publish:
        announce(app, publish, stop)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as StopEvent

import msgspec

from coupon_clock import Application, Ended, Envelope, Event

SOURCE = "/coupon-clock/coupon-templates"
"""Of this log: another one needs another."""


def announcement(envelope: Envelope[Event]) -> bytes | None:
    """The CloudEvent (1.0, structured JSON) of an event, None where nobody needs to know."""
    if not isinstance(envelope.event, Ended):
        return None
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": str(envelope.position),
            "source": SOURCE,
            "type": "CouponTemplate.Ended",
            "subject": str(envelope.stream_id),
            "time": envelope.recorded_at,
            "datacontenttype": "application/json",
            "data": envelope.event,
        }
    )


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
