"""A trial subscription that reminds, and then ends: an aggregate of the eventsourcing library with a deadline.

The first half is the library's own: an aggregate and an application. Added are `due_at`, `handle_due` and the base
class; the last lines start what calls them in time.
"""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventsourcing.domain import Aggregate, event

from coupon_clock.aggregates import DeadlineApplication


class Trial(Aggregate):
    @event("Started")
    def __init__(self, customer: str, ends_at: datetime, remind_at: datetime) -> None:
        self.customer = customer
        self.ends_at = ends_at
        self.remind_at = remind_at
        self.state = "running"

    @event("Subscribed")
    def subscribe(self) -> None:
        self.state = "subscribed"

    @event("Reminded")
    def remind(self) -> None:
        self.state = "reminded"

    @event("Ended")
    def end(self) -> None:
        self.state = "ended"

    @property
    def due_at(self) -> datetime | None:
        """When something is to be done next, if ever."""
        return {"running": self.remind_at, "reminded": self.ends_at}.get(self.state)

    def handle_due(self) -> None:
        """Called when `due_at` has come, and saved."""
        if self.state == "running":
            self.remind()
        else:
            self.end()


class Trials(DeadlineApplication):
    def start(self, customer: str, length: timedelta, now: datetime) -> UUID:
        trial = Trial(customer, ends_at=now + length, remind_at=now + length * 0.8)
        self.save(trial)
        return trial.id

    def trial(self, trial_id: UUID) -> Trial:
        return self.repository.get(trial_id)

    def subscribe(self, trial_id: UUID, now: datetime) -> bool:
        """Returns whether it was in time."""
        trial = self.trial(trial_id)
        if now >= trial.ends_at:
            return False
        trial.subscribe()
        self.save(trial)
        return True


def main() -> None:
    with Trials() as trials, trials.running():
        now = datetime.now(UTC)
        subscribed, ended = (trials.start(customer, timedelta(seconds=2), now) for customer in ("Ada", "Bob"))
        trials.subscribe(subscribed, now)
        while trials.trial(ended).state != "ended":
            time.sleep(0.1)
        print(f"Ada: {trials.trial(subscribed).state}. Bob: {trials.trial(ended).state}.")


if __name__ == "__main__":
    main()
