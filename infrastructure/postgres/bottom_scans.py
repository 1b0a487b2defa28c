"""When scans of an index begin at its bottom, while a snapshot elsewhere keeps the dead entries there.

A scan walks over all entries that VACUUM could not remove yet: after 300,000 rows that came and went, for 150 ms. But
only scans from the bottom find what was committed late, or was locked until now, and that has to be ended soon too.
"""

SLOW_S = 0.02
ROW_S = 0.000_1
"""So much longer may a scan take for each row that it finds."""
PAUSES = 10
"""Times that a slow one took: they take up a tenth of the time at most."""
LONGEST_PAUSE_S = 10.0


class BottomScans:
    """Always, as long as they are quick. `now`: a monotonic time."""

    def __init__(self) -> None:
        self._next_at = float("-inf")
        self._last_s = 0.0

    def due(self, now: float) -> bool:
        return now >= self._next_at

    def took(self, seconds: float, rows: int, now: float) -> None:
        """One that began at the bottom, and what it found. A single slow one may have waited for the processor."""
        took_s = seconds - ROW_S * rows
        slow_s = min(took_s, self._last_s)
        self._last_s = took_s
        if slow_s > SLOW_S:
            self._next_at = now + min(LONGEST_PAUSE_S, PAUSES * slow_s)

    def repeat(self) -> None:
        """The next one, in any case: something may be left."""
        self._next_at = float("-inf")
