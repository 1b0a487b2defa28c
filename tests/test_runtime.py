"""What the runtime makes of a decider. The rest of it is tested through the application and examples/."""

from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import pytest
from msgspec.structs import replace

import trials
from coupon_clock.domain.errors import InvalidCommand
from coupon_clock.infrastructure.command_handling.due import NothingDecided, StreamStuck
from coupon_clock.infrastructure.command_handling.handler import DeciderFailed
from coupon_clock.infrastructure.event_store.store import Unstorable
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.scheduling.due_result import Completed, Failed, NotDue
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.runtime import Runtime
from coupon_clock.testing import ManualClock, TestRuntime
from examples import MORNING, NOON
from programs import example

HOUR = timedelta(hours=1)
REMINDED_AND_OVER = [trials.Begun, trials.Reminded, trials.Over]


class Bug(Exception):
    """Of a decider."""


@pytest.fixture(scope="module")
def shop() -> ModuleType:
    return example("order_timeout")


@pytest.fixture
def orders(shop: ModuleType, database_url: str) -> Iterator[Runtime]:
    """Without prepared endings, so that the decider decides when the time has come."""
    with shop.open_orders(database_url=database_url) as orders:
        yield with_decider(orders, shop, prepares_ending=False)


def placed(orders: Runtime, shop: ModuleType, count: int) -> list[UUID]:
    commands = [shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1000) for _ in range(count)]
    orders.execute_many(commands)
    return [command.order_id for command in commands]


def with_decider(orders: Runtime, shop: ModuleType, **changed) -> Runtime:
    return Runtime(orders.database, replace(orders.decider, **changed), shop.Event)


# ── streams that are due several times ───────────────────────────────────────────────────────────


@pytest.fixture(params=[False, True], ids=["decided when due", "prepared where it can be"])
def trials_runtime(request: pytest.FixtureRequest, database_url: str) -> Iterator[TestRuntime]:
    settings = Settings.load(database_url=database_url, reconcile_grace=0)
    Runtime.migrate(settings)
    decider = replace(trials.TRIALS, prepares_ending=request.param)
    with Runtime.open(settings, decider, trials.Event) as runtime:
        yield TestRuntime(runtime, MORNING)


def test_a_stream_that_is_due_twice_is_looked_at_twice_each_time_when_it_is_due(trials_runtime):
    begun = [trials.begin(MORNING + n * HOUR, NOON) for n in (1, 2)]
    trials_runtime.runtime.execute_many(begun)

    for now, events in ((MORNING + HOUR, 1), (MORNING + 2 * HOUR, 1), (NOON, 2)):
        trials_runtime.happened()
        trials_runtime.clock.set(now)
        trials_runtime.run_due()
        assert len(trials_runtime.happened()) == events

    assert [events_of(trials_runtime, command.trial_id) for command in begun] == [REMINDED_AND_OVER] * 2


def test_after_an_outage_a_stream_catches_up_with_all_that_it_was_due_for(trials_runtime):
    begun = [trials.begin(MORNING + HOUR, MORNING + 2 * HOUR) for _ in range(10)]
    trials_runtime.runtime.execute_many(begun)

    trials_runtime.clock.set(NOON)
    trials_runtime.run_due()

    assert [events_of(trials_runtime, command.trial_id) for command in begun] == [REMINDED_AND_OVER] * 10
    with trials_runtime.runtime.database.connection() as connection:
        assert connection.execute("SELECT FROM coupon_clock.alarm").rowcount == 0


def events_of(runtime: TestRuntime, trial_id: UUID) -> list[type]:
    envelopes, _ = runtime.runtime.store.load(trial_id)
    return [type(envelope.event) for envelope in envelopes]


# ── a decider with a mistake ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", ["decide", "evolve", "due_at"])
def test_a_decider_that_fails_on_one_stream_makes_no_other_late(shop, orders, part):
    clock = ManualClock(orders.settings, MORNING)
    good, bad = placed(orders, shop, 9), uuid4()
    orders.execute(shop.PlaceOrder(command_id=uuid4(), order_id=bad, amount=666))

    def fails_on_one(*given):
        if "amount=666" in repr(given):
            raise Bug("a mistake")
        return getattr(shop.ORDERS, part)(*given)

    clock.set(MORNING + shop.PAYMENT_TIME)
    failure, *answers = (
        with_decider(orders, shop, **{part: fails_on_one}).deadlines.handle_due([bad, *good], "reconciler").results
    )
    assert isinstance(failure.error, DeciderFailed)
    assert "a mistake" in str(failure.error)
    assert answers == [Completed(ended_now=True)] * len(good)


