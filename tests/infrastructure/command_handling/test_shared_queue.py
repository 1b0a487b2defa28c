"""Commands of many callers go together, and nobody waits for what only one of them has to wait for."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from signal import SIGINT
from threading import Event, Thread, Timer
from uuid import uuid4

import pytest

from coupon_clock.app import Application
from coupon_clock.domain.coupon_template import COUPON_TEMPLATES
from coupon_clock.domain.errors import CouponTemplateNotFound, InvalidCommand, OutcomeUnknown
from coupon_clock.infrastructure.command_handling.handler import CommandHandler
from coupon_clock.infrastructure.command_handling.shared_queue import SharedQueue
from coupon_clock.infrastructure.postgres.errors import TimedOut
from examples import SHOP, ending_in, increase
from waiting import eventually


class Gate(CommandHandler):
    """Counts what goes together, and can be closed: what is appended then waits."""

    def __init__(self, app: Application) -> None:
        super().__init__(app.store, COUPON_TEMPLATES, notify=lambda _: None)
        self.open = Event()
        self.open.set()
        self.batches: list[int] = []

    def attempt(self, commands: Sequence, *arguments, **options):
        self.batches.append(len(commands))
        self.open.wait(20)
        return super().attempt(commands, *arguments, **options)


@pytest.fixture
def gate(live: Application) -> Gate:
    return Gate(live)


@pytest.fixture
def queue(gate: Gate) -> Iterator[SharedQueue]:
    queue = SharedQueue(gate, direct=1)
    yield queue
    gate.open.set()
    queue.close()


def in_background(queue: SharedQueue, command) -> tuple[Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(queue.handle(command))
        except Exception as error:
            outcome.append(error)

    thread = Thread(target=run)
    thread.start()
    return thread, outcome


def test_a_caller_alone_executes_by_itself(queue, gate):
    template = ending_in(3600)
    assert queue.handle(template).version == 1
    assert queue.handle(increase(template.template_id, by=1)).version == 2
    assert gate.batches == [1, 1]


def test_what_comes_while_others_are_under_way_goes_together(queue, gate):
    gate.open.clear()
    calls = [in_background(queue, ending_in(3600)) for _ in range(10)]
    eventually(lambda: sum(gate.batches) + len(queue._queue) == 10, within=20)
    gate.open.set()
    for thread, outcome in calls:
        thread.join(20)
        assert outcome[0].version == 1
    assert sum(gate.batches) == 10
    assert len(gate.batches) < 10


def test_each_gets_its_own_outcome_and_one_that_is_refused_spoils_no_other(live):
    template = ending_in(3600, stock=1)
    live.execute(template)

    def call(n: int) -> object:
        try:
            return live.execute(increase(template.template_id if n % 2 else uuid4(), by=1))
        except CouponTemplateNotFound as refusal:
            return refusal

    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(call, range(80)))
    assert sorted(each.version for each in outcomes[1::2]) == list(range(2, 42))
    assert all(isinstance(each, CouponTemplateNotFound) for each in outcomes[::2])
    assert [envelope.version for envelope in live.history(SHOP, template.template_id)] == list(range(1, 42))


def test_a_template_that_somebody_holds_is_waited_for_by_its_own_caller_only(live, queue, gate):
    held = ending_in(3600)
    live.execute(held)
    with live.database.connect() as caller, caller.transaction(force_rollback=True):
        caller.execute("SELECT FROM coupon_clock.alarm WHERE stream_id = %s FOR UPDATE", (held.template_id,))
        gate.open.clear()
        waiting = in_background(queue, increase(held.template_id, by=1))
        others = [in_background(queue, ending_in(3600)) for _ in range(8)]
        gate.open.set()
        for thread, outcome in others:
            thread.join(20)
            assert outcome[0].version == 1
        assert waiting[0].is_alive()
    waiting[0].join(20)
    assert waiting[1][0].version == 2


def test_a_command_without_a_stream_is_refused_before_it_could_spoil_others(queue):
    with pytest.raises(InvalidCommand, match="template_id must be a UUID"):
        queue.handle(increase("no id", by=1))


def test_a_callers_limit_takes_it_out_of_the_queue_and_once_sent_its_outcome_is_unknown(live, gate):
    queue = SharedQueue(gate, direct=0, limit_s=0.2)
    gate.open.clear()
    first = in_background(queue, ending_in(3600))
    eventually(lambda: gate.batches == [1], within=20)
    never_sent = ending_in(3600)
    second = in_background(queue, never_sent)
    second[0].join(20)
    first[0].join(20)
    assert isinstance(first[1][0], OutcomeUnknown)
    assert isinstance(second[1][0], TimedOut)
    gate.open.set()
    queue.close()
    eventually(lambda: not queue._server.is_alive(), within=20)
    with pytest.raises(CouponTemplateNotFound):
        live.history(SHOP, never_sent.template_id)


@pytest.mark.parametrize("death", [MemoryError(), SystemExit()], ids=repr)
def test_the_death_of_the_serving_thread_leaves_nobody_waiting_and_another_takes_over(live, death, caplog):
    class Dying(CommandHandler):
        dies = True

        def attempt(self, commands, *arguments, **options):
            if self.dies:
                self.dies = False
                raise death
            return super().attempt(commands, *arguments, **options)

    queue = SharedQueue(Dying(live.store, COUPON_TEMPLATES, notify=lambda _: None), direct=0)
    with pytest.raises(OutcomeUnknown):
        queue.handle(template := ending_in(3600))
    assert queue.handle(template).version == 1
    queue.close()
    assert "serving thread died" in caplog.text


def test_a_serving_thread_that_dies_between_two_batches_is_replaced(live, gate, monkeypatch):
    queue = SharedQueue(gate, direct=0)
    with monkeypatch.context() as broken:
        broken.setattr(queue, "_note_length", lambda outcome: 1 / 0)
        assert queue.handle(ending_in(3600)).version == 1
        eventually(lambda: queue._server is None, within=20)
    assert queue.handle(ending_in(3600)).version == 1
    queue.close()


def test_closing_lets_the_thread_end(queue, gate):
    gate.open.clear()
    calls = [in_background(queue, ending_in(3600)) for _ in range(3)]
    eventually(lambda: queue._server is not None, within=20)
    gate.open.set()
    queue.close()
    for thread, outcome in calls:
        thread.join(20)
        assert outcome[0].version == 1
    eventually(lambda: not queue._server.is_alive(), within=20)


def test_after_closing_callers_execute_by_themselves(queue):
    queue.close()
    assert queue.handle(ending_in(3600)).version == 1


def test_ctrl_c_takes_a_command_that_was_not_sent_out_of_the_queue(live, gate):
    queue = SharedQueue(gate, direct=0)
    gate.open.clear()
    first = in_background(queue, ending_in(3600))
    eventually(lambda: gate.batches == [1], within=20)
    withdrawn = ending_in(3600)
    interrupt = Timer(0.3, os.kill, (os.getpid(), SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        queue.handle(withdrawn)
    gate.open.set()
    first[0].join(20)
    queue.close()
    eventually(lambda: not queue._server.is_alive(), within=20)
    with pytest.raises(CouponTemplateNotFound):
        live.history(SHOP, withdrawn.template_id)
