"""When scans of an index begin at its bottom, while a snapshot elsewhere keeps the dead entries there.

A scan walks over all entries that VACUUM could not remove yet: after 300,000 rows that came and went, for 150 ms.
"""

SLOW_S = 0.02
ROW_S = 0.000_1
"""So much longer may a scan take for each row that it finds."""
EVERY_S = 10.0


class BottomScans:
    """Always, as long as they are quick; else every 10 s, for what was committed late. `now`: a monotonic time."""

    def __init__(self) -> None:
        self._next_at = float("-inf")

    def due(self, now: float) -> bool:
        return now >= self._next_at

    def took(self, seconds: float, rows: int, now: float) -> None:
        """One that began at the bottom, and what it found."""
        if seconds > SLOW_S + ROW_S * rows:
            self._next_at = now + EVERY_S

    def repeat(self) -> None:
        """The next one, in any case: something may be left."""
        self._next_at = float("-inf")
