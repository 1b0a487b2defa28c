"""Wakes loops that wait, within one process."""

from datetime import datetime
from threading import Condition
from typing import Protocol


class Wait(Protocol):
    """How a loop passes its idle time: until `seconds` are over, or something wakes it."""

    def __call__(self, seconds: float, /) -> object: ...


class Notifier:
    """Wakes all who listen. A ring is heard by each listener once, also one that was busy when it rang."""

    def __init__(self) -> None:
        self._rung = Condition()
        self._rings = 0

    def notify(self) -> None:
        with self._rung:
            self._rings += 1
            self._rung.notify_all()

    def subscribe(self) -> Wait:
        heard = self._rings

        def wait(seconds: float) -> None:
            nonlocal heard
            with self._rung:
                self._rung.wait_for(lambda: self._rings != heard, seconds)
                heard = self._rings

        return wait


class AppendNotifier:
    """Called after each append that stored something, with the earliest due time that it set, if any: wakes what
    follows the log, and the relay."""

    def __init__(self) -> None:
        self.log_grew = Notifier()
        self.alarms_changed = Notifier()

    def __call__(self, earliest_due_at: datetime | None) -> None:
        self.log_grew.notify()
        if earliest_due_at is not None:
            self.alarms_changed.notify()
