"""The safety net: ends what is overdue, whatever became of its message. No broker and no read model involved."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms
from coupon_clock.infrastructure.scheduling.due_result import Completed, Failed, HandleDue, Retry

BATCH = 1_000
BEFORE_ALL = Alarm(UUID(int=0), datetime(1, 1, 1, tzinfo=UTC))

log = structlog.get_logger()


class Reconciler:
    """`grace`: how long after its end an alarm is left to its message."""

    def __init__(self, alarms: Alarms, handle_due: HandleDue, grace: timedelta) -> None:
        self._alarms = alarms
        self._handle_due = handle_due
        self._grace = grace

    def run_once(self) -> Counts:
        """One walk over all overdue alarms, so that one bad stream never hides the rest."""
        counts = Counts()
        after = BEFORE_ALL
        while overdue := self._alarms.overdue(self._grace, after, BATCH):
            counts += self._reconcile(overdue)
            after = overdue[-1]
        return counts

    def _reconcile(self, overdue: list[Alarm]) -> Counts:
        answers = self._handle_due([alarm.stream_id for alarm in overdue], "reconciler")
        failures = [answer for answer in answers if isinstance(answer, Failed | Retry)]
        if failures:
            log.warning("not reconciled", action="reconciler", streams=len(failures), first=str(failures[0].error))
        ended = sum(1 for answer in answers if isinstance(answer, Completed) and answer.ended_now)
        return Counts({what: number for what, number in (("ended", ended), ("failed", len(failures))) if number})
