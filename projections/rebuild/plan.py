"""Decides up to where the log is replayed, and cuts it into chunks that several processes can share."""

from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.tables import complete, create_bare, drop
from coupon_clock.projections.rebuild.go_live import refuse_losses
from coupon_clock.projections.rebuild.run import Run

NextStep = Literal["replay", "catch up"]
"""What the checkpoint of a shadow has as its `step`, set in the transaction that does the step before."""

# `build` keeps the one that was interrupted from going on, if it did not die after all.
TAKE_UP = """
UPDATE {schema}.checkpoint
   SET build = build + 1
 WHERE name = %s AND step IS NOT NULL
RETURNING step, fold_version, build
"""

DECIDE = """
INSERT INTO {schema}.checkpoint AS earlier (name, kind, position, fold_version, step)
VALUES (%s, 'projection', %s, %s, %s)
    ON CONFLICT (name) DO UPDATE
   SET kind = excluded.kind, position = excluded.position, beyond_log = false,
       fold_version = excluded.fold_version, step = excluded.step,
       build = earlier.build + 1
RETURNING build
"""

# Before the shadow's table, as whoever else works on it does.
LOCK_SHADOW = "SELECT FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"

# Of the one that was interrupted: the lease of the rebuild stands for it.
FREE_SHADOW = "DELETE FROM {schema}.lease WHERE name = %s"

FIRST_CHUNK = """
INSERT INTO {schema}.rebuild_chunk (shadow, after, through, planned)
SELECT %(shadow)s, %(after)s, originator_id, count(*) OVER ()
  FROM (SELECT originator_id
          FROM {schema}.event
         ORDER BY originator_id
         LIMIT %(size)s) AS events
 ORDER BY originator_id DESC
 LIMIT 1
RETURNING through, planned
"""
NEXT_CHUNK = FIRST_CHUNK.replace("ORDER BY", "WHERE originator_id > %(after)s ORDER BY", 1)


@dataclass(eq=False)
class ShadowOfOtherFold(CouponClockError):
    """The interrupted rebuild of {name} had fold version {found}, here it is {needed}: begin anew, without --resume."""

    name: str
    found: int
    needed: int


class Plan(NamedTuple):
    """`build`: of the shadow's checkpoint, for as long as no other run takes it over."""

    next_step: NextStep
    build: int


def plan(run: Run) -> Plan:
    """Returns what is to be done next: of an interrupted rebuild that is resumed, what it had not done; otherwise a new
    shadow is begun, and what was left behind is dropped. Raises ShadowOfOtherFold."""
    projection = run.projection
    run.execute(FREE_SHADOW, run.shadow)
    if run.options.resume and (found := run.execute(TAKE_UP, run.shadow).fetchone()):
        interrupted_before, fold_version, build = found
        if fold_version != projection.fold_version:
            raise ShadowOfOtherFold(projection.name, fold_version, projection.fold_version)
        return Plan("replay" if interrupted_before == "replay" else "catch up", build)

    next_step: NextStep = "replay" if projection.one_row_a_stream else "catch up"
    position = run.store.settled_end() if projection.one_row_a_stream else 0
    schema, table = run.store.database.schema, projection.table(run.shadow)
    with run.connection.transaction():
        run.execute(LOCK_SHADOW, run.shadow)
        drop(run.connection, schema, run.shadow)
        run.execute("DELETE FROM {schema}.rebuild_chunk WHERE shadow = %s", run.shadow)
        quarantine.clear(run.connection, schema, run.shadow)
        create_bare(run.connection, schema, table)
        refuse_losses(run)
        if projection.one_row_a_stream:
            cut(run)
        else:
            complete(run.connection, schema, table)
        decided = run.store.database.sql(DECIDE)
        (build,) = fetch_one(run.connection, decided, run.shadow, position, projection.fold_version, next_step)
    return Plan(next_step, build)


def cut(run: Run) -> None:
    """Whole streams, in order of their ids. Streams that come later have only later events."""
    size = run.options.events_a_chunk
    after: UUID | None = None
    planned = size
    while planned == size:
        parameters = {"shadow": run.shadow, "after": after, "size": size}
        statement = run.store.database.sql(NEXT_CHUNK if after else FIRST_CHUNK)
        after, planned = run.connection.execute(statement, parameters).fetchone() or (after, 0)
