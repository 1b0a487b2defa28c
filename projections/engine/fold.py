"""How rows come of events: the one way for the projector, rebuilds and checks."""

from collections.abc import Iterable, Mapping
from typing import Any

from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.projections.engine.projection import Key, Projection, Row


def folded(projection: Projection[Any], envelopes: Iterable[Envelope[Any]], row: Any = None) -> Any:
    """Returns `row` after these events, which are all of its key. Raises UnreadableEvent: for instance a stream that
    does not begin with its first event."""
    fold = projection.fold
    for envelope in envelopes:
        try:
            row = fold(row, envelope)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UnreadableEvent(envelope.stream_id, envelope.version, envelope.position, reason) from error
    return row


def folded_by_key(
    projection: Projection[Row], envelopes: Iterable[Envelope[Any]], rows: Mapping[Key, Row] | None = None
) -> dict[Key, Row]:
    """Returns the rows that these events change, as they are after all of them. Raises UnreadableEvent.

    `rows`: as they were before; without them, the events are the log from its beginning.
    """
    changed: dict[Key, Row] = {}
    for envelope in envelopes:
        key = projection.key(envelope)
        row = changed.get(key) or (rows.get(key) if rows else None)
        changed[key] = folded(projection, (envelope,), row)
    return changed
