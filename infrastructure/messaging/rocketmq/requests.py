"""Requests to RocketMQ, in its protocol. Nothing here makes a call."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from msgspec import Struct

from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.library import library


class Outgoing(NamedTuple):
    """A message to be delivered at `deliver_at`, in epoch seconds."""

    key: str
    body: bytes
    deliver_at: int


class BrokerRoute(NamedTuple):
    """One broker to receive from. A receive from any of its queues takes from all of them."""

    broker: str
    queue: Any
    endpoints: Any

    @property
    def address(self) -> str:
        """Where it is reached: its own, or that of a proxy in front of several."""
        return str(self.endpoints.facade)


class Receipt(Struct, frozen=True, gc=False):
    """What acknowledges a delivery, and where."""

    broker: str
    endpoints: Any
    handle: str


class Requests:
    """For one topic and group."""

    def __init__(self, access: Access) -> None:
        self._protocol = library().protocol
        self._topic = self._protocol.Resource(name=access.topic, resource_namespace=access.namespace)
        self._group = self._protocol.Resource(name=access.group, resource_namespace=access.namespace)
        self._next_message_id = library().MessageIdCodec().next_message_id

    def route(self, endpoints: Any) -> Any:
        return self._protocol.QueryRouteRequest(topic=self._topic, endpoints=endpoints.endpoints)

    def send(self, message: Outgoing) -> Any:
        request = self._protocol.SendMessageRequest()
        properties = request.messages.add(topic=self._topic, body=message.body).system_properties
        properties.keys.append(message.key)
        properties.message_id = self._next_message_id()
        properties.message_type = self._protocol.MessageType.DELAY
        properties.body_encoding = self._protocol.Encoding.IDENTITY
        properties.born_timestamp.GetCurrentTime()
        properties.delivery_timestamp.seconds = message.deliver_at
        return request

    def receive(self, route: BrokerRoute, limit: int, invisible: int, wait: int) -> Any:
        request = self._protocol.ReceiveMessageRequest(group=self._group, message_queue=route.queue, batch_size=limit)
        request.filter_expression.type = self._protocol.FilterType.TAG
        request.filter_expression.expression = "*"
        request.invisible_duration.seconds = invisible
        request.long_polling_timeout.seconds = wait
        return request

    def give_back(self, delivery: Delivery, seconds: int) -> Any:
        request = self._protocol.ChangeInvisibleDurationRequest(group=self._group, topic=self._topic)
        request.message_id, request.receipt_handle = delivery.message_id, receipt_of(delivery).handle
        request.invisible_duration.seconds = seconds
        return request

    def acknowledge(self, deliveries: Iterable[Delivery]) -> Any:
        request = self._protocol.AckMessageRequest(group=self._group, topic=self._topic)
        for delivery in deliveries:
            request.entries.add(message_id=delivery.message_id, receipt_handle=receipt_of(delivery).handle)
        return request


def delivery_of(message: Any, route: BrokerRoute) -> Delivery:
    """The body is as it was sent, compressed or not: ours never is."""
    properties = message.system_properties
    receipt = Receipt(route.broker, route.endpoints, properties.receipt_handle)
    return Delivery(properties.message_id, message.body, receipt)


def receipt_of(delivery: Delivery) -> Receipt:
    assert isinstance(delivery.receipt, Receipt)
    return delivery.receipt
