"""How every loop runs: tick, back off, report, stop. What a loop does is its `run_once`."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread, get_ident, main_thread
from time import monotonic

import msgspec
from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.backoff import Backoff
from coupon_clock.infrastructure.logs import Failures, Log
from coupon_clock.infrastructure.notifier import Wait

Counts = Counter[str]
"""What one tick did, by name; empty when there was nothing to do."""
NO_PROGRESS = frozenset({"failed", "not_due", "unacknowledged"})
"""No reason to tick again at once."""

GARBAGE_THRESHOLDS = (50_000, 20, 20)
LONGEST_TURN_S = 0.0005

log = Log(__name__)


@dataclass(eq=False)
class LoopDied(CouponClockError):
    """The loop {role} of this process has ended by itself ({why}), so that its work is left undone here: start the
    process again; the log has the traceback."""

    role: str
    why: str


Died = Callable[[LoopDied], object]
"""Told in the thread that ends, while all others go on."""


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


class Ticks:
    """For how long each loop of a process has been in one tick. A tick that failed has ended too."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float | None] = {}

    def began(self, loop: str) -> None:
        self._since[loop, get_ident()] = monotonic()

    def ended(self, loop: str) -> None:
        self._since[loop, get_ident()] = None

    def in_hand(self) -> dict[str, float]:
        """Seconds by loop, 0 for one that waits; of several threads of one loop, the longest."""
        now, found = monotonic(), dict[str, float]()
        for (loop, _), since in list(self._since.items()):
            found[loop] = max(found.get(loop, 0.0), 0.0 if since is None else round(now - since, 1))
        return found


class Loop(Struct, frozen=True):
    """`run_once` until `stop`; at once again while it finds work, else after `idle` seconds, or when `wait` wakes.

    `name`: where a role has several loops. `final`: errors that a repetition cannot fix; they end the loop, and are
    raised. `failures`: shared by loops that fail alike. `ticks`: told when each begins and ends.
    """

    role: str
    run_once: Callable[[], Counts]
    idle: float
    wait: Wait
    name: str = ""
    final: tuple[type[Exception], ...] = ()
    failures: Failures = msgspec.field(default_factory=lambda: Failures(log))
    ticks: Ticks = msgspec.field(default_factory=Ticks)

    def run_forever(self, stop: Event, *also: Event) -> None:
        """Until one of these is set."""
        backoff = Backoff()
        process = os.getpid()
        while not any(each.is_set() for each in (stop, *also)):
            try:
                counts = self._ticked()
            except self.final:
                raise
            except Exception as error:
                if os.getpid() != process:
                    raise  # a handler forked: the loop is its parent's
                stop.wait(self._failed(error, backoff))
            else:
                if backoff.failures:
                    backoff.succeeded()
                    self.failures.over("works again", action="work", role=self.role)
                telemetry.count(self.role, counts)
                if not counts.keys() - NO_PROGRESS:
                    self.wait(self.idle)

    def _ticked(self) -> Counts:
        name = self.name or self.role
        self.ticks.began(name)
        try:
            return self.run_once()
        finally:
            self.ticks.ended(name)

    def _failed(self, error: Exception, backoff: Backoff) -> float:
        seconds = backoff.failed()
        telemetry.failed(self.role)
        expected = isinstance(error, CouponClockError)
        self.failures.report("failed, and tries again", error, expected, action="back_off", role=self.role)
        return seconds


def interrupt_main_thread(death: LoopDied) -> None:
    """As Ctrl-C does: a program ends, and a server stops serving in its usual way."""
    number = signal.SIGTERM if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIGINT
    signal.pthread_kill(main_thread().ident or 0, number)


def start(loops: Sequence[Loop], stop: Event, died: Died) -> list[Thread]:
    """Each in a thread of its own."""
    return [start_thread(loop.role, partial(loop.run_forever, stop), died) for loop in loops]


def start_thread(role: str, work: Callable[[], object], died: Died) -> Thread:
    """Whatever ends it before its work is done is logged and told, also what Python lets end a thread in silence."""
    process = os.getpid()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            if os.getpid() != process:
                raise  # a fork: all this is its parent's
            log.error("died", trace=error, action="die", role=role)
            died(LoopDied(role, type(error).__name__))

    thread = Thread(target=run, name=f"coupon-clock-{role}", daemon=True)
    thread.start()
    return thread


def join(threads: Sequence[Thread], until: float) -> None:
    """Waits for all until `time.monotonic()` is that; what still runs then waits for PostgreSQL, and ends by itself."""
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
