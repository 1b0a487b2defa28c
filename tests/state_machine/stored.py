"""What PostgreSQL holds, read with plain SQL and nothing of the product; and an example's database emptied."""

import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from state_machine.model import MONTH_COUNTS, UNREADABLE, Fields, Happened, LogEntry

TIMES = ("valid_from", "valid_until", "ended_at")
ROW = "shop_number, name, stock, valid_from, valid_until, reason, ended_at, version, position"
EMPTIED = (
    "event",
    "alarm",
    "coupon_template",
    "shop_month",
    "rejected_message",
    "lease",
    "rebuild_chunk",
    "quarantine",
    "skipped_event",
)

# Without the triggers that guard the log. A new database costs 160 ms, a new schema 65, TRUNCATE 25, and this 2.
UNGUARDED = "SET LOCAL session_replication_role = replica"
RESET = """
DELETE FROM coupon_clock.checkpoint WHERE name NOT IN ('coupon_template', 'shop_month');
UPDATE coupon_clock.checkpoint SET position = 0, stopped_by = NULL, stopped_at = NULL
"""


class Stored:
    """`connection`: autocommitting, of a superuser."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def empty(self) -> None:
        with self._connection.transaction():
            self._connection.execute(UNGUARDED)
            for table in EMPTIED:
                self._connection.execute(f"DELETE FROM coupon_clock.{table}".encode())
            self._connection.execute(RESET)

    def add_unreadable(self, stream_id: UUID, version: int) -> int:
        """As another writer could, who knows nothing of alarms. Returns its position."""
        found = self._connection.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)"
            " VALUES (%s, %s, 'CouponTemplate.Other', 'not JSON') RETURNING notification_id",
            (stream_id, version),
        )
        ((position,),) = found.fetchall()
        return int(position)

    def quarantine(self) -> set[tuple[str, UUID]]:
        return set(self._connection.execute("SELECT projection, stream_id FROM coupon_clock.quarantine").fetchall())

    def log(self) -> list[LogEntry]:
        found = self._connection.execute(
            "SELECT originator_id, originator_version, state, command_id, cause, recorded_at, notification_id"
            "  FROM coupon_clock.event ORDER BY originator_id, originator_version"
        )
        return [
            (stream_id, version, Happened(as_event(state), command_id, cause, recorded_at.astimezone(UTC), position))
            for stream_id, version, state, command_id, cause, recorded_at, position in found
        ]

    def checkpoints(self) -> dict[str, int]:
        return dict(self._connection.execute("SELECT name, position FROM coupon_clock.checkpoint").fetchall())

    def alarms(self) -> dict[UUID, tuple[datetime, int | None, Fields | None]]:
        """When each is due, the version and the ending that it carries."""
        found = self._connection.execute("SELECT stream_id, due_at, version, ending FROM coupon_clock.alarm")
        return {
            stream_id: (due_at.astimezone(UTC), version, as_event(ending) if ending else None)
            for stream_id, due_at, version, ending in found
        }

    def rows(self) -> dict[UUID, Fields]:
        found = self._connection.execute(f"SELECT template_id, {ROW} FROM coupon_clock.coupon_template".encode())
        return {key: dict(zip(ROW.split(", "), map(in_utc, row), strict=True)) for key, *row in found}

    def months(self) -> dict[tuple[int, date], Fields]:
        columns = ", ".join(MONTH_COUNTS)
        found = self._connection.execute(f"SELECT shop_number, month, {columns} FROM coupon_clock.shop_month".encode())
        return {(shop, month): dict(zip(MONTH_COUNTS, row, strict=True)) for shop, month, *row in found}


def as_event(state: bytes) -> Fields:
    """Without the prefix of its tag."""
    try:
        event = json.loads(state)
    except ValueError:
        return UNREADABLE
    event["type"] = event["type"].removeprefix("CouponTemplate.")
    return {key: datetime.fromisoformat(value) if key in TIMES else value for key, value in event.items()}


def in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value
