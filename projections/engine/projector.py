"""Applies the log to a projection: rows and checkpoint in one transaction, one batch at a time."""

from collections.abc import Iterable
from time import monotonic
from typing import Any, Literal

import structlog
from msgspec import Struct

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.projections.engine.projection import (
    Key,
    Projection,
    ReadModelOutdated,
    Row,
    refuse_other_fold,
    same_shape,
)
from coupon_clock.projections.engine.tables import load, save

BATCH = 2_000
LONG_GAP_S = 1.0
ASK_EVERY_S = 5.0

FOLD_VERSION = "SELECT fold_version FROM {schema}.checkpoint WHERE name = %s"

log = structlog.get_logger()


class Standing(Struct, frozen=True):
    """`blocked`: at an event that cannot be read, at a table that other code made, or for more than a second at a gap
    in the log. `standing by`: another process applies this projection, or nobody did yet."""

    state: Literal["blocked", "behind", "caught up", "standing by"] = "standing by"
    why: str | None = None


class Projector:
    """Follows as `table`: the live one, or the shadow that a rebuild fills."""

    def __init__(
        self,
        store: EventStore[Event],
        projection: Projection[Any],
        table: str | None = None,
        batch: int = BATCH,
    ) -> None:
        self._database = store.database
        self._projection = projection
        self._table = table or projection.name
        self._subscription = Subscription(store, self._table, self._apply, batch)
        self._asked_at = float("-inf")
        self.standing = Standing()
        self.release = self._subscription.release
        self.paced = self._subscription.paced

    def run_once(self) -> Counts:
        """One batch. Raises UnreadableEvent and ReadModelOutdated, where it stops until other code comes: nothing is
        ever skipped. Raises CheckpointLost, DatabaseUnavailable: run it again."""
        try:
            followed = self._subscription.run_once()
        except (UnreadableEvent, ReadModelOutdated) as error:
            self._stand(Standing("blocked", str(error)))
            raise
        self._stand(self._standing(followed))
        return followed

    def _apply(self, batch: Batch[Event]) -> None:
        with self._database.connection() as connection, connection.transaction():
            batch.advance(connection)
            (fold_version,) = fetch_one(connection, self._database.sql(FOLD_VERSION), self._table)
            refuse_other_fold(self._projection, fold_version)
            with same_shape(self._projection):
                keys = {self._projection.key(envelope) for envelope in batch.envelopes}
                rows = load(connection, self._database.schema, self._projection, self._table, keys)
                rows_after = folded(self._projection, rows, batch.envelopes)
                save(connection, self._database.schema, self._projection, self._table, rows_after)

    def _standing(self, followed: Counts) -> Standing:
        lag = self._subscription.lag
        if lag.blocked_for is not None and lag.blocked_for > LONG_GAP_S:
            return Standing("blocked", "a transaction has drawn a position and is not done yet")
        if followed or lag.events:
            return Standing("behind" if lag.events else "caught up")
        if monotonic() - self._asked_at > ASK_EVERY_S:
            self._asked_at = monotonic()
            return Standing("caught up" if self._subscription.checkpoint.is_leased() else "standing by")
        return self.standing

    def _stand(self, standing: Standing) -> None:
        """Said once each time it gets stuck, and once when it goes on."""
        if standing != self.standing and "blocked" in (standing.state, self.standing.state):
            say = log.error if standing.state == "blocked" else log.info
            say(standing.state, action="project", projection=self._table, why=standing.why)
        self.standing = standing


def folded(projection: Projection[Row], rows: dict[Key, Row], envelopes: Iterable[Envelope[Event]]) -> list[Row]:
    """The rows that these events change, as they are after all of them. Raises UnreadableEvent."""
    changed: dict[Key, Row] = {}
    for envelope in envelopes:
        key = projection.key(envelope)
        changed[key] = applied(projection, changed.get(key) or rows.get(key), envelope)
    return list(changed.values())


def applied(projection: Projection[Row], row: Row | None, envelope: Envelope[Event]) -> Row:
    """The row after one more event. Raises UnreadableEvent: for instance a stream that does not begin with Created."""
    try:
        return projection.fold(row, envelope)
    except Exception as error:
        raise unreadable(envelope, error) from error


def unreadable(envelope: Envelope[Event], error: Exception) -> UnreadableEvent:
    reason = f"{type(error).__name__}: {error}"
    return UnreadableEvent(envelope.stream_id, envelope.version, envelope.position, reason)
