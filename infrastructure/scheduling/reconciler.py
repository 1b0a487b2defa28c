"""The safety net: ends what is overdue, whatever became of its message. No broker and no read model involved."""

from datetime import timedelta
from time import monotonic

from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.scheduling.alarms import Alarms
from coupon_clock.infrastructure.scheduling.due_result import DueReport, HandleDue, Retry

SUMMARY_EVERY_S = 60.0

log = Log(__name__)


class Reconciler:
    """`grace`: how long after its end an alarm is left to its message. `summary_every_s`: how often it is logged what
    stays undone."""

    def __init__(
        self, handle_due: HandleDue, alarms: Alarms, grace: timedelta, summary_every_s: float = SUMMARY_EVERY_S
    ) -> None:
        self._handle_due = handle_due
        self._alarms = alarms
        self._grace = grace
        self._summary_every_s = summary_every_s
        self._retries_told_at = float("-inf")
        self._stuck_told_at = float("-inf")

    def run_once(self) -> Counts:
        """Handles all that is overdue, so that one bad stream never hides the rest."""
        report = self._handle_due([], "reconciler", self._grace)
        self._tell_retries(report)
        self._tell_stuck()
        return +Counts(ended=report.ended, failed=len(report.failures))

    def _tell_retries(self, report: DueReport) -> None:
        again = [failure.error for failure in report.failures if isinstance(failure, Retry)]
        if again and monotonic() - self._retries_told_at > self._summary_every_s:
            self._retries_told_at = monotonic()
            log.warning("not ended yet", action="reconcile", streams=len(again), first=again[0])

    def _tell_stuck(self) -> None:
        if monotonic() - self._stuck_told_at > self._summary_every_s:
            self._stuck_told_at = monotonic()
            streams, since, reason = self._alarms.stuck()
            if streams:
                log.warning("cannot be ended", action="reconcile", streams=streams, since=since, first=reason)
