"""The alarm table: one row for each stream that has to be looked at, written by the append that makes it due.

`armed_at`: given to a broker that remembers. `leased_until`: given to one that forgets when its process ends. Rows are
taken with SKIP LOCKED, so nothing here waits for an append, nor makes one wait for long.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.bottom_scans import BottomScans
from coupon_clock.infrastructure.postgres.database import Database, fetch_one

# Materialized, all of these: a subquery that the plan repeats would lock more rows than its limit. The times in
# subqueries, because a volatile function would be compared row by row, with all alarms. What is due for more than two
# seconds is the reconciler's.
FREE = """
  WITH free AS MATERIALIZED (
       SELECT stream_id
         FROM {schema}.alarm
        WHERE armed_at IS NULL
          AND due_at <= (SELECT {schema}.now_utc() + %(ahead)s)
          AND due_at >= (SELECT CASE WHEN %(from_bottom)s THEN '-infinity' ELSE {schema}.now_utc() - interval '2 s' END)
          AND (leased_until IS NULL OR leased_until <= (SELECT {schema}.now_utc()))
        ORDER BY due_at
        LIMIT %(limit)s
          FOR NO KEY UPDATE SKIP LOCKED)
UPDATE {schema}.alarm
   SET WHAT
  FROM free
 WHERE alarm.stream_id = free.stream_id
RETURNING alarm.stream_id, alarm.due_at
"""
CLAIM = FREE.replace("WHAT", "armed_at = {schema}.now_utc()")
# Another process may take over a second past the end, or, of what is past that already, after a while: else it would be
# claimed again and again, as fast as the relay can, until the end is stored.
LEASE = FREE.replace(
    "WHAT",
    """leased_until = CASE WHEN due_at + interval '1 s' > {schema}.now_utc()
                           THEN due_at + interval '1 s' ELSE {schema}.now_utc() + interval '30 s' END""",
)

# Only where the due time is still the one that was claimed.
RELEASE = """
  WITH same AS MATERIALIZED (
       SELECT alarm.stream_id
         FROM {schema}.alarm
         JOIN unnest(%b, %b) AS claimed (stream_id, due_at) USING (stream_id, due_at)
          FOR NO KEY UPDATE OF alarm SKIP LOCKED)
UPDATE {schema}.alarm SET armed_at = NULL, leased_until = NULL FROM same WHERE alarm.stream_id = same.stream_id
"""

TURN_AWAY = RELEASE.replace("leased_until = NULL", "leased_until = due_at - %(hold)s").replace(
    "%b, %b", "%(ids)b, %(due_ats)b"
)

REARM = """
  WITH armed AS MATERIALIZED (
       SELECT stream_id
         FROM {schema}.alarm
        WHERE armed_at < %(before)s
        LIMIT %(limit)s
          FOR NO KEY UPDATE SKIP LOCKED)
UPDATE {schema}.alarm SET armed_at = NULL, leased_until = NULL FROM armed WHERE alarm.stream_id = armed.stream_id
"""


STUCK = """
SELECT count(*) AS streams, min(stuck_since) AS since, (array_agg(stuck_by ORDER BY stuck_since))[1] AS reason
  FROM {schema}.alarm
 WHERE stuck_since IS NOT NULL
   AND due_at <= (SELECT {schema}.now_utc())
"""


class Stuck(NamedTuple):
    """Streams that are due and could not be handled: how many, since when (None where there are none), and the first
    one's reason."""

    streams: int
    since: datetime | None
    reason: str | None


class Alarm(NamedTuple):
    """Look at `stream_id` at `due_at` (aware UTC)."""

    stream_id: UUID
    due_at: datetime


class Alarms:
    """Every method raises DatabaseUnavailable, and is safe to repeat."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bottom_scans = BottomScans()

    def claim(self, ahead: timedelta, limit: int) -> list[Alarm]:
        """Arms up to `limit` that are due within `ahead` and nobody has armed yet, and returns them, soonest first.

        What the caller does not hand on it must `release`; if it dies before, the reconciler ends them.
        """
        return self._claimed(CLAIM, ahead, limit)

    def lease(self, ahead: timedelta, limit: int) -> list[Alarm]:
        """The same for a broker that forgets: they are leased until a second past their end."""
        return self._claimed(LEASE, ahead, limit)

    def release(self, alarms: Sequence[Alarm]) -> int:
        """To be claimed again, by whoever comes first. Returns how many were still as they were claimed."""
        columns = arrays.uuids([a.stream_id for a in alarms]), arrays.timestamps([a.due_at for a in alarms])
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(RELEASE), columns).rowcount

    def turn_away(self, alarms: Sequence[Alarm], hold: timedelta) -> int:
        """The same, but not before they are due within `hold`: their messages came too early to be held."""
        parameters = {
            "ids": arrays.uuids([a.stream_id for a in alarms]),
            "due_ats": arrays.timestamps([a.due_at for a in alarms]),
            "hold": hold,
        }
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(TURN_AWAY), parameters).rowcount

    def rearm(self, before: datetime, limit: int) -> int:
        """Marks up to `limit` that were armed `before` unarmed: for a broker that lost its store. Returns how many."""
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(REARM), {"before": before, "limit": limit}).rowcount

    def stuck(self) -> Stuck:
        """Those that are left alone for a while."""
        with self._database.connection() as connection:
            return Stuck(*fetch_one(connection, self._database.sql(STUCK)))

    def _claimed(self, statement: str, ahead: timedelta, limit: int) -> list[Alarm]:
        started = monotonic()
        from_bottom = self._bottom_scans.due(started)
        parameters = {"ahead": ahead, "limit": limit, "from_bottom": from_bottom}
        with self._database.connection() as connection:
            claimed = [Alarm(*row) for row in connection.execute(self._database.sql(statement), parameters)]
        now = monotonic()
        if from_bottom:
            self._bottom_scans.took(now - started, len(claimed), now)
        return sorted(claimed, key=lambda alarm: alarm.due_at)
