"""Applies the log to a projection: rows and checkpoint in one transaction, one batch at a time."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Literal

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.infrastructure import telemetry
from coupon_clock.infrastructure.event_store.checkpoint import CheckpointBeyondLog
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore, UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.fold import fold_by_key
from coupon_clock.projections.engine.projection import Key, Projection, ReadModelOutdated, position, same_shape
from coupon_clock.projections.engine.tables import load, save

BATCH = 2_000
LONG_GAP_S = 1.0
ASK_EVERY_S = 5.0
RETRY_EVERY_S = 60.0
RETRIED_AT_ONCE = 100

log = Log(__name__)


class Standing(Struct, frozen=True):
    """`blocked`: at a table that other code made, beyond the end of the log, or for long at a gap in it.
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
        self._store = store
        self._database = store.database
        self._projection = projection
        self._table = table or projection.name
        self._long_gap_s = long_gap_s
        self._subscription = Subscription(store, self._table, "projection", self._apply, batch)
        self._asked_at = float("-inf")
        self._retry_at = float("-inf")
        self._retried = quarantine.FIRST
        self.name = self._table
        self.standing = Standing()
        self.release = self._subscription.release
        self.paced = self._subscription.paced

    def run_once(self) -> Counts:
        """Applies one batch. Raises ReadModelOutdated, where it stops until other code comes; CheckpointBeyondLog,
        until it is rebuilt. Raises CheckpointLost, DatabaseUnavailable: run it again."""
        try:
            followed = self._subscription.run_once()
            self._retry_quarantined()
        except (ReadModelOutdated, CheckpointBeyondLog) as error:
            self._stand(Standing("blocked", str(error)))
            raise
        self._stand(self._standing(followed))
        return followed

    def _apply(self, batch: Batch[Any]) -> None:
        try:
            self._applied(batch, save_together)
        except quarantine.UNSTORABLE:
            self._applied(batch, quarantine.save_apart)
        if batch.envelopes:
            telemetry.late("projected", self._store.clock.now() - batch.envelopes[0].recorded_at)

    def _applied(self, batch: Batch[Any], save_rows: quarantine.SaveRows) -> None:
        schema, projection, table = self._database.schema, self._projection, self._table
        with self._database.connection() as connection, connection.transaction():
            batch.advance(connection)
            position(connection, schema, projection, table)  # raises where other code made the rows
            failed, envelopes = batch.unreadable, batch.envelopes
            if projection.one_row_a_stream:
                touched = {each.stream_id for each in envelopes} | {each.stream_id for each in failed}
                envelopes = quarantine.readable_streams(batch, quarantine.among(connection, schema, table, touched))
            with same_shape(projection):
                rows = load(connection, schema, projection, table, keys(projection, envelopes))
                folded = fold_by_key(projection, envelopes, rows)
                unstored = save_rows(connection, schema, projection, table, folded.rows, envelopes)
            first_failed = quarantine.first_of_each_stream([*failed, *folded.failed, *unstored])
            quarantine.add(connection, schema, table, first_failed)

    def _retry_quarantined(self) -> None:
        """A few at a time, in turn: whether this code can take in what earlier code could not."""
        if not self._projection.one_row_a_stream or self._table != self._projection.name:
            return
        if monotonic() < self._retry_at or not self._subscription.lease.is_held():
            return
        with self._database.connection() as connection:
            schema, after = self._database.schema, (self._table, self._retried)
            some = quarantine.listed(connection, schema, self._table, after=after, limit=RETRIED_AT_ONCE)
        for each in some:
            quarantine.remake_row(self._store, self._projection, each.stream_id)
        is_last = len(some) < RETRIED_AT_ONCE
        self._retried = quarantine.FIRST if is_last else some[-1].stream_id
        self._retry_at = monotonic() + (RETRY_EVERY_S if is_last else 0)

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


def save_together(
    connection: Connection[TupleRow],
    schema: Schema,
    projection: Projection[Any],
    table: str,
    rows: Mapping[Key, Any],
    _: Sequence[Envelope[Any]],
) -> list[UnreadableEvent]:
    save(connection, schema, projection, table, list(rows.values()))
    return []


def keys(projection: Projection[Any], envelopes: Sequence[Envelope[Any]]) -> set[Key]:
    """Those of events that have one: of the others the fold tells."""
    found: set[Key] = set()
    for envelope in envelopes:
        with suppress(Exception):
            found.add(projection.key(envelope))
    return found
