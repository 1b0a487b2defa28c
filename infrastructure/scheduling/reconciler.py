"""The safety net: ends what is overdue, whatever became of its message. No broker and no read model involved."""

from datetime import timedelta

import structlog

from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.scheduling.due_result import HandleDue

log = structlog.get_logger()


class Reconciler:
    """`grace`: how long after its end an alarm is left to its message."""

    def __init__(self, handle_due: HandleDue, grace: timedelta) -> None:
        self._handle_due = handle_due
        self._grace = grace

    def run_once(self) -> Counts:
        """Handles all that is overdue, so that one bad stream never hides the rest."""
        report = self._handle_due([], "reconciler", self._grace)
        if report.failures:
            first = str(report.failures[0].error)
            log.warning("not ended", action="reconcile", streams=len(report.failures), first=first)
        return +Counts(ended=report.ended, failed=len(report.failures))
