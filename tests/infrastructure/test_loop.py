"""A loop goes on whatever its work raises, and stops when asked to."""

from threading import Event, Thread
from time import monotonic

import pytest

from coupon_clock.domain.errors import CouponClockError, InvalidArgument
from coupon_clock.infrastructure.loop import Counts, Loop, LoopDied, join, start
from coupon_clock.infrastructure.notifier import Notifier
from waiting import eventually


def test_it_goes_on_after_errors_expected_or_not_and_stops_when_reported():
    stop, ticks = Event(), []
    troubles = [CouponClockError(), RuntimeError("a bug"), None, None]

    def run_once() -> Counts:
        ticks.append(1)
        trouble = troubles.pop(0) if troubles else stop.set()
        if trouble:
            raise trouble
        return Counts(done=1)

    Loop("test", run_once, 60, stop.wait).run_forever(stop)
    assert len(ticks) == 5


@pytest.mark.parametrize(("did", "waits"), [({"failed": 3}, True), ({"failed": 3, "ended": 1}, False), ({}, True)])
def test_only_work_that_succeeded_is_a_reason_to_tick_again_at_once(did, waits):
    stop, ticks = Event(), list[int]()

    def run_once() -> Counts:
        ticks.append(1)
        if len(ticks) == 3:
            stop.set()
        return Counts(did)

    pauses: list[float] = []
    Loop("test", run_once, 60, pauses.append).run_forever(stop)
    assert bool(pauses) is waits


def test_an_error_that_no_repetition_can_mend_ends_it():
    def run_once() -> Counts:
        raise InvalidArgument([])

    with pytest.raises(InvalidArgument):
        Loop("test", run_once, 60, Event().wait, final=(InvalidArgument,)).run_forever(Event())


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_loop_that_ends_by_itself_is_logged_and_told_and_the_others_go_on(end, caplog):
    stop, deaths, ticks = Event(), list[LoopDied](), []

    def die() -> Counts:
        token = "secret" + str(len(ticks))
        raise end(token[:0])

    def live() -> Counts:
        ticks.append(1)
        return Counts()

    threads = start([Loop("dying", die, 0, stop.wait), Loop("living", live, 0.001, stop.wait)], stop, deaths.append)
    join(threads[:1], monotonic() + 20)
    seen = len(ticks)
    eventually(lambda: len(ticks) > seen)
    stop.set()
    join(threads, monotonic() + 20)

    assert [(death.role, death.why) for death in deaths] == [("dying", end.__name__)]
    assert caplog.messages[0].startswith("died action=die role=dying\n  Traceback")
    assert "secret" not in caplog.text


def test_a_failure_of_the_loop_itself_is_told_too(caplog):
    stop, deaths = Event(), list[LoopDied]()

    def wait(seconds: float) -> None:
        raise MemoryError

    join(start([Loop("dying", Counts, 0, wait)], stop, deaths.append), monotonic() + 20)
    assert [death.why for death in deaths] == ["MemoryError"]


def test_a_ring_wakes_every_listener_once_also_one_that_was_busy():
    notifier = Notifier()
    first, second = notifier.subscribe(), notifier.subscribe()
    notifier.notify()

    woken = []
    threads = [Thread(target=lambda wait=wait: (wait(60), woken.append(1)), daemon=True) for wait in (first, second)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(woken) == 2)

    third = Thread(target=lambda: (first(60), woken.append(1)), daemon=True)
    third.start()
    notifier.notify()
    eventually(lambda: len(woken) == 3)
