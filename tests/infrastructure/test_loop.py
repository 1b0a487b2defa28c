"""A loop goes on whatever its work raises, and stops when asked to."""

from threading import Event, Thread

import pytest

from coupon_clock.domain.errors import CouponClockError, InvalidArgument
from coupon_clock.infrastructure.loop import Counts, Loop
from coupon_clock.infrastructure.notifier import Notifier
from deadlines import eventually


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
