"""Folds the log into a shadow, chunk by chunk: whole streams in order of their ids, so that memory stays flat.

Chunks are planned once and shared by several processes. Each is written in one transaction together with the note that
it is done, so that whoever dies leaves a shadow that can be gone on with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from msgspec.structs import astuple
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.event_store.bulk_reader import CHUNK, streams
from coupon_clock.infrastructure.event_store.store import Envelope, EventStore
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.engine.projector import unreadable
from coupon_clock.projections.rebuild.binary_rows import HEADER, TRAILER, encoder

EVENTS_A_CHUNK = 10_000

CREATE = """
CREATE TABLE {schema}.{chunk} (
    number     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    after      uuid,
    through    uuid   NOT NULL,
    planned    bigint NOT NULL,
    claimed_by uuid,
    events     bigint
)
"""

LAST_STREAM = "SELECT originator_id FROM {schema}.event ORDER BY originator_id DESC LIMIT 1"

NEXT_CHUNK = """
SELECT originator_id, count(*) OVER ()
  FROM (SELECT originator_id
          FROM {schema}.event
         WHERE originator_id > %(after)s AND originator_id <= %(last)s
         ORDER BY originator_id
         LIMIT %(size)s) AS events
 ORDER BY originator_id DESC
 LIMIT 1
"""
FIRST_CHUNK = NEXT_CHUNK.replace("originator_id > %(after)s AND ", "")

CLAIM = """
UPDATE {schema}.{chunk}
   SET claimed_by = %s
 WHERE number = (SELECT number
                   FROM {schema}.{chunk}
                  WHERE claimed_by IS NULL
                  ORDER BY number
                  LIMIT 1
                    FOR UPDATE SKIP LOCKED)
RETURNING number, after, through
"""

DONE = "UPDATE {schema}.{chunk} SET events = %s WHERE number = %s AND claimed_by = %s AND events IS NULL"

FREE = "UPDATE {schema}.{chunk} SET claimed_by = NULL WHERE events IS NULL"

PROGRESS = """
SELECT coalesce(sum(events), 0)::bigint, coalesce(sum(coalesce(events, planned)), 0)::bigint
  FROM {schema}.{chunk}
"""


@dataclass(eq=False)
class ShadowTakenOver(CouponClockError):
    """Another rebuild of {name} took this one's shadow over: this one stops."""

    name: str


class Chunk(NamedTuple):
    """The streams whose ids are beyond `after`, None for from the first, up to and with `through`."""

    number: int
    after: UUID | None
    through: UUID


def plan(connection: Connection[TupleRow], schema: Schema, shadow: str) -> None:
    """Cuts the streams that exist into chunks of about 10,000 events. A later stream has only later events."""
    chunk = f"{shadow}_chunk"
    connection.execute(schema.sql(CREATE, chunk=chunk))
    found = connection.execute(schema.sql(LAST_STREAM)).fetchone()
    (last,) = found if found else (None,)
    through, statement = None, FIRST_CHUNK
    while through != last:
        (beyond, planned) = _next_chunk(connection, schema.sql(statement), through, last)
        connection.execute(
            schema.sql("INSERT INTO {schema}.{chunk} (after, through, planned) VALUES (%s, %s, %s)", chunk=chunk),
            (through, beyond, planned),
        )
        through, statement = beyond, NEXT_CHUNK


def _next_chunk(
    connection: Connection[TupleRow], statement: bytes, after: UUID | None, last: UUID | None
) -> tuple[UUID, int]:
    found = connection.execute(
        statement, {"after": after, "last": last, "size": EVENTS_A_CHUNK}, prepare=True
    ).fetchone()
    assert found is not None, "events are never deleted"
    return found[0], found[1]


def free(connection: Connection[TupleRow], schema: Schema, shadow: str) -> None:
    """Gives back what the dead have claimed."""
    connection.execute(schema.sql(FREE, chunk=f"{shadow}_chunk"))


def progress(connection: Connection[TupleRow], schema: Schema, shadow: str) -> tuple[int, int]:
    """How many events are done, of about how many."""
    found = connection.execute(schema.sql(PROGRESS, chunk=f"{shadow}_chunk")).fetchone()
    assert found is not None
    return found[0], found[1]


class Replay:
    """One worker: takes chunks as long as there are any. `position`: where the log ends for all of them."""

    def __init__(
        self,
        connection: Connection[TupleRow],
        store: EventStore[Event],
        projection: Projection[Any],
        position: int,
    ) -> None:
        self._connection = connection
        self._store = store
        self._projection = projection
        self._schema = store.database.schema
        self._shadow = projection.shadow
        self._position = position
        self._encode = encoder(projection.table(projection.shadow))
        self._identity = uuid4()

    def run_once(self) -> int | None:
        """Folds one chunk; answers with its events, None when all are taken.

        Raises UnreadableEvent, ShadowTakenOver, and what psycopg raises.
        """
        chunk = self._claim()
        if chunk is None:
            return None
        rows, events = self._folded(chunk)
        with self._connection.transaction():
            # What a crash takes back takes its note along; the swap waits for the disk.
            self._connection.execute("SET LOCAL synchronous_commit = off")
            done = self._schema.sql(DONE, chunk=f"{self._shadow}_chunk")
            if self._connection.execute(done, (events, chunk.number, self._identity)).rowcount != 1:
                raise ShadowTakenOver(self._projection.name)
            self._write(rows)
        return events

    def _claim(self) -> Chunk | None:
        found = self._connection.execute(
            self._schema.sql(CLAIM, chunk=f"{self._shadow}_chunk"), (self._identity,), prepare=True
        ).fetchone()
        return Chunk(*found) if found else None

    def _folded(self, chunk: Chunk) -> tuple[list[bytes], int]:
        parameters = {"after": chunk.after, "through": chunk.through, "position": self._position}
        rows, events = [], 0
        with streams(self._connection, self._store, CHUNK, parameters) as found:
            for _, envelopes in found:
                rows.append(self._encode(astuple(folded(self._projection, envelopes))))
                events += len(envelopes)
        return rows, events

    def _write(self, rows: list[bytes]) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(
                self._schema.sql("COPY {schema}.{shadow} FROM STDIN (FORMAT BINARY)", shadow=self._shadow)
            ) as copy,
        ):
            copy.write(HEADER + b"".join(rows) + TRAILER)


def folded(projection: Projection[Any], envelopes: list[Envelope[Event]]) -> Any:
    """The row of a whole stream. Raises UnreadableEvent."""
    row, fold = None, projection.fold
    for envelope in envelopes:
        try:
            row = fold(row, envelope)
        except Exception as error:
            raise unreadable(envelope, error) from error
    return row


class Pace:
    """Keeps to so many events a second, None for as fast as it goes."""

    def __init__(self, events_per_s: float | None, wait: Callable[[float], object]) -> None:
        self._events_per_s = events_per_s
        self._wait = wait
        self._started = monotonic()
        self._events = 0

    def passed(self, events: int) -> None:
        self._events += events
        if self._events_per_s:
            ahead = self._events / self._events_per_s - (monotonic() - self._started)
            if ahead > 0:
                self._wait(ahead)
