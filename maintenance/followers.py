"""Projections and followers of the log as they are, and what a person can do for a follower that is stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from coupon_clock.domain import arguments
from coupon_clock.domain.errors import CouponClockError, Problem
from coupon_clock.infrastructure.event_store.checkpoint import Kind
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.database import Schema

LIST = """
SELECT stored.name, kind, position, greatest(log.highest - position, 0) AS behind,
       (SELECT extract(epoch FROM {schema}.now_utc() - next.recorded_at)::float8
          FROM {schema}.event AS next
         WHERE next.notification_id > stored.position
         ORDER BY next.notification_id LIMIT 1) AS behind_s,
       who AS held_by, taken_at AS held_since, working_since, beyond_log, stopped_by, stopped_at,
       (SELECT count(*) FROM {schema}.skipped_event WHERE follower = stored.name) AS skipped
  FROM {schema}.checkpoint AS stored
 CROSS JOIN (SELECT coalesce(max(notification_id), 0) AS highest FROM {schema}.event) AS log
  LEFT JOIN {schema}.lease USING (name)
 ORDER BY kind DESC, name
"""
LOCK = "SELECT kind, position, beyond_log FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"
EVENT_EXISTS = "SELECT EXISTS (SELECT FROM {schema}.event WHERE notification_id = %s)"
SKIP = """
INSERT INTO {schema}.skipped_event (follower, position, skipped_by, reason) VALUES (%s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
SKIPPED = """
SELECT position, skipped_by, reason, skipped_at FROM {schema}.skipped_event WHERE follower = %s ORDER BY position
"""
RESTART = """
UPDATE {schema}.checkpoint
   SET position = %s, build = build + 1, beyond_log = false, stopped_by = NULL, stopped_at = NULL
 WHERE name = %s
"""
FORGET = """
WITH skipped AS (DELETE FROM {schema}.skipped_event WHERE follower = %(name)s),
     leased  AS (DELETE FROM {schema}.lease WHERE name = %(name)s)
DELETE FROM {schema}.checkpoint WHERE name = %(name)s
"""
LONGEST_REASON = 500


class Follower(NamedTuple):
    """`behind`: positions up to the end of the log; `behind_s`: seconds since the next event was recorded, None at the
    end. `held_by`: the process that follows or did last; `working_since`: since when it has one batch in hand, if
    that takes some seconds. `stopped_by`: what keeps it from going on."""

    name: str
    kind: Kind
    position: int
    behind: int
    behind_s: float | None
    held_by: str | None
    held_since: datetime | None
    working_since: datetime | None
    beyond_log: bool
    stopped_by: str | None
    stopped_at: datetime | None
    skipped: int

    @property
    def is_stopped(self) -> bool:
        return self.beyond_log or self.stopped_by is not None


class SkippedEvent(NamedTuple):
    """An event that a follower passed over, or will."""

    position: int
    skipped_by: str
    reason: str
    skipped_at: datetime


@dataclass(eq=False)
class UnknownFollower(CouponClockError):
    """No follower has the name {name}: `coupon-clock followers list` shows all."""

    name: str


def all_of(connection: Connection[TupleRow], schema: Schema) -> list[Follower]:
    """Returns projections and followers, by name."""
    with connection.cursor(row_factory=class_row(Follower)) as cursor:
        return cursor.execute(schema.sql(LIST)).fetchall()


def skip(store: EventStore[Any], name: str, position: int, skipped_by: str, reason: str) -> None:
    """Has a follower pass over the event at this position, which it has not taken in yet; kept with who and why.

    Raises InvalidArgument, UnknownFollower.
    """
    arguments.refuse(
        arguments.name("name", name),
        arguments.whole_number("position", position, 1),
        arguments.name("skipped_by", skipped_by),
        arguments.text("reason", reason, LONGEST_REASON),
    )
    schema = store.database.schema
    with store.database.connection() as connection, connection.transaction():
        at, _ = locked(connection, schema, name)
        arguments.refuse(_unskippable(connection, schema, at, position))
        connection.execute(schema.sql(SKIP), (name, position, skipped_by, reason))


def _unskippable(connection: Connection[TupleRow], schema: Schema, at: int, position: int) -> Iterator[Problem]:
    if position <= at:
        yield Problem("position", position, f"is behind the checkpoint, {at}")
    elif not connection.execute(schema.sql(EVENT_EXISTS), (position,)).fetchone()[0]:  # type: ignore[index]
        yield Problem("position", position, "is no event of the log")


def skipped(store: EventStore[Any], name: str) -> list[SkippedEvent]:
    """Returns what this follower passed over, or will, in position order. Raises InvalidArgument."""
    arguments.refuse(arguments.name("name", name))
    with store.database.connection() as connection, connection.cursor(row_factory=class_row(SkippedEvent)) as cursor:
        return cursor.execute(store.database.sql(SKIPPED), (name,)).fetchall()


def restart(store: EventStore[Any], name: str, position: int | Literal["now"]) -> int:
    """Has a follower go on after this position, wherever it is; "now": after all that is stored or under way.

    Returns the position. Raises InvalidArgument, UnknownFollower.
    """
    arguments.refuse(
        arguments.name("name", name), arguments.whole_number("position", position, 0) if position != "now" else ()
    )
    end = store.settled_end()
    if position != "now" and position > end:
        arguments.refuse([Problem("position", position, f"must not be beyond the end of the log, {end}")])
    to = end if position == "now" else position
    schema = store.database.schema
    with store.database.connection() as connection, connection.transaction():
        locked(connection, schema, name)
        connection.execute(schema.sql(RESTART), (to, name))
    return to


def forget(store: EventStore[Any], name: str) -> None:
    """Drops the checkpoint of a follower that is no longer there. One that is begins anew. Raises UnknownFollower."""
    arguments.refuse(arguments.name("name", name))
    schema = store.database.schema
    with store.database.connection() as connection, connection.transaction():
        locked(connection, schema, name)
        connection.execute(schema.sql(FORGET), {"name": name})


def locked(connection: Connection[TupleRow], schema: Schema, name: str) -> tuple[int, bool]:
    """Where the follower is, kept there until the transaction ends. Raises UnknownFollower, InvalidArgument."""
    found = connection.execute(schema.sql(LOCK), (name,)).fetchone()
    if found is None:
        raise UnknownFollower(name)
    kind, position, beyond_log = found
    if kind != "follower":
        problem = "is a projection: see `coupon-clock quarantine` and `coupon-clock rebuild`"
        arguments.refuse([Problem("name", name, problem)])
    return position, beyond_log
