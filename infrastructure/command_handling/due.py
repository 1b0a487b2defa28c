"""What is due is ended: prepared endings a page in one statement, the rest loaded and decided, a few at a time."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Literal, NamedTuple
from uuid import UUID, uuid4

from coupon_clock.domain.decider import Command, Decider, Event, State
from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.command_handling.handler import EACH_WAIT, CommandHandler, Executed, Notify, Overtaken
from coupon_clock.infrastructure.event_store.recorder import DueStream, EndedPage, EventLogRecorder
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres.bottom_scans import BottomScans
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, StatementTooLong, TimedOut
from coupon_clock.infrastructure.postgres.server_clock import ServerClock

PAGE = 2_000
FALLBACK = 100
"""Short streams that are loaded and decided in one transaction."""
LONG_STREAM = 200
"""Events; a longer one goes alone, after all short ones."""
DECIDING_S = 1.0
"""How long one look loads and decides: what becomes due meanwhile waits for it."""
WORTH_A_LINE = 100
"""Streams that end at once."""
DUE_WAIT = timedelta(milliseconds=200)
"""Longest wait of a page for a writer that does not lock alarms: all that is due waits with it."""
BOTTOM = datetime(1, 1, 1, tzinfo=UTC)
FIRST_ID = UUID(int=0)
LATE_COMMIT = timedelta(seconds=2)
"""So long may an alarm be due before its commit shows it, and still be found by the next look."""

DueCause = Literal["message", "reconciler"]

log = Log(__name__)


@dataclass(eq=False)
class NothingDecided(CouponClockError):
    """Stream {stream_id} was due at {due_at}, and its decider gave no event: it must, or name a later time."""

    stream_id: UUID
    due_at: datetime


@dataclass(eq=False)
class UnknownStream(CouponClockError):
    """There is no stream {stream_id}: its message is of another system, or the log was restored to an earlier time."""

    stream_id: UUID


@dataclass(eq=False)
class StreamStuck(CouponClockError):
    """Stream {stream_id} is due and was left alone for a while, because it could not be handled: {reason}"""

    stream_id: UUID
    reason: str


PASSING = (DatabaseUnavailable, OutcomeUnknown, Overtaken, UnsafeLog)
"""Failures that are not the stream's own."""


class HandledStream(NamedTuple):
    """`ended`: now, by this, so long after it was due (None for a prepared ending). Else `due_at`: when it is due, None
    for never; or the `error` that kept it from being handled."""

    ended: bool = False
    late_by: timedelta | None = None
    due_at: datetime | None = None
    error: CouponClockError | None = None


Decide = Callable[[Sequence[DueStream], DueCause], Sequence[HandledStream]]
"""Loads these streams, which are due, and does what is due; what came of each, in order."""


class HandledDue(NamedTuple):
    """`ended`: how many streams; `decided`: what came of those that had no prepared ending, or another than is right
    now; `asked`: of each stream asked for, in order."""

    ended: int
    decided: dict[UUID, HandledStream]
    asked: list[HandledStream]


