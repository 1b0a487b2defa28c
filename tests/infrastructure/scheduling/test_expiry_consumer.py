"""What the consumer does with each kind of message, on a clock turned by hand."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace

from coupon_clock.domain.errors import OutcomeUnknown
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from coupon_clock.infrastructure.messaging.rejected import RejectedMessages
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from coupon_clock.infrastructure.scheduling.alarms import Alarms
from coupon_clock.infrastructure.scheduling.due_result import Retry
from coupon_clock.infrastructure.scheduling.expiry_consumer import ExpiryConsumer
from coupon_clock.testing import TestApplication
from examples import EVENING, MICROSECOND, MORNING, NOON, SHOP, a_template, change
from waiting import eventually

NOW = timedelta(0)
LEAD = timedelta(seconds=10)


class Inbox(MemoryBroker):
    """Delivers whatever bytes a test puts in."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self.done: list[str] = []
        self.back: list[bytes] = []

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        bodies, self.bodies = self.bodies[:limit], self.bodies[limit:]
        return [Delivery(body.decode(errors="replace"), body, None) for body in bodies]

    def acknowledge(self, deliveries) -> None:
        self.done += [delivery.message_id for delivery in deliveries]

    def give_back(self, deliveries) -> None:
        self.back += [delivery.message_id.encode() for delivery in deliveries]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def consumer(app: TestApplication, inbox: Inbox) -> ExpiryConsumer:
    return consumer_of(app, inbox)


def consumer_of(app: TestApplication, inbox: Inbox, handle_due=None, max_held: int = 100) -> ExpiryConsumer:
    return ExpiryConsumer(
        inbox,
        Alarms(app.database),
        RejectedMessages(app.database),
        handle_due or app.runtime.deadlines.handle_due,
        app.runtime.clock,
        LEAD,
        max_held,
    )


def due(template, at=None) -> bytes:
    return to_wire(ExpiryDue(template.template_id, at or template.valid_until))


def is_ended(app: TestApplication, template) -> bool:
    return isinstance(app.history(SHOP, template.template_id)[-1].event, Ended)


def turn(app: TestApplication, at) -> None:
    app.clock.set(at)
    app.store.learn_time()


def test_a_message_is_held_until_the_instant_then_acted_on_and_acknowledged(app, inbox, consumer):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON - timedelta(seconds=5))
    inbox.bodies = [due(template)]
    consumer.run_once()
    assert not is_ended(app, template)
    assert inbox.done == []

    turn(app, NOON + timedelta(seconds=1))
    consumer.run_once()
    assert is_ended(app, template)
    assert len(inbox.done) == 1


def test_a_look_that_comes_too_early_is_held_again(app, inbox, consumer):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON + timedelta(seconds=1))
    inbox.bodies = [due(template)]
    consumer.receive(NOW)

    app.clock.set(NOON - MICROSECOND)
    assert consumer.act(0.0) == {"not_due": 1}
    consumer.acknowledge(0.0)
    assert not is_ended(app, template)
    assert inbox.done == []

    turn(app, NOON + timedelta(seconds=1))
    consumer.run_once()
    assert is_ended(app, template)


def test_a_stale_message_is_acknowledged_and_ends_nothing(app, inbox, consumer):
    template = a_template(valid_until=NOON)
    app.execute(template)
    app.execute(change(template.template_id, until=EVENING))
    turn(app, NOON + timedelta(seconds=1))
    inbox.bodies = [due(template, at=NOON)]

    consumer.run_once()
    assert not is_ended(app, template)
    assert len(inbox.done) == 1


def test_the_same_message_many_times_ends_once(app, inbox, consumer):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON + timedelta(seconds=1))
    inbox.bodies = [due(template)] * 5

    assert consumer.run_once() == {"received": 5, "ended": 1, "found_ended": 4, "acknowledged": 5}
    assert not consumer.run_once()
    assert len(app.history(SHOP, template.template_id)) == 2
    assert len(inbox.done) == 5


def test_a_message_due_years_ahead_is_not_held_and_its_alarm_is_armed_again_in_time(app, inbox, consumer):
    template = a_template(valid_until=EVENING)
    app.execute(template)
    alarms = Alarms(app.database)
    alarms.claim(timedelta(days=1), 10)
    inbox.bodies = [due(template), due(template, at=EVENING.replace(year=2999))]

    consumer.run_once()
    assert len(inbox.done) == 2
    turn(app, EVENING - timedelta(seconds=60))
    assert [alarm.stream_id for alarm in alarms.claim(timedelta(days=1), 10)] == [template.template_id]


