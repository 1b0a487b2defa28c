"""examples/announce.py"""

import json

import msgspec
import pytest

from coupon_clock.infrastructure.messaging.rocketmq.library import library
from examples import SHOP, ending_in, terminate
from programs import example, in_background
from waiting import eventually


def test_ends_are_announced_also_after_a_failure(live):
    template = ending_in(3600)
    live.execute_many([template, ending_in(3600)])
    live.execute(terminate(template.template_id))
    sent: list[bytes] = []
    failures = [ConnectionError("not now")]

    def publish(body: bytes) -> None:
        if failures:
            raise failures.pop()
        sent.append(body)

    with in_background(example("announce").announce, live, publish):
        eventually(lambda: sent)
    assert [json.loads(body)["subject"] for body in sent] == [str(template.template_id)]
    assert json.loads(sent[0])["data"]["reason"] == "terminated"


@pytest.mark.rocketmq
def test_ends_are_announced_on_an_ordinary_rocketmq_topic(live, rocketmq):
    library()  # the example's own import of the client would close the log handlers of this process
    rocketmq.provision("ended", "listeners", "NORMAL")
    template = ending_in(3600)
    live.execute(template)
    outcome = live.execute(terminate(template.template_id))
    announce = example("announce")

    with (
        announce.rocketmq_publisher(rocketmq.endpoints, "ended") as publish,
        in_background(announce.announce, live, publish),
    ):
        (body,) = received(rocketmq.endpoints, "ended", "listeners")

    (envelope,) = [each for each in live.history(SHOP, template.template_id) if each.position == outcome.position]
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": str(outcome.position),
        "source": "/coupon-clock/coupon-templates",
        "type": "CouponTemplate.Ended",
        "subject": str(template.template_id),
        "time": envelope.recorded_at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": json.loads(msgspec.json.encode(envelope.event)),
    }
    with pytest.raises(Exception, match="not running"):
        publish(b"after it was shut down")


def received(endpoints: str, topic: str, group: str) -> list[bytes]:
    """The first messages that come, acknowledged."""
    rocketmq = library().rocketmq
    configuration = rocketmq.ClientConfiguration(endpoints, rocketmq.Credentials())
    consumer = rocketmq.SimpleConsumer(configuration, group, {topic: rocketmq.FilterExpression()}, await_duration=5)
    settings_came = consumer._init_settings_event
    messages = []

    def receive() -> list[object]:
        messages.extend(consumer.receive(32, 10))
        return messages

    consumer.startup()
    try:
        eventually(settings_came.is_set)  # receiving is refused until then
        eventually(receive)
        for message in messages:
            consumer.ack(message)
    finally:
        consumer.shutdown()
    return [message.body for message in messages]
