"""PostgreSQL's time without asking for it each time: the host's monotonic clock plus what each load teaches.

Every load returns the server's time, read somewhere between its start and its end. So the offset lies between
`server - end` and `server - start`; what all recent loads agree on is narrower than any one of them. A load that
contradicts them means that a clock stepped or drifted: then it alone counts.
"""

from datetime import UTC, datetime, timedelta
from threading import Lock
from time import monotonic

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ServerClock:
    """`now()` is never ahead of the server as of the last load, and behind it by at most a round trip."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._least: float | None = None
        self._most = 0.0
        self._learnt_at = float("-inf")

    def learn(self, server_now: datetime, started: float, ended: float) -> None:
        """`started` and `ended`: `time.monotonic()` around the statement that read the server's time."""
        server = (server_now - EPOCH).total_seconds()
        least, most = server - ended, server - started
        with self._lock:
            if self._least is not None and max(least, self._least) <= min(most, self._most):
                least, most = max(least, self._least), min(most, self._most)
            self._least, self._most = least, most
            self._learnt_at = ended

    def now(self) -> datetime:
        """The server's time; the host's before the first load."""
        with self._lock:
            if self._least is None:
                return datetime.now(UTC)
            return EPOCH + timedelta(seconds=monotonic() + self._least)

    def age(self) -> float:
        """Seconds since the last load: hosts' clocks drift apart by some ten milliseconds in ten minutes."""
        return monotonic() - self._learnt_at

    def skew(self) -> float:
        """Seconds that the host's clock is ahead of the server's."""
        return (datetime.now(UTC) - self.now()).total_seconds()
