"""When to try again: at once after the first failure, then ever later."""

from time import monotonic

FIRST = 0.1
LONGEST = 2.0
"""Seconds: short enough to be back soon after a broker is, long enough to cost nothing over a long outage."""


class Backoff:
    """Counts failures in a row. Not safe for several threads by itself."""

    def __init__(self) -> None:
        self.failures = 0
        self._until = 0.0

    def failed(self) -> None:
        rest = min(LONGEST, FIRST * 2 ** min(self.failures - 1, 10)) if self.failures else 0.0
        self.failures += 1
        self._until = monotonic() + rest

    def succeeded(self) -> None:
        self.failures = 0
        self._until = 0.0

    def remaining(self) -> float:
        """Seconds until the next try is due."""
        return max(0.0, self._until - monotonic())
