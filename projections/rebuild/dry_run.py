"""Reads and folds all that a rebuild would, and writes nothing: can every event be read, and how long does it take?"""

from time import monotonic
from typing import Any

from msgspec import Struct

from coupon_clock.infrastructure.event_store.bulk_reader import in_position_order, snapshot, streams
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.infrastructure.progress import Progress
from coupon_clock.projections.engine.fold import fold_by_key, fold_stream
from coupon_clock.projections.engine.projection import Projection

PROGRESS_EVERY_ROWS = 10_000

LOG = "SELECT count(*), coalesce(max(notification_id), 0) FROM {schema}.event"


class DryRun(Struct, frozen=True):
    """What a rebuild would have to do; `failed`: streams with an event that cannot be taken in; `seconds`:
    for reading and folding, in one process."""

    projection: str
    events: int
    rows: int
    failed: int
    seconds: float


def dry_run(store: EventStore[Any], projection: Projection[Any], progress: Progress) -> DryRun:
    """Raises DatabaseUnavailable."""
    started, rows, done, failed = monotonic(), 0, 0, 0
    with snapshot(store.database) as (log,):
        (events, end) = fetch_one(log, store.database.sql(LOG))
        if projection.one_row_a_stream:
            with streams(log, store) as found:
                for rows, (_, envelopes, unreadable) in enumerate(found, 1):
                    _, not_folded = fold_stream(projection, envelopes)
                    failed += bool(not_folded or unreadable)
                    done += len(envelopes)
                    if rows % PROGRESS_EVERY_ROWS == 0:
                        progress("replaying", done, events)
        else:
            with in_position_order(log, store, end) as in_order:
                folded = fold_by_key(projection, in_order)
                rows, failed = len(folded.rows), len(folded.failed)
    return DryRun(projection.name, events, rows, failed, monotonic() - started)
