"""A loop goes on whatever its work raises, and stops when asked to."""

from threading import Event, Thread

from coupon_clock.domain.errors import CouponClockError
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
