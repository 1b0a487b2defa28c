"""Calls to RocketMQ, each bounded in time, over one client.

Of the client only routes, heartbeats, settings, channels and signatures are used. Its own send, receive and ack cross
threads several times a message, can wait forever and hide the server's answer; these call its stubs, many per crossing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import count
from typing import Any, Self, TypeVar

from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Delivery, Unreachable
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.errors import (
    RocketMQBusy,
    TopicIsNotDelay,
    failed_call,
    refusal,
)
from coupon_clock.infrastructure.messaging.rocketmq.library import library
from coupon_clock.infrastructure.messaging.rocketmq.requests import (
    BrokerRoute,
    Outgoing,
    Requests,
    delivery_of,
    receipt_of,
)

T = TypeVar("T")

TIMEOUT = 3.0
"""Seconds that RocketMQ has for one answer: the client's own default."""
IN_FLIGHT = 128
"""Sends under way at once: fewer leave the broker idle, more gain nothing (measured)."""
PAUSES = (0.1, 0.2, 0.4, 0.8)
"""Seconds before a message is sent again to a broker that was too busy: it refuses what waited 0.2 s in its queue."""
MOST_PER_RECEIVE = 32
"""The proxy never gives more."""
MOST_PER_ACKNOWLEDGEMENT = 128
GIVEN_BACK_S = 1
"""Seconds until a message that was given back is delivered again: the least that can be said."""
SETTLING = 2.0
"""Seconds for a new client's settings to come back: a receive before that is refused with 50001."""
_OK = frozenset({20_000, 30_000, 40_401})
"""OK, several results in one answer, no new message."""
_INVALID_RECEIPT = 40_013
"""Of an acknowledgement after a redelivery: the later receipt counts."""


