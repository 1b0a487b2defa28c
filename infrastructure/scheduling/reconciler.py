"""The safety net: ends what is overdue, whatever became of its message. No broker and no read model involved."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms
from coupon_clock.infrastructure.scheduling.due_result import Done, LookAt, TryAgain, Unanswerable

BATCH = 1_000
BEFORE_ALL = Alarm(UUID(int=0), datetime(1, 1, 1, tzinfo=UTC))

log = structlog.get_logger()


class Reconciler:
    """`grace`: how long after its end an alarm is left to its message."""

    def __init__(self, alarms: Alarms, look_at: LookAt, grace: timedelta) -> None:
        self._alarms = alarms
        self._look_at = look_at
        self._grace = grace

    def run_once(self) -> Counts:
        """One walk over all overdue alarms, so that one bad stream never hides the rest."""
        counts = Counts()
        after = BEFORE_ALL
        while overdue := self._alarms.overdue(self._grace, after, BATCH):
            counts += self._sweep(overdue)
            after = overdue[-1]
        return counts

    def _sweep(self, overdue: list[Alarm]) -> Counts:
        answers = self._look_at([alarm.stream_id for alarm in overdue], "sweep")
        failures = [answer for answer in answers if isinstance(answer, Unanswerable | TryAgain)]
        if failures:
            log.warning("not swept", action="sweep", streams=len(failures), first=str(failures[0].error))
        ended = sum(1 for answer in answers if isinstance(answer, Done) and answer.ended_now)
        return Counts({what: number for what, number in (("ended", ended), ("failed", len(failures))) if number})