@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b"\xff\xfe",
        b"",
        b"[]",
        b'{"type":"Other","v":1}',
        b'{"type":"ExpiryDue","v":2,"stream_id":"01890000-0000-7000-8000-000000000001","due_at":"2026-03-01T12:00:00Z"}',
        b'{"type":"ExpiryDue","v":1,"stream_id":"01890000-0000-7000-8000-000000000001","due_at":"2026-03-01T12:00:00"}',
        to_wire(ExpiryDue(uuid4(), NOON)),
        b"x" * 10_000,
    ],
)
def test_what_cannot_be_acted_on_is_set_aside_with_its_reason_and_stops_nothing(app, inbox, consumer, body):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON + timedelta(seconds=1))
    inbox.bodies = [body, due(template)]

    consumer.run_once()

    (rejected,) = app.maintenance.rejected(10)
    assert rejected.body == body[:4096]
    assert rejected.reason
    assert is_ended(app, template)
    assert len(inbox.done) == 2


def test_receiving_pauses_while_there_is_no_room(app, inbox):
    consumer = consumer_of(app, inbox, max_held=2)
    templates = [a_template(valid_until=MORNING_SOON) for _ in range(3)]
    app.execute_many(templates)
    inbox.bodies = [due(template) for template in templates[:2]]
    consumer.receive(NOW)
    inbox.bodies = [due(templates[2])]

    assert not consumer.receive(NOW)
    assert inbox.bodies

    turn(app, EVENING)
    consumer.act(0.0)
    assert consumer.receive(NOW) == {"received": 1}


def test_while_postgresql_is_away_nothing_is_acknowledged_and_receiving_pauses(app, inbox):
    away = True

    def handle_due(stream_ids, cause, grace):
        if away:
            raise DatabaseUnavailable("it restarts")
        return app.runtime.deadlines.handle_due(stream_ids, cause, grace)

    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, EVENING)
    consumer = consumer_of(app, inbox, handle_due)
    inbox.bodies = [due(template)]
    consumer.receive(NOW)

    with pytest.raises(DatabaseUnavailable):
        consumer.act(0.0)
    inbox.bodies = [due(template)]
    assert not consumer.receive(NOW)
    assert not consumer.acknowledge(0.0)

    away = False
    consumer.act(0.0)
    assert is_ended(app, template)
    assert consumer.receive(NOW) == {"received": 1}


def test_one_stream_that_cannot_be_looked_at_now_stops_neither_the_others_nor_receiving(app, inbox):
    def handle_due(stream_ids, cause, grace):
        report = app.runtime.deadlines.handle_due(stream_ids, cause, grace)
        results = [
            Retry(OutcomeUnknown(uuid4())) if stream_id == bad.template_id else result
            for stream_id, result in zip(stream_ids, report.results, strict=True)
        ]
        return replace(report, results=results)

    bad, good, later = (a_template(valid_until=NOON) for _ in range(3))
    app.execute_many([good, later])
    turn(app, EVENING)
    consumer = consumer_of(app, inbox, handle_due)
    inbox.bodies = [due(bad), due(good)]
    consumer.receive(NOW)

    consumer.act(0.0)
    assert is_ended(app, good)
    inbox.bodies = [due(later)]
    assert consumer.receive(NOW) == {"received": 1}
    consumer.act(0.0)
    assert is_ended(app, later)


def test_an_unreadable_message_that_cannot_be_set_aside_yet_spoils_no_other(app, inbox):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, EVENING)
    consumer = consumer_of(app, inbox)
    inbox.bodies = [b"not JSON", due(template)]

    def away(rejected):
        raise DatabaseUnavailable("it restarts")

    consumer._rejected.add = away
    with pytest.raises(DatabaseUnavailable):
        consumer.receive(NOW)
    consumer.act(0.0)
    assert is_ended(app, template)


UNREADABLE = {
    "deeply nested": b"[" * 200_000,
    "deeply nested in a field that is ignored": b'{"type":"ExpiryDue","x":' + b"[" * 200_000,
    "no UTF-8": b'{"type":"\xff\xfe"}',
    "another type": b'{"type":"' + b"x" * 250_000 + b'"}',
    "a number for an id": b'{"type":"ExpiryDue","v":1,"stream_id":1,"due_at":"2026-03-01T12:00:00Z"}',
    "no time zone": b'{"type":"ExpiryDue","v":1,"stream_id":"%s","due_at":"2026-03-01T12:00:00"}'
    % str(uuid4()).encode(),
    "outside the calendar": b'{"type":"ExpiryDue","v":1,"stream_id":"%s","due_at":"0001-01-01T00:00:00+14:00"}'
    % str(uuid4()).encode(),
    "nothing": b"",
    "a huge number": b"1" * 100_000,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_whatever_cannot_be_read_is_rejected_and_spoils_nothing_received_with_it(app, consumer, inbox, body):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON)
    inbox.bodies = [body, due(template), body]
    consumer.receive(NOW)
    consumer.act(0.0)
    assert is_ended(app, template)

    first, second = app.maintenance.rejected()
    assert (first.body, first.body_bytes) == (body[:4096], len(body))
    assert max(len(each.reason) for each in (first, second)) <= 500
    consumer.acknowledge(0.0)
    assert len(inbox.done) == 3