def test_a_bug_is_reported_to_who_executes_with_its_cause(shop, orders):
    def fails(order, command, now):
        raise Bug("a mistake")

    mistaken = with_decider(orders, shop, decide=fails)
    with pytest.raises(DeciderFailed, match="Bug") as failure:
        mistaken.execute(shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1))
    assert isinstance(failure.value.__cause__, Bug)


def test_what_a_decider_gives_that_cannot_be_stored_spoils_no_other(shop, orders):
    naive = with_decider(orders, shop, due_at=lambda order: order.pay_until.replace(tzinfo=None))
    good, bad = (shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1) for _ in range(2))
    unspeakable = shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1, actor="\ud800")
    stored, refused = orders.execute_many([good, unspeakable])
    assert (stored.version, type(refused)) == (1, InvalidCommand)
    with pytest.raises(Unstorable):
        naive.execute(bad)


def test_ids_and_actors_that_could_never_be_read_again_are_refused(shop, orders):
    refused = orders.execute_many(
        [
            shop.PlaceOrder(command_id="one", order_id=uuid4(), amount=1, actor=5),
            None,
            shop.PlaceOrder(command_id=uuid4(), order_id="two", amount=1),
        ]
    )
    assert [[problem.field for problem in each.problems] for each in refused] == [
        ["command_id", "actor"],
        ["order_id"],
        ["order_id"],
    ]


def test_commands_may_come_from_a_generator(shop, orders):
    commands = (shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1) for _ in range(3))
    assert [executed.version for executed in orders.execute_many(commands)] == [1, 1, 1]


def test_a_look_whose_id_is_not_its_own_each_time_is_named(shop, orders):
    """It is taken for a repeat of the first, so that a second due time would never be acted on."""
    clock = ManualClock(orders.settings, MORNING)
    (order,) = placed(orders, shop, 1)
    stuck = with_decider(
        orders,
        shop,
        due_command=lambda order_id, _: shop.CancelUnpaidOrder(
            command_id=uuid5(NAMESPACE_OID, str(order_id)), order_id=order_id
        ),
        due_at=lambda state: state.pay_until,
    )
    clock.set(MORNING + shop.PAYMENT_TIME)
    assert stuck.deadlines.handle_due([order], "reconciler").results == [Completed(ended_now=True)]
    (again,) = stuck.deadlines.handle_due([order], "reconciler").results
    assert isinstance(again.error, NothingDecided)


def test_a_stream_that_cannot_be_looked_at_is_not_tried_again_without_pause(shop, orders):
    """With the broker in the process, whose alarms are only leased."""
    clock = ManualClock(orders.settings, MORNING)
    placed(orders, shop, 1)
    clock.set(MORNING + shop.PAYMENT_TIME + timedelta(hours=1))
    parts = with_decider(orders, shop, decide=lambda order, command, now: []).deadlines.parts(MemoryBroker())
    for _ in range(5):
        parts.relay.run_once()
        orders.store.learn_time()
        parts.consumer.run_once()
    assert len(orders.deadlines.rejected.oldest(100)) == 1


def test_a_decider_that_decides_nothing_when_due_is_named_and_its_message_set_aside(database_url):
    shop = example("order_timeout")
    with shop.open_orders(database_url=database_url) as opened:
        orders = with_decider(opened, shop, prepares_ending=False)
        clock = ManualClock(orders.settings, MORNING)
        order = shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1000)
        due_at = MORNING + shop.PAYMENT_TIME
        orders.execute(order)
        assert orders.deadlines.handle_due([order.order_id], "reconciler").results == [NotDue(due_at)]

        clock.set(due_at)
        idle = replace(orders.decider, decide=lambda order, command, now: [])
        forgetful = Runtime(orders.database, idle, shop.Event)
        parts = forgetful.deadlines.parts(MemoryBroker())
        parts.relay.run_once()
        forgetful.store.learn_time()
        assert parts.consumer.run_once()["rejected"] == 1
        (answer,) = forgetful.deadlines.handle_due([order.order_id], "reconciler").results
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, StreamStuck)
        assert f"{order.order_id} was due at" in str(answer.error)

        clock.advance(seconds=1)
        assert orders.deadlines.handle_due([order.order_id], "reconciler").results == [Completed(ended_now=True)]
        clock.advance(days=1)
        assert orders.deadlines.handle_due([order.order_id], "reconciler").results == [Completed(ended_now=False)]
