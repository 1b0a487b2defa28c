"""An application, a runtime of one's own, or one of the eventsourcing library's, with a manual clock and nothing in the
background."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Generic, TypeVar

from coupon_clock.aggregates import DeadlineApplication
from coupon_clock.app import Application
from coupon_clock.deadlines import Deadlines
from coupon_clock.domain.decider import Command
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.log_reader import LogReader
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.runtime import Executed, Runtime
from coupon_clock.testing.clock import ManualClock

MOST_TICKS = 1_000
WAITING = {"not_due"}
"""What is held until an instant that does not come while the clock stands still."""
PAGE = 1_000

AnyEvent = TypeVar("AnyEvent")


@contextmanager
def open_test_application(database_url: str, now: datetime, **settings: Any) -> Iterator["TestApplication"]:
    """An application whose PostgreSQL thinks it is `now` (an aware time) until the clock is set.

    Only for a throw-away database.
    """
    given = Settings.load(database_url=database_url, **{"reconcile_grace": 0} | settings)
    clock = ManualClock(given, now)
    with TestApplication.open(given) as app:
        app.clock = clock
        app.reader = LogReader(app.store.recorder, 0)
        app.ticks = [app.runtime.deadlines.parts(MemoryBroker()).run_once]
        yield app


class TestApplication(Application):
    """An application with a manual clock and nothing in the background: `run_due` does what the loops would."""

    __test__ = False  # its name looks like a test to pytest
    clock: ManualClock
    ticks: list[Callable[[], Counts]]
    reader: LogReader
    refusal: CouponClockError | None = None

    def prepare(self, step: Any) -> None:
        """For `given`: a command that was executed before."""
        self.execute(step)

    def run_due(self) -> Counts:
        """Runs relay, consumer, reconciler and projectors until nothing is left to do at this time."""
        return run_due(self.runtime.deadlines, self.ticks)

    def happened(self) -> list[Event]:
        """All events since it was asked last, in the order of the log."""
        return news(self.runtime, self.reader)


class TestRuntime(Generic[Command, AnyEvent]):
    """An open runtime of one's own with a manual clock, and nothing in the background. Only in a throw-away
    database: `with open_orders(database_url=url) as runtime: orders = TestRuntime(runtime, now)`."""

    __test__ = False

    def __init__(self, runtime: Runtime[Any, Command, AnyEvent], now: datetime) -> None:
        self.runtime = runtime
        self.clock = ManualClock(runtime.settings, now)
        self.refusal: CouponClockError | None = None
        self._reader = LogReader(runtime.store.recorder, 0)
        self._ticks = [runtime.deadlines.parts(MemoryBroker()).run_once]

    def execute(self, command: Command) -> Executed[AnyEvent]:
        """As the runtime does."""
        return self.runtime.execute(command)

    def prepare(self, step: Any) -> None:
        """For `given`: a command that was executed before."""
        self.execute(step)

    def run_due(self) -> Counts:
        """Runs relay, consumer, reconciler and projectors until nothing is left to do at this time."""
        return run_due(self.runtime.deadlines, self._ticks)

    def happened(self) -> list[AnyEvent]:
        """All events since it was asked last, in the order of the log."""
        return news(self.runtime, self._reader)


class TestDeadlines:
    """Those of an open DeadlineApplication with a manual clock, and nothing in the background. Only in a throw-away
    database: `with Trials({"COUPON_CLOCK_DATABASE_URL": url}) as trials: deadlines = TestDeadlines(trials, now)`."""

    __test__ = False

    def __init__(self, application: DeadlineApplication, now: datetime) -> None:
        self._deadlines = application.deadlines
        self.clock = ManualClock(self._deadlines.settings, now)
        self._ticks = [self._deadlines.parts(MemoryBroker()).run_once]

    def run_due(self) -> Counts:
        """Runs relay, consumer and reconciler until nothing is left to do at this time."""
        return run_due(self._deadlines, self._ticks)


# ── ticks ────────────────────────────────────────────────────────────────────────────────────────


def run_due(deadlines: Deadlines, ticks: Sequence[Callable[[], Counts]]) -> Counts:
    """Runs these in turn until nothing is left to do at this time; for one log alone, its `parts(…).run_once`."""
    deadlines.learn_time()
    done = Counts()
    for _ in range(MOST_TICKS):
        counts = sum((tick() for tick in ticks), Counts())
        if not set(counts) - WAITING - {"failed"}:
            streams, _, reason = deadlines.alarms.stuck()
            if streams:
                raise AssertionError(f"{streams} of the streams that are due fail: {reason}")
            if not counts["failed"]:
                return done
        done += counts
    raise AssertionError(f"still busy after {MOST_TICKS} ticks: {done}")


def news(runtime: Runtime[Any, Any, AnyEvent], reader: LogReader) -> list[AnyEvent]:
    """The events that this reader has not read yet, in the order of the log."""
    events: list[AnyEvent] = []
    while page := reader.page(PAGE).events:
        events += [runtime.store.envelope(stored).event for stored in page]
    return events
