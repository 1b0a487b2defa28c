"""Applies the log to a projection: rows and checkpoint in one transaction, one batch at a time."""

from time import monotonic
from typing import Any, Literal

import structlog
from msgspec import Struct

from coupon_clock.infrastructure.event_store.store import EventStore, UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.projections.engine.fold import folded_by_key
from coupon_clock.projections.engine.projection import Projection, ReadModelOutdated, position, same_shape
from coupon_clock.projections.engine.tables import load, save

BATCH = 2_000
LONG_GAP_S = 1.0
ASK_EVERY_S = 5.0

log = structlog.get_logger()


class Standing(Struct, frozen=True):
    """`blocked`: at an event that cannot be read, at a table that other code made, or for long at a gap in the log.
    `standing by`: another process applies this projection, or nobody did yet."""

    state: Literal["blocked", "behind", "caught up", "standing by"] = "standing by"
    why: str | None = None


class Projector:
    """Follows the log as `table`: the live one, or the shadow that a rebuild fills.

    `batch`: events a transaction. `long_gap_s`: seconds at an undecided gap after which it counts as blocked.
    """

    def __init__(
        self,
        store: EventStore[Any],
        projection: Projection[Any],
        table: str | None = None,
        batch: int = BATCH,
        long_gap_s: float = LONG_GAP_S,
    ) -> None:
        self._database = store.database
        self._projection = projection
        self._table = table or projection.name
        self._long_gap_s = long_gap_s
        self._subscription = Subscription(store, self._table, "projection", self._apply, batch)
        self._asked_at = float("-inf")
        self.standing = Standing()
        self.release = self._subscription.release
        self.paced = self._subscription.paced

    def run_once(self) -> Counts:
        """Applies one batch. Raises UnreadableEvent and ReadModelOutdated, where it stops until other code comes:
        nothing is ever skipped. Raises CheckpointLost, DatabaseUnavailable: run it again."""
        try:
            followed = self._subscription.run_once()
        except (UnreadableEvent, ReadModelOutdated) as error:
            self._stand(Standing("blocked", str(error)))
            raise
        self._stand(self._standing(followed))
        return followed

    def _apply(self, batch: Batch[Any]) -> None:
        schema, projection, table = self._database.schema, self._projection, self._table
        with self._database.connection() as connection, connection.transaction():
            batch.advance(connection)
            position(connection, schema, projection, table)  # raises where other code made the rows
            with same_shape(projection):
                keys = {projection.key(envelope) for envelope in batch.envelopes}
                rows = load(connection, schema, projection, table, keys)
                changed = folded_by_key(projection, batch.envelopes, rows)
                save(connection, schema, projection, table, list(changed.values()))

    def _standing(self, followed: Counts) -> Standing:
        lag = self._subscription.lag
        if lag.blocked_for is not None and lag.blocked_for > self._long_gap_s:
            return Standing("blocked", "a transaction has drawn a position and is not done yet")
        if followed or lag.events:
            return Standing("behind" if lag.events else "caught up")
        if monotonic() - self._asked_at > ASK_EVERY_S:
            self._asked_at = monotonic()
            return Standing("caught up" if self._subscription.lease.is_held() else "standing by")
        return self.standing

    def _stand(self, standing: Standing) -> None:
        """Logs once that it is blocked, and once that it goes on."""
        if standing != self.standing and "blocked" in (standing.state, self.standing.state):
            write = log.error if standing.state == "blocked" else log.info
            write(standing.state, action="project", projection=self._table, why=standing.why)
        self.standing = standing
