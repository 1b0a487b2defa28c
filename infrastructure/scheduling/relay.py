"""Hands alarms to the broker before they are due. At least once; repeats are harmless."""

from datetime import timedelta

from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.logs import Failures, Log
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messaging.broker import Broker, BrokerUnavailable, PartlyStored
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.scheduling.alarms import Alarm, Alarms

BATCH = 2_000
"""Alarms that one round takes: in smaller ones the broker idles at the end of each."""

log = Log(__name__)


class Relay:
    """`lead`: how long before the end messages are to be delivered."""

    def __init__(self, alarms: Alarms, broker: Broker, clock: ServerClock, lead: timedelta) -> None:
        self._alarms = alarms
        self._broker = broker
        self._clock = clock
        self._lead = lead
        self._leased: set[Alarm] = set()
        self._failures = Failures(log)

    def run_once(self) -> Counts:
        """A crash before all is published leaves the rest to the reconciler."""
        claim = self._alarms.lease if self._broker.forgets else self._alarms.claim
        alarms = claim(self._broker.arming_window, BATCH)
        if not alarms:
            return Counts()
        stored = self._publish(alarms)
        now = self._clock.now()
        for alarm in stored:
            telemetry.late("armed", now - alarm.due_at + self._lead)
        if self._broker.forgets:
            self._remember(stored)
        return Counts(armed=len(stored))

    def release(self) -> None:
        """At a clean stop: what a forgetting broker holds is free for other processes at once."""
        self._alarms.release(list(self._leased))
        self._leased.clear()

    def _publish(self, alarms: list[Alarm]) -> list[Alarm]:
        """Those that are stored. What the broker did not take is free at once."""
        try:
            self._broker.publish([ExpiryDue(alarm.stream_id, alarm.due_at) for alarm in alarms], self._lead)
        except PartlyStored as partly:
            self._failures.report("partly stored", partly, True, action="publish", missing=len(partly.missing))
            missing = {Alarm(message.stream_id, message.due_at) for message in partly.missing}
            self._alarms.release(list(missing))
            return [alarm for alarm in alarms if alarm not in missing]
        except BrokerUnavailable:
            self._alarms.release(alarms)
            raise
        return alarms

    def _remember(self, alarms: list[Alarm]) -> None:
        now = self._clock.now()
        self._leased = {alarm for alarm in self._leased if alarm.due_at > now} | set(alarms)
