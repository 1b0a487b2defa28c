"""Messages that could not be acted on. Bounded: the oldest go first; the reconciler ends what they meant."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.postgres.database import Database

MOST_ROWS = 10_000
MOST_BYTES = 4_096

ADD = "INSERT INTO {schema}.rejected_message (message_id, reason, body) VALUES (%s, %s, %s) RETURNING id"
BOUND = "DELETE FROM {schema}.rejected_message WHERE id <= %s"


LIST = "SELECT id, message_id, reason, body, rejected_at FROM {schema}.rejected_message ORDER BY id LIMIT %s"
DROP = "DELETE FROM {schema}.rejected_message WHERE %(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s)"


class Rejected(NamedTuple):
    """One rejected message: `body` as received, up to 4 KB."""

    id: int
    message_id: str
    reason: str
    body: bytes
    rejected_at: datetime


class RejectedMessages:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, delivery: Delivery, reason: str) -> None:
        """Raises DatabaseUnavailable."""
        # PostgreSQL's text takes no NUL, and a reason may quote the message.
        row = (delivery.message_id, reason.replace("\0", "�"), delivery.body[:MOST_BYTES])
        with self._database.connection() as connection:
            ((number,),) = connection.execute(self._database.sql(ADD), row)
            connection.execute(self._database.sql(BOUND), (number - MOST_ROWS,))

    def oldest(self, limit: int) -> list[Rejected]:
        """Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            return [Rejected(*row) for row in connection.execute(self._database.sql(LIST), (limit,))]

    def drop(self, ids: Sequence[int] | None = None) -> int:
        """Drops these, or all, and returns how many there were. Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(DROP), {"ids": None if ids is None else list(ids)}).rowcount
