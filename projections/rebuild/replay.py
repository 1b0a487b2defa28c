"""Folds the log into a shadow, chunk by chunk: whole streams in order of their ids, so that memory stays flat.

Several processes share the chunks. Each is written in one transaction together with the note that it is done, so that
whoever dies leaves a shadow that can be gone on with.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from coupon_clock.infrastructure.event_store.bulk_reader import CHUNK, IN_UTC, streams
from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.fold import failure, fold_stream
from coupon_clock.projections.engine.tables import complete, copy_in
from coupon_clock.projections.rebuild.run import Run, ShadowTakenOver, own

CLAIM = """
UPDATE {schema}.rebuild_chunk
   SET claimed_by = %s
 WHERE number = (SELECT number
                   FROM {schema}.rebuild_chunk
                  WHERE shadow = %s AND claimed_by IS NULL
                  ORDER BY number
                  LIMIT 1
                    FOR UPDATE SKIP LOCKED)
RETURNING number, after, through, (SELECT position FROM {schema}.checkpoint WHERE name = shadow)
"""

DONE = "UPDATE {schema}.rebuild_chunk SET events = %s WHERE number = %s AND claimed_by = %s AND events IS NULL"

FREE = "UPDATE {schema}.rebuild_chunk SET claimed_by = NULL WHERE shadow = %s AND events IS NULL"

REPLAYED = """
SELECT coalesce(sum(events), 0)::bigint, coalesce(sum(coalesce(events, planned)), 0)::bigint
  FROM {schema}.rebuild_chunk
 WHERE shadow = %s
"""


class Chunk(NamedTuple):
    """The events up to `position` of the streams whose ids are beyond `after`, None for from the first, up to and with
    `through`."""

    number: int
    after: UUID | None
    through: UUID
    position: int


def replay_chunks(run: Run) -> Iterator[int]:
    """Folds one chunk after the other until all are taken; yields the number of events of each.

    Raises ShadowTakenOver, and what psycopg raises.
    """
    me = uuid4()
    while chunk := claim(run, me):
        folded = folded_chunk(run, chunk)
        write(run, chunk, me, folded)
        run.after_step("chunk")
        yield folded.events


def claim(run: Run, me: UUID) -> Chunk | None:
    """Takes one that nobody has, None where there is none."""
    found = run.execute(CLAIM, me, run.shadow).fetchone()
    run.after_step("claim")
    return Chunk(*found) if found else None


class FoldedChunk(NamedTuple):
    """`rows`: each with the last event that it is made of; `events`: of how many all are made; `failed`: of each stream
    the first event that could not be taken in."""

    rows: list[tuple[Any, Envelope[Any]]]
    events: int
    failed: list[UnreadableEvent]


def folded_chunk(run: Run, chunk: Chunk) -> FoldedChunk:
    rows: list[tuple[Any, Envelope[Any]]] = []
    failed: list[UnreadableEvent] = []
    events = 0
    with run.connection.transaction():
        run.execute(IN_UTC)
        with streams(run.connection, run.store, CHUNK, chunk._asdict()) as found:
            for _, envelopes, unreadable in found:
                row, not_folded = fold_stream(run.projection, envelopes)
                if row is not None:
                    rows.append((row, envelopes[-1]))
                if first := not_folded or unreadable:
                    failed.append(first)
                events += len(envelopes)
    return FoldedChunk(rows, events, failed)


def write(run: Run, chunk: Chunk, me: UUID, folded: FoldedChunk) -> None:
    """Raises ShadowTakenOver where the chunk is not claimed by `me` any more."""
    try:
        _write(run, chunk, me, folded, copy_together)
    except quarantine.UNSTORABLE:
        _write(run, chunk, me, folded, copy_apart)


def _write(
    run: Run, chunk: Chunk, me: UUID, folded: FoldedChunk, copy: Callable[[Run, FoldedChunk], list[UnreadableEvent]]
) -> None:
    with run.connection.transaction():
        # What a crash takes back takes its note along; the swap waits for the disk.
        run.execute("SET LOCAL synchronous_commit = off")
        if run.execute(DONE, folded.events, chunk.number, me).rowcount != 1:
            raise ShadowTakenOver(run.projection.name)
        run.after_step("note")
        failed = [*folded.failed, *copy(run, folded)]
        first = quarantine.first_of_each_stream(failed)
        quarantine.add(run.connection, run.store.database.schema, run.shadow, first)


def copy_together(run: Run, folded: FoldedChunk) -> list[UnreadableEvent]:
    rows = (row for row, _ in folded.rows)
    copy_in(run.connection, run.store.database.schema, run.projection, run.shadow, rows)
    return []


def copy_apart(run: Run, folded: FoldedChunk) -> list[UnreadableEvent]:
    """Row by row, after all together were refused. Returns the last event of each that cannot be stored; where that is
    all of several, the error is raised."""
    failed = []
    for row, last in folded.rows:
        try:
            with run.connection.transaction():
                copy_in(run.connection, run.store.database.schema, run.projection, run.shadow, [row])
        except quarantine.UNSTORABLE as error:
            failed.append(failure(last, error))
            if len(failed) == len(folded.rows) > 1:
                raise
    return failed


def free(run: Run) -> None:
    """Gives back what the dead have claimed."""
    run.execute(FREE, run.shadow)


def replayed(run: Run) -> tuple[int, int]:
    """Returns how many events are done, of about how many."""
    done, planned = run.execute(REPLAYED, run.shadow).fetchone() or (0, 0)
    return done, planned


def index(run: Run, build: int) -> int:
    """Adds keys, indexes and statistics, in one go once all rows are in. Returns the events that were replayed.

    Raises ShadowTakenOver.
    """
    events, _ = replayed(run)
    run.progress("indexing", events, events)
    with run.connection.transaction():
        own(run, build)
        complete(run.connection, run.store.database.schema, run.projection.table(run.shadow))
        run.execute("DELETE FROM {schema}.rebuild_chunk WHERE shadow = %s", run.shadow)
        run.execute("UPDATE {schema}.checkpoint SET step = 'catch up' WHERE name = %s", run.shadow)
    run.after_step("index")
    return events
