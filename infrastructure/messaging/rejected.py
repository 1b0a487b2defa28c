"""Messages that could not be acted on. Bounded: the oldest go first; the reconciler ends what they meant."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.pool import Pool

MOST_ROWS = 10_000
MOST_BYTES = 4_096

ADD = "INSERT INTO rejected_message (message_id, reason, body) VALUES (%s, %s, %s) RETURNING id"
BOUND = "DELETE FROM rejected_message WHERE id <= %s"


LIST = "SELECT id, message_id, reason, body, rejected_at FROM rejected_message ORDER BY id LIMIT %s"
DROP = "DELETE FROM rejected_message WHERE %(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s)"


class Rejected(NamedTuple):
    """One message set aside: `body` as received, up to 4 KB."""

    id: int
    message_id: str
    reason: str
    body: bytes
    rejected_at: datetime


class RejectedMessages:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def add(self, delivery: Delivery, reason: str) -> None:
        """Raises DatabaseUnavailable."""
        # PostgreSQL's text takes no NUL, and a reason may quote the message.
        row = (delivery.message_id, reason.replace("\0", "�"), delivery.body[:MOST_BYTES])
        with translate_errors(), self._pool.connection() as connection:
            ((number,),) = connection.execute(ADD, row)
            connection.execute(BOUND, (number - MOST_ROWS,))

    def oldest(self, limit: int) -> list[Rejected]:
        """Raises DatabaseUnavailable."""
        with translate_errors(), self._pool.connection() as connection:
            return [Rejected(*row) for row in connection.execute(LIST, (limit,), binary=True)]

    def drop(self, ids: Sequence[int] | None = None) -> int:
        """These, or all; answers how many there were. Raises DatabaseUnavailable."""
        with translate_errors(), self._pool.connection() as connection:
            return connection.execute(DROP, {"ids": None if ids is None else list(ids)}).rowcount
