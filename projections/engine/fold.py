"""How rows come of events: the one way for the projector, rebuilds and checks."""

from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple

from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.projections.engine.projection import Key, Projection, Row


class Folded(NamedTuple, Generic[Row]):
    """`rows`: as they are after the events that change them; `failed`: of each stream the first event on which the fold
    raised, such as that of a stream which does not begin with its first event."""

    rows: dict[Key, Row]
    failed: list[UnreadableEvent]


def fold_stream(projection: Projection[Any], envelopes: Iterable[Envelope[Any]]) -> tuple[Any, UnreadableEvent | None]:
    """Returns the row of one stream after these events, which are all of it; where the fold raises, as it was before
    that event, None where that is the first."""
    row, fold = None, projection.fold
    for envelope in envelopes:
        try:
            row = fold(row, envelope)
        except Exception as error:
            return row, failure(envelope, error)
    return row, None


def fold_by_key(
    projection: Projection[Row], envelopes: Iterable[Envelope[Any]], rows: Mapping[Key, Row] | None = None
) -> Folded[Row]:
    """Returns the rows that these events change. Of a stream on which the fold raises nothing more is folded, where it
    has a row to itself; else that event alone is left out.

    `rows`: as they were before; without them, the events are the log from its beginning.
    """
    changed: dict[Key, Row] = {}
    failed: dict[Any, UnreadableEvent] = {}
    for envelope in envelopes:
        if projection.one_row_a_stream and envelope.stream_id in failed:
            continue
        try:
            key = projection.key(envelope)
            row = changed.get(key) or (rows.get(key) if rows else None)
            changed[key] = projection.fold(row, envelope)
        except Exception as error:
            failed.setdefault(envelope.stream_id, failure(envelope, error))
    return Folded(changed, list(failed.values()))


def failure(envelope: Envelope[Any], error: Exception) -> UnreadableEvent:
    reason = f"{type(error).__name__}: {error}"
    return UnreadableEvent(envelope.stream_id, envelope.version, envelope.position, reason)