class DueHandler:
    """The one entrance for all that acts when an alarm is due. Safe to use from several threads.

    `decide`: for streams without a prepared ending, or with another than is right now. `all_prepared`: there are few.
    """

    def __init__(
        self, recorder: EventLogRecorder, clock: ServerClock, decide: Decide, notify: Notify, *, all_prepared: bool
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._bottom_scans = BottomScans()
        self._mark = BOTTOM  # below it the last complete look left nothing
        self._decide = decide
        self._all_prepared = all_prepared
        self._notify = notify

    def handle_due(self, stream_ids: Sequence[UUID], cause: DueCause, grace: timedelta) -> HandledDue:
        """Ends all that was due `grace` ago, soonest first, and tells what came of these streams.

        What has to be loaded gets a second; what is left then is found by the next look.
        Raises DatabaseUnavailable, UnsafeLog, AnswerLost.
        """
        lateness = telemetry.LATENESS.labels(cause)
        asked, ended = set(stream_ids), 0
        prepared: dict[UUID, HandledStream] = {}
        decided: dict[UUID, HandledStream] = {}
        mark = self._clock.now() - grace - LATE_COMMIT
        until = monotonic() + DECIDING_S
        for page in self._pages(asked, cause, grace):
            for seconds in page.lateness:
                lateness.observe(seconds)
            if page.lateness:
                self._notify(None)
            ended += len(page.lateness)
            prepared |= dict.fromkeys(page.ended, HandledStream(ended=True))
            mark = min([mark, *(each.due_at for each in page.others)])
            decided |= self._decided(page.others, cause, until)
            if monotonic() > until and not self._all_prepared:
                break  # what follows has to be decided too
        self._mark = mark
        ended += sum(each.ended for each in decided.values())
        if ended >= WORTH_A_LINE:
            log.info("ended", action="handle_due", streams=ended, cause=cause)
        return HandledDue(ended, decided, self._asked(stream_ids, decided | prepared))

    def _pages(self, asked: Set[UUID], cause: DueCause, grace: timedelta) -> Iterator[EndedPage]:
        """Beyond the last key, so that what cannot be ended at the head hides nothing."""
        started = monotonic()
        from_bottom = self._bottom_scans.due(started)
        try:
            page = self._page(DueStream(FIRST_ID, BOTTOM if from_bottom else self._mark), asked, cause, grace)
            if from_bottom:
                found = len(page.lateness) + len(page.others)
                self._bottom_scans.took(monotonic() - started, found, monotonic())
            yield page
            while page.last is not None:
                page = self._page(page.last, asked, cause, grace)
                yield page
        except BaseException:
            self._bottom_scans.repeat()
            raise

    def _page(self, after: DueStream, asked: Set[UUID], cause: DueCause, grace: timedelta) -> EndedPage:
        try:
            return self._recorder.end_due(after, PAGE, grace, asked, cause, DUE_WAIT)
        except TimedOut:
            due = self._recorder.select_due(after, PAGE, grace)
            page = self._recorder.end_each_stream(due, asked, cause, EACH_WAIT)
            return page._replace(last=due[-1] if len(due) == PAGE else None)

    def _decided(self, due: Sequence[DueStream], cause: DueCause, until: float) -> dict[UUID, HandledStream]:
        """Loaded and decided, short streams first, until it is that time. A stream that decides nothing has a wrong
        alarm, which is corrected; one that cannot be decided on is left alone for a while."""
        handled: dict[UUID, HandledStream] = {}
        for part in self._parts(due):
            if handled and monotonic() > until:
                break
            for each, outcome in zip(part, self._decide(part, cause), strict=True):
                handled[each.stream_id] = outcome
                if outcome.error is None and not outcome.ended and outcome.due_at != each.due_at:
                    self._recorder.correct_alarm(each.stream_id, each.due_at, outcome.due_at)
                if outcome.late_by is not None:
                    telemetry.LATENESS.labels(cause).observe(outcome.late_by.total_seconds())
            self._mark_stuck([(each, error) for each in part if (error := handled[each.stream_id].error)])
        return handled

    def _parts(self, due: Sequence[DueStream]) -> Iterator[Sequence[DueStream]]:
        """What is loaded together: not too many streams, and a long one alone."""
        if not due:
            return
        versions = self._recorder.select_versions([each.stream_id for each in due])
        short = [each for each in due if versions[each.stream_id] <= LONG_STREAM]
        for start in range(0, len(short), FALLBACK):
            yield short[start : start + FALLBACK]
        long = [each for each in due if versions[each.stream_id] > LONG_STREAM]
        yield from ([each] for each in sorted(long, key=lambda each: versions[each.stream_id]))

    def _mark_stuck(self, failed: Sequence[tuple[DueStream, CouponClockError]]) -> None:
        """What fails for a reason of its own, not because PostgreSQL is away or others are at work on it."""
        stuck = [(each, str(error)) for each, error in failed if not isinstance(error, PASSING) or is_too_long(error)]
        if stuck and (new := self._recorder.mark_stuck(stuck)):
            (first, *_) = [reason for each, reason in stuck if each.stream_id in new]
            log.warning("left alone for a while", action="handle_due", streams=len(new), first=first)

    def _asked(self, stream_ids: Sequence[UUID], handled: dict[UUID, HandledStream]) -> list[HandledStream]:
        """The others as their alarms are now: gone, not due yet, or held by somebody else."""
        others = [stream_id for stream_id in stream_ids if stream_id not in handled]
        for stream_id, exists, due_at, is_overdue, stuck_by in self._recorder.select_alarms(others) if others else []:
            if not exists:
                handled[stream_id] = HandledStream(error=UnknownStream(stream_id))
            elif stuck_by is not None:
                handled[stream_id] = HandledStream(error=StreamStuck(stream_id, stuck_by))
            elif is_overdue:
                handled[stream_id] = HandledStream(error=TimedOut("somebody else holds the alarm"))
            else:
                handled[stream_id] = HandledStream(due_at=due_at)
        return [handled[stream_id] for stream_id in stream_ids]


def is_too_long(error: CouponClockError) -> bool:
    """Alone, a stream whose load uses up the time of a statement will do so again."""
    return isinstance(error, StatementTooLong)


def decide_by(decider: Decider[State, Command, Event], commands: CommandHandler[State, Command, Event]) -> Decide:
    """By the decider's `due_command`, all in few transactions."""

    def decide(due: Sequence[DueStream], cause: DueCause) -> list[HandledStream]:
        looks = [decider.due_command(each.stream_id, uuid4()) for each in due]
        executed = commands.handle_many(looks, cause, DUE_WAIT)
        return [handled_stream(each, outcome) for each, outcome in zip(due, executed, strict=True)]

    return decide


def handled_stream(due: DueStream, executed: Executed[Event] | CouponClockError) -> HandledStream:
    if isinstance(executed, CouponClockError):
        return HandledStream(error=executed)
    if executed.events and not executed.repeated:
        return HandledStream(ended=True, late_by=executed.decided_at - due.due_at)
    if executed.was_due_at is not None and executed.was_due_at <= executed.decided_at:
        return HandledStream(error=NothingDecided(executed.stream_id, executed.was_due_at))
    return HandledStream(due_at=executed.was_due_at)