def test_messages_of_unknown_streams_are_rejected_many_at_once(app, inbox, caplog):
    caplog.set_level("WARNING", logger="coupon_clock")
    turn(app, NOON)
    consumer = consumer_of(app, inbox, max_held=2_000)
    inbox.bodies = [to_wire(ExpiryDue(uuid4(), NOON)) for _ in range(400)]
    consumer.receive(NOW)
    assert consumer.act(0.0)["rejected"] == 400
    assert len(app.maintenance.rejected()) == 400
    assert [record.message.split(" action")[0] for record in caplog.records] == ["rejected"]
    (first, *_) = app.maintenance.rejected()
    assert b"ExpiryDue" in first.body, "as it was"


def test_what_is_held_keeps_no_body(app, consumer, inbox):
    template = a_template(valid_until=NOON)
    app.execute(template)
    turn(app, NOON - timedelta(seconds=5))
    inbox.bodies = [due(template)[:-1] + b',"padding":"' + b"x" * 250_000 + b'"}']
    consumer.receive(NOW)
    assert [len(held.delivery.body) for held in consumer._held.take_later(MORNING)] == [0]


def test_rejected_messages_are_bounded_the_oldest_go_first(app, monkeypatch):
    monkeypatch.setattr("coupon_clock.infrastructure.messaging.rejected.MOST_ROWS", 10)
    for start in (0, 8, 16):
        app.runtime.deadlines.rejected.add([(Delivery(str(n), b"x", None), "a test") for n in range(start, start + 8)])
    assert [each.message_id for each in app.maintenance.rejected()] == [str(n) for n in range(14, 24)]


def test_an_alarm_whose_message_came_too_early_is_published_again_once_it_can_be_held(app, consumer, inbox):
    """As where the broker's clock is ahead of PostgreSQL's."""
    template = a_template(valid_until=NOON)
    app.execute(template)
    alarms = Alarms(app.database)
    turn(app, NOON - timedelta(seconds=310))
    assert len(alarms.claim(timedelta(hours=1), 10)) == 1
    inbox.bodies = [due(template)]
    consumer.run_once()
    assert len(inbox.done) == 1
    assert alarms.claim(timedelta(hours=1), 10) == [], "it would come too early again"

    turn(app, NOON - timedelta(seconds=60))
    assert [alarm.stream_id for alarm in alarms.claim(timedelta(hours=1), 10)] == [template.template_id]


MORNING_SOON = a_template().valid_from + timedelta(seconds=50)


def test_at_a_stop_it_ends_what_is_due_soon_and_gives_the_rest_back_at_once(app, consumer, inbox):
    soon, later = a_template(valid_until=NOON), a_template(valid_until=NOON + timedelta(seconds=6))
    app.execute_many([soon, later])
    turn(app, NOON - timedelta(seconds=4))
    inbox.bodies = [due(later), due(soon)]
    consumer.receive(NOW)
    with ThreadPoolExecutor(1) as thread:
        leaving = thread.submit(consumer.leave, timedelta(seconds=5), 20)
        eventually(lambda: inbox.back)
        assert inbox.back == [due(later)]
        assert not leaving.done()
        turn(app, NOON)
        consumer.act(0.0)
        leaving.result(20)
    assert is_ended(app, soon)
    assert inbox.back == [due(later)]
    consumer.acknowledge_rest()
    assert inbox.done == [due(soon).decode()]


def test_at_a_stop_what_cannot_be_ended_in_time_is_given_back_too(app, consumer, inbox):
    app.execute(soon := a_template(valid_until=NOON))
    turn(app, NOON - timedelta(seconds=4))
    inbox.bodies = [due(soon)]
    consumer.receive(NOW)
    consumer.leave(timedelta(seconds=5), 0.1)
    assert inbox.back == [due(soon)]


def test_at_a_stop_without_postgresql_everything_is_given_back_at_once(app, inbox):
    def away(*arguments):
        raise DatabaseUnavailable("as if")

    consumer = consumer_of(app, inbox, away)
    turn(app, NOON - timedelta(seconds=4))
    inbox.bodies = [due(a_template(valid_until=NOON)), due(a_template(valid_until=NOON - timedelta(seconds=5)))]
    consumer.receive(NOW)
    with pytest.raises(DatabaseUnavailable):
        consumer.act(0.0)
    consumer.leave(timedelta(seconds=5), 20)
    assert len(inbox.back) == 2
