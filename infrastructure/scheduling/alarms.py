"""The alarm table: one row for each stream that has to be looked at, written by the append that makes it due.

`armed_at`: given to a broker that remembers. `leased_until`: some relay is busy with it, or gave it to a broker that
forgets. Rows are taken with SKIP LOCKED, so nothing here waits for an append, nor makes one wait for long.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from coupon_clock.infrastructure.postgres.database import Database

# Materialized, all of these: a subquery that the plan repeats would lock more rows than its limit.
CLAIM = """
  WITH free AS MATERIALIZED (
       SELECT stream_id
         FROM {schema}.alarm
        WHERE armed_at IS NULL
          AND due_at <= (SELECT {schema}.now_utc() + %(ahead)s)
          AND (leased_until IS NULL OR leased_until <= {schema}.now_utc())
        ORDER BY due_at
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED)
UPDATE {schema}.alarm
   SET leased_until = {schema}.now_utc() + %(lease)s
  FROM free
 WHERE alarm.stream_id = free.stream_id
RETURNING alarm.stream_id, alarm.due_at
"""

# What the three marks have in common: only where the due time is still the one that was sent.
SAME = """
  WITH same AS MATERIALIZED (
       SELECT alarm.stream_id
         FROM {schema}.alarm
         JOIN unnest(%(ids)b::uuid[], %(due_ats)b::timestamptz[]) AS sent (stream_id, due_at) USING (stream_id, due_at)
          FOR UPDATE OF alarm SKIP LOCKED)
"""
MARK_ARMED = f"""{SAME}
UPDATE {{schema}}.alarm
   SET armed_at = {{schema}}.now_utc(), leased_until = NULL
  FROM same
 WHERE alarm.stream_id = same.stream_id
"""
# What is past that already keeps the lease of its claim: with one that is over it would be claimed again and again, as
# fast as the relay can, until the end is stored.
LEASE_PAST_DUE = f"""{SAME}
UPDATE {{schema}}.alarm
   SET leased_until = due_at + interval '1 second'
  FROM same
 WHERE alarm.stream_id = same.stream_id
   AND due_at + interval '1 second' > {{schema}}.now_utc()
"""
RELEASE = f"""{SAME}
UPDATE {{schema}}.alarm SET armed_at = NULL, leased_until = NULL FROM same WHERE alarm.stream_id = same.stream_id
"""

REARM = """
  WITH armed AS MATERIALIZED (
       SELECT stream_id
         FROM {schema}.alarm
        WHERE armed_at < %(before)s
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED)
UPDATE {schema}.alarm SET armed_at = NULL, leased_until = NULL FROM armed WHERE alarm.stream_id = armed.stream_id
"""

# The time in a subquery, here and in CLAIM: being volatile, it would otherwise be compared row by row, with all alarms.
OVERDUE = """
SELECT stream_id, due_at
  FROM {schema}.alarm
 WHERE due_at <= (SELECT {schema}.now_utc() - %(grace)s)
   AND (due_at, stream_id) > (%(due_at)s, %(stream_id)s)
 ORDER BY due_at, stream_id
 LIMIT %(limit)s
"""

LEASE = timedelta(seconds=30)


class Alarm(NamedTuple):
    """Look at `stream_id` at `due_at` (aware UTC)."""

    stream_id: UUID
    due_at: datetime


class Alarms:
    """Every method raises DatabaseUnavailable, and is safe to repeat."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, ahead: timedelta, limit: int) -> list[Alarm]:
        """Up to `limit` that are due within `ahead` and nobody armed yet, soonest first; leased for 30 s."""
        return sorted(self._alarms(CLAIM, {"ahead": ahead, "limit": limit, "lease": LEASE}), key=lambda a: a.due_at)

    def mark_armed(self, alarms: Sequence[Alarm]) -> int:
        return self._mark(MARK_ARMED, alarms)

    def lease_past_due(self, alarms: Sequence[Alarm]) -> int:
        """For a broker that forgets: another process takes over a second past the end, if this one dies."""
        return self._mark(LEASE_PAST_DUE, alarms)

    def release(self, alarms: Sequence[Alarm]) -> int:
        """To be claimed again, by whoever comes first."""
        return self._mark(RELEASE, alarms)

    def rearm(self, before: datetime, limit: int) -> int:
        """Marks up to `limit` that were armed `before` unarmed: for a broker that lost its store. Returns how many."""
        return self._execute(REARM, {"before": before, "limit": limit})

    def overdue(self, grace: timedelta, after: Alarm, limit: int) -> list[Alarm]:
        """Up to `limit` that were due more than `grace` ago, in order of (due_at, stream_id), beyond `after`."""
        return self._alarms(
            OVERDUE, {"grace": grace, "due_at": after.due_at, "stream_id": after.stream_id, "limit": limit}
        )

    def _mark(self, statement: str, alarms: Sequence[Alarm]) -> int:
        return self._execute(statement, {"ids": [a.stream_id for a in alarms], "due_ats": [a.due_at for a in alarms]})

    def _alarms(self, statement: str, parameters: dict[str, object]) -> list[Alarm]:
        with self._database.connection() as connection:
            sql = self._database.sql(statement)
            rows = connection.execute(sql, parameters)
            return [Alarm(*row) for row in rows]

    def _execute(self, statement: str, parameters: dict[str, object]) -> int:
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(statement), parameters).rowcount
