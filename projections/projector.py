"""Applies the log to the read model: rows and checkpoint in one transaction, one batch at a time."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.database import Pool, available
from coupon_clock.infrastructure.event_store import Envelope, EventStore
from coupon_clock.infrastructure.follower import Batch, Follower
from coupon_clock.projections import read_model
from coupon_clock.projections.read_model import TemplateRow

BATCH = 2_000


class Projector:
    """Follows as `table`: the live read model, or a shadow that a rebuild fills."""

    def __init__(self, pool: Pool, store: EventStore[Event], table: str = read_model.NAME) -> None:
        self._pool = pool
        self._table = table
        self._follower = Follower(pool, store, table, self._apply, BATCH)
        self.run_once = self._follower.run_once
        self.release = self._follower.release
        self.identity = self._follower.identity

    def _apply(self, batch: Batch[Event]) -> None:
        with available(), self._pool.connection() as connection, connection.transaction():
            batch.advance(connection)
            ids = list({envelope.stream_id: None for envelope in batch.envelopes})
            rows = read_model.load_rows(connection, ids, self._table)
            read_model.save_rows(connection, folded(rows, batch.envelopes), self._table)


def folded(rows: Mapping[UUID, TemplateRow], envelopes: Iterable[Envelope[Event]]) -> list[TemplateRow]:
    """The rows that these events change, as they are after all of them."""
    changed: dict[UUID, TemplateRow] = {}
    for envelope in envelopes:
        row = changed.get(envelope.stream_id) or rows.get(envelope.stream_id)
        changed[envelope.stream_id] = read_model.fold(row, envelope)
    return list(changed.values())
