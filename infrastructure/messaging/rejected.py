"""Messages that could not be acted on. Bounded: the oldest go first; the reconciler ends what they meant."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.database import Database

MOST_ROWS = 10_000
MOST_BYTES = 4_096
LONGEST_REASON = 500

ADD = """
INSERT INTO {schema}.rejected_message (message_id, reason, body, body_bytes) SELECT * FROM unnest(%b, %b, %b, %b)
RETURNING id
"""
BOUND = "DELETE FROM {schema}.rejected_message WHERE id <= %s"


LIST = """
SELECT id, message_id, reason, body, body_bytes, rejected_at
  FROM {schema}.rejected_message
 WHERE strpos(lower(reason), lower(%(reason)s)) > 0
 ORDER BY id
 LIMIT %(limit)s
"""
DROP = "DELETE FROM {schema}.rejected_message WHERE %(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s)"


class Rejected(NamedTuple):
    """One rejected message: `body` as received, up to 4 KB of its `body_bytes`."""

    id: int
    message_id: str
    reason: str
    body: bytes
    body_bytes: int
    rejected_at: datetime


class RejectedMessages:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rejected: Sequence[tuple[Delivery, str]]) -> None:
        """Each with the reason; both are cut. Raises DatabaseUnavailable."""
        columns = (
            arrays.packed(arrays.Texts, [storable(delivery.message_id) for delivery, _ in rejected]),
            arrays.packed(arrays.Texts, [storable(reason) for _, reason in rejected]),
            arrays.packed(arrays.Byteas, [delivery.body[:MOST_BYTES] for delivery, _ in rejected]),
            arrays.packed(arrays.Bigints, [len(delivery.body) for delivery, _ in rejected]),
        )
        with self._database.connection() as connection:
            last = max(number for (number,) in connection.execute(self._database.sql(ADD), columns))
            connection.execute(self._database.sql(BOUND), (last - MOST_ROWS,))

    def oldest(self, limit: int, reason: str = "") -> list[Rejected]:
        """Those whose reason contains that text, in any case. Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            parameters = {"reason": reason, "limit": limit}
            return [Rejected(*row) for row in connection.execute(self._database.sql(LIST), parameters)]

    def drop(self, ids: Sequence[int] | None = None) -> int:
        """Drops these, or all, and returns how many there were. Raises DatabaseUnavailable."""
        with self._database.connection() as connection:
            return connection.execute(self._database.sql(DROP), {"ids": None if ids is None else list(ids)}).rowcount


def storable(text: str) -> str:
    """PostgreSQL's text takes no NUL, UTF-8 no half of a surrogate pair, and a reason may quote the message."""
    return text[:LONGEST_REASON].replace("\0", "�").encode(errors="replace").decode()
