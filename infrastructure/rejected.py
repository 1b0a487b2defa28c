"""Messages set aside, because they cannot be acted on. Bounded: the oldest go first. The sweep ends their templates."""

from coupon_clock.infrastructure.broker import Delivery
from coupon_clock.infrastructure.database import Pool, available

MOST_ROWS = 10_000
MOST_BYTES = 4_096

ADD = "INSERT INTO rejected_message (message_id, reason, body) VALUES (%s, %s, %s) RETURNING id"
BOUND = "DELETE FROM rejected_message WHERE id <= %s"


class RejectedMessages:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def add(self, delivery: Delivery, reason: str) -> None:
        """Raises DatabaseUnavailable."""
        # PostgreSQL's text takes no NUL, and a reason may quote the message.
        row = (delivery.message_id, reason.replace("\0", "�"), delivery.body[:MOST_BYTES])
        with available(), self._pool.connection() as connection:
            ((number,),) = connection.execute(ADD, row)
            connection.execute(BOUND, (number - MOST_ROWS,))