class Connection:
    """One client. Calls raise BrokerUnavailable, or BrokerMisconfigured where a person must act."""

    def __init__(self, access: Access, client: Any) -> None:
        self._access = access
        self._client = client
        self._requests = Requests(access)
        self._loop: asyncio.AbstractEventLoop = client.rpc_client.get_channel_io_loop()
        self._calls: set[Future[Any]] = set()
        self._receives: set[Any] = set()
        self._stopped_receiving = False
        self._turns = count()

    @classmethod
    def for_sending(cls, access: Access) -> Self:
        return cls(access, library().rocketmq.Producer(_configuration(access), {access.topic}, tls_enable=access.tls))

    @classmethod
    def for_receiving(cls, access: Access) -> Self:
        rocketmq = library().rocketmq
        topics = {access.topic: rocketmq.FilterExpression()}
        client = rocketmq.SimpleConsumer(_configuration(access), access.group, topics, tls_enable=access.tls)
        return cls(access, client)

    def start(self) -> None:
        """Connects, checks topic and group: some ms, or up to a timeout if nobody answers.

        The client asks for route and settings as well, but hides what the server answers; where the broker is away,
        asking first also keeps the client from starting threads.
        """
        settings_came = self._client._init_settings_event
        self._run(self._ask_route(), TIMEOUT)
        try:
            self._client.startup()
        except Exception as error:
            raise Unreachable(str(error)) from error
        self._check_types()
        if not settings_came.wait(SETTLING):
            self._run(self._ask_settings(), TIMEOUT)
            raise Unreachable("its settings did not come")

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    def close(self) -> None:
        """Cancels what is under way. Takes up to one timeout a broker: the client notifies each."""
        for call in list(self._calls):
            call.cancel()
        try:
            if self._client.is_running:
                self._client.shutdown()
        finally:
            self._client.rpc_client.stop()

    def routes(self) -> list[BrokerRoute]:
        """The brokers to receive from, at least one."""
        queues = [(queue.message_queue0(), queue.endpoints) for queue in self._queues() if queue.is_readable()]
        routes = {queue.broker.name: BrokerRoute(queue.broker.name, queue, place) for queue, place in queues}
        if not routes:
            raise Unreachable(f"topic {self._access.topic} has no readable queue")
        return list(routes.values())

    def send(self, messages: Sequence[Outgoing]) -> list[BrokerUnavailable | None]:
        """Returns the failure of each, None if it was stored."""
        places = self._places()
        waves = -(-len(messages) // IN_FLIGHT)
        return self._run(self._send_all(messages, places), waves * (TIMEOUT * len(places) + sum(PAUSES)))

    def receive(self, route: BrokerRoute, limit: int, invisible: int, wait: int) -> list[Delivery]:
        """Up to `limit`, not delivered again for `invisible` seconds, waiting up to `wait` seconds for the first."""
        messages = self._run(self._receive(route, limit, invisible, wait), wait + TIMEOUT)
        return [delivery_of(message, route) for message in messages]

    def stop_receiving(self) -> None:
        """Receives under way return what they have; the proxy gives others what it cannot hand out any more."""
        self._loop.call_soon_threadsafe(self._cancel_receives)

    def give_back(self, deliveries: Sequence[Delivery]) -> list[BrokerUnavailable]:
        """Returns the failures. They come again as soon as the broker can have them do so."""
        waves = -(-len(deliveries) // IN_FLIGHT)
        return self._run(self._give_back_all(deliveries), waves * TIMEOUT)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> list[BrokerUnavailable]:
        """Returns the failures. A receipt used before, or invalid after a redelivery, is none."""
        return self._run(self._acknowledge_all(deliveries), TIMEOUT)

    def _run(self, call: Coroutine[Any, Any, T], longest: float) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        self._calls.add(future)
        try:
            return future.result(longest + TIMEOUT)  # the calls have their deadlines: this one is for a stuck loop
        except (TimeoutError, CancelledError) as error:
            future.cancel()
            raise Unreachable("the call was given up") from error
        except Exception as error:
            raise self._translated(error) from error
        finally:
            self._calls.discard(future)
            # It holds the error, and the error this frame: in that circle the call would keep its socket open until the
            # next full garbage collection, which a process of ours puts off.
            del future

    async def _ask_route(self) -> None:
        endpoints = self._client.client_configuration.rpc_endpoints
        request = self._requests.route(endpoints)
        answer = await self._stub(endpoints).QueryRoute(request, metadata=self._client.sign(), timeout=TIMEOUT)
        self._check(answer.status)

    async def _ask_settings(self) -> None:
        for endpoints in self._client.route_manager.get_all_endpoints().values():
            call = self._stub(endpoints).Telemetry(metadata=self._client.sign(), timeout=TIMEOUT)
            await call.write(self._client.sync_setting_req(endpoints))
            self._check((await call.read()).status)
            call.cancel()

    async def _send_all(self, messages: Sequence[Outgoing], places: list[Any]) -> list[BrokerUnavailable | None]:
        gate = asyncio.Semaphore(IN_FLIGHT)
        metadata = self._client.sign()

        async def send(message: Outgoing) -> BrokerUnavailable | None:
            async with gate:
                turn = next(self._turns) % len(places)
                return await self._send_patiently(message, places[turn:] + places[:turn], metadata)

        return await asyncio.gather(*map(send, messages))

    async def _send_patiently(self, message: Outgoing, places: list[Any], metadata: Any) -> BrokerUnavailable | None:
        request = self._requests.send(message)
        failure = await self._send(request, places, metadata)
        for pause in PAUSES:
            if isinstance(failure, RocketMQBusy):
                await asyncio.sleep(pause)
                failure = await self._send(request, places, metadata)
        return failure

    async def _send(self, request: Any, places: list[Any], metadata: Any) -> BrokerUnavailable | None:
        """Stored by the first of the places that can."""
        failure: BrokerUnavailable | None = None
        for place in places:
            try:
                answer = await self._stub(place).SendMessage(request, metadata=metadata, timeout=TIMEOUT)
            except Exception as error:
                failure = self._translated(error)
            else:
                failure = self._refusal(answer.status)
            if failure is None:
                break
        return failure

    async def _receive(self, route: BrokerRoute, limit: int, invisible: int, wait: int) -> list[Any]:
        request = self._requests.receive(route, limit, invisible, wait)
        metadata = self._client.sign()
        if self._stopped_receiving:
            return []
        call = self._stub(route.endpoints).ReceiveMessage(request, metadata=metadata, timeout=wait + TIMEOUT)
        self._receives.add(call)
        answers = []
        try:
            async for answer in call:
                answers.append(answer)
        except asyncio.CancelledError:
            if not self._stopped_receiving:
                raise
        finally:
            self._receives.discard(call)
        for answer in answers:
            if answer.HasField("status"):
                self._check(answer.status)
        return [answer.message for answer in answers if answer.HasField("message")]

    def _cancel_receives(self) -> None:
        self._stopped_receiving = True
        for call in self._receives:
            call.cancel()

    async def _give_back_all(self, deliveries: Sequence[Delivery]) -> list[BrokerUnavailable]:
        gate = asyncio.Semaphore(IN_FLIGHT)
        metadata = self._client.sign()

        async def give_back(delivery: Delivery) -> BrokerUnavailable | None:
            async with gate:
                return await self._give_back(delivery, metadata)

        return [failure for failure in await asyncio.gather(*map(give_back, deliveries)) if failure]

    async def _give_back(self, delivery: Delivery, metadata: Any) -> BrokerUnavailable | None:
        stub = self._stub(receipt_of(delivery).endpoints)
        request = self._requests.give_back(delivery, GIVEN_BACK_S)
        try:
            answer = await stub.ChangeInvisibleDuration(request, metadata=metadata, timeout=TIMEOUT)
        except Exception as error:
            return self._translated(error)
        return None if answer.status.code == _INVALID_RECEIPT else self._refusal(answer.status)

    async def _acknowledge_all(self, deliveries: Sequence[Delivery]) -> list[BrokerUnavailable]:
        metadata = self._client.sign()
        calls = [self._acknowledge(chunk, metadata) for chunk in _by_broker(deliveries)]
        return [failure for failure in await asyncio.gather(*calls) if failure]

    async def _acknowledge(self, deliveries: Sequence[Delivery], metadata: Any) -> BrokerUnavailable | None:
        stub = self._stub(receipt_of(deliveries[0]).endpoints)
        request = self._requests.acknowledge(deliveries)
        try:
            answer = await stub.AckMessage(request, metadata=metadata, timeout=TIMEOUT)
        except Exception as error:
            return self._translated(error)
        statuses = [entry.status for entry in answer.entries] or [answer.status]
        failures = (self._refusal(status) for status in statuses if status.code != _INVALID_RECEIPT)
        return next(filter(None, failures), None)

    def _stub(self, endpoints: Any) -> Any:
        return self._client.rpc_client.retrieve_or_create_channel(endpoints).async_stub

    def _queues(self) -> list[Any]:
        """Never called on the loop: without a cached route the client waits for one, on the loop."""
        try:
            route = self._client.route_manager.retrieve_topic_route_data(self._access.topic)
        except Exception as error:
            raise Unreachable(str(error)) from error
        return [queue for queue in route.message_queues if queue.is_master_broker()]

    def _places(self) -> list[Any]:
        """Where to send, at least one."""
        places = {queue.endpoints.facade: queue.endpoints for queue in self._queues() if queue.is_writable()}
        if not places:
            raise Unreachable(f"topic {self._access.topic} has no writable queue")
        return list(places.values())

    def _check_types(self) -> None:
        types = library().protocol.MessageType
        for queue in self._queues():
            if types.DELAY not in queue.accept_message_types:
                raise TopicIsNotDelay(self._access.topic, ", ".join(map(types.Name, queue.accept_message_types)))

    def _check(self, status: Any) -> None:
        if failure := self._refusal(status):
            raise failure

    def _refusal(self, status: Any) -> BrokerUnavailable | None:
        if status.code in _OK:
            return None
        return refusal(status.code, status.message, self._access.topic, self._access.group)

    def _translated(self, error: Exception) -> BrokerUnavailable:
        if isinstance(error, BrokerUnavailable):
            return error
        if isinstance(error, library().RpcError):
            return failed_call(error.code().name, error.details() or "", self._access.topic, self._access.group)
        return Unreachable(str(error))


def _configuration(access: Access) -> Any:
    rocketmq = library().rocketmq
    credentials = rocketmq.Credentials(access.access_key, access.secret_key.get_secret_value())
    return rocketmq.ClientConfiguration(access.endpoints, credentials, access.namespace, int(TIMEOUT))


def _by_broker(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Yields what one call acknowledges: a proxy answers a call only when its slowest broker has."""
    at: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        at[receipt_of(delivery).broker].append(delivery)
    for of_one in at.values():
        for start in range(0, len(of_one), MOST_PER_ACKNOWLEDGEMENT):
            yield of_one[start : start + MOST_PER_ACKNOWLEDGEMENT]
