"""A decider alone, for given / when / then: no PostgreSQL, no clock but the one in hand."""

from datetime import datetime
from typing import Any, Generic
from uuid import UUID

from coupon_clock.domain.decider import Command, Decider, Event, State
from coupon_clock.domain.errors import CouponClockError


class DeciderSpec(Generic[State, Command, Event]):
    """One stream of that decider, at the time `now` (aware UTC), which may be set.

    spec = DeciderSpec(ORDERS, now=MORNING)
    given(spec, Placed(amount=1000, pay_until=NOON))
    when(spec, PayOrder(…))
    then(spec, Paid())
    """

    def __init__(self, decider: Decider[State, Command, Event], now: datetime) -> None:
        self.now = now
        self.state: State | None = None
        self.refusal: CouponClockError | None = None
        self._decider = decider
        self._new: list[Event] = []

    def prepare(self, step: Any) -> None:
        """An event that happened, or a command that was executed."""
        if isinstance(getattr(step, "command_id", None), UUID):
            self.execute(step)
        else:
            self.state = self._decider.evolve(self.state, step)

    def execute(self, command: Command) -> list[Event]:
        """Returns the events. Raises what the decider raises."""
        events = self._decider.decide(self.state, command, self.now)
        for event in events:
            self.state = self._decider.evolve(self.state, event)
        self._new += events
        return events

    def happened(self) -> list[Event]:
        """All events since it was asked last."""
        events, self._new = self._new, []
        return events
