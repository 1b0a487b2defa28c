"""When to try again after failures in a row."""

from time import monotonic

FIRST_S = 0.1
LONGEST_S = 2.0
"""Short enough to be back soon after a server is, long enough to cost nothing over a long outage."""


class Backoff:
    """Not safe for several threads by itself. `at_once`: how many failures are tried again without a rest."""

    def __init__(self, at_once: int = 0) -> None:
        self._at_once = at_once
        self._until = 0.0
        self.failures = 0

    def failed(self) -> float:
        """Returns the seconds to rest: 0.1 at first, twice as many each time, 2 at most."""
        self.failures += 1
        rests = self.failures - self._at_once
        seconds = min(LONGEST_S, FIRST_S * 2 ** min(rests - 1, 10)) if rests > 0 else 0.0
        self._until = monotonic() + seconds
        return seconds

    def succeeded(self) -> None:
        self.failures = 0
        self._until = 0.0

    def remaining(self) -> float:
        """Returns the seconds until the next try is due."""
        return max(0.0, self._until - monotonic())
