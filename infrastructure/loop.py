"""How every loop runs: tick, back off, report, stop. What a loop does is its `run_once`."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Event, Thread
from time import monotonic

import structlog
from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.backoff import Backoff
from coupon_clock.infrastructure.notifier import Wait

Counts = Counter[str]
"""What one tick did, by name; empty when there was nothing to do."""
NO_PROGRESS = frozenset({"failed", "not_due", "unacknowledged"})
"""No reason to tick again at once."""

GARBAGE_THRESHOLDS = (50_000, 20, 20)
LONGEST_TURN_S = 0.0005

log = structlog.get_logger()


def tune_interpreter() -> None:
    """For a process that runs nothing but loops, once all is imported; a host application's own to decide.

    A full garbage collection stops every thread for a tenth of a second, mostly to visit modules that never go: they
    are left out, and the rest is visited rarely. A thread whose instant has come waits for the interpreter no longer
    than a tenth of Python's usual 5 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    sys.setswitchinterval(LONGEST_TURN_S)


class Loop(Struct, frozen=True):
    """`run_once` until `stop`; at once again while it finds work, else after `idle` seconds, or when `wait` wakes.

    `final`: errors that no repetition can mend; they end the loop, and are raised.
    """

    role: str
    run_once: Callable[[], Counts]
    idle: float
    wait: Wait
    final: tuple[type[Exception], ...] = ()

    def run_forever(self, stop: Event, *also: Event) -> None:
        """Until one of these is set."""
        backoff = Backoff()
        process = os.getpid()
        while not any(each.is_set() for each in (stop, *also)):
            try:
                counts = self.run_once()
            except self.final:
                raise
            except Exception as error:
                if os.getpid() != process:
                    raise  # a handler forked: the loop is its parent's
                seconds = backoff.failed()
                self._report(error, seconds)
                stop.wait(seconds)
            else:
                backoff.succeeded()
                telemetry.count(self.role, counts)
                if not counts.keys() - NO_PROGRESS:
                    self.wait(self.idle)

    def _report(self, error: Exception, seconds: float) -> None:
        telemetry.failed(self.role)
        unexpected = not isinstance(error, CouponClockError)
        log.warning("again", action="back_off", role=self.role, seconds=seconds, why=str(error), exc_info=unexpected)


def start(loops: Sequence[Loop], stop: Event) -> list[Thread]:
    """Each in a thread of its own."""
    threads = [
        Thread(target=loop.run_forever, args=(stop,), name=f"coupon-clock-{loop.role}", daemon=True) for loop in loops
    ]
    for thread in threads:
        thread.start()
    return threads


def join(threads: Sequence[Thread], until: float) -> None:
    """Waits for all until `time.monotonic()` is that; what still runs then waits for PostgreSQL, and ends by itself."""
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
