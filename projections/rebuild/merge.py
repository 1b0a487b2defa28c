"""Brings the live rows to what a shadow has, where both tables have the same shape: only rows that differ are written.

What others hang on the live table stays: owner, grants, policies, indexes, triggers, publications, comments.
"""

from dataclasses import dataclass

from psycopg.sql import SQL, Identifier

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.projections.engine.tables import add_missing_indexes, drop, keep_copy
from coupon_clock.projections.rebuild.run import LONGEST_WAIT, Run, live_position, own, take_over

# Columns of the live table that the projection does not have may be others', where they need no value from us.
SAME_SHAPE = """
WITH columns AS (
     SELECT attrelid, attname, atttypid, atttypmod, attcollation, attnotnull, attnotnull AND NOT atthasdef AS needed
       FROM pg_attribute
      WHERE attrelid IN ('{schema}.{live}'::regclass, '{schema}.{shadow}'::regclass)
        AND attnum > 0 AND NOT attisdropped),
     live AS (SELECT * FROM columns WHERE attrelid = '{schema}.{live}'::regclass),
     shadow AS (SELECT * FROM columns WHERE attrelid = '{schema}.{shadow}'::regclass)
SELECT NOT EXISTS (
           SELECT FROM shadow
            WHERE NOT EXISTS (SELECT FROM live
                               WHERE (live.attname, live.atttypid, live.atttypmod, live.attcollation)
                                   = (shadow.attname, shadow.atttypid, shadow.atttypmod, shadow.attcollation)
                                 AND (live.attnotnull = shadow.attnotnull OR live.attname = ANY (%(key)s::text[]))))
   AND NOT EXISTS (SELECT FROM live WHERE needed AND attname NOT IN (SELECT attname FROM shadow))
   AND EXISTS (SELECT FROM pg_index
                WHERE indrelid = '{schema}.{live}'::regclass AND indisprimary
                  AND ARRAY(SELECT attname::text
                              FROM unnest(indkey) WITH ORDINALITY AS part (number, n)
                              JOIN pg_attribute ON attrelid = indrelid AND attnum = number
                             ORDER BY n) = %(key)s::text[])
"""

HIDES_ROWS = "SELECT row_security_active('{schema}.{live}'::regclass)"
SHOW_ALL_ROWS = "SELECT set_config('row_security', 'off', true)"

# Plain statements, because MERGE and ON CONFLICT refuse tables with rules.
CHANGE = """
UPDATE {schema}.{live} AS live
   SET {assignments}
  FROM {schema}.{shadow} AS shadow
 WHERE {same_key} AND ROW({live_columns}) IS DISTINCT FROM ROW({shadow_columns})
"""
ADD = """
INSERT INTO {schema}.{live} ({columns})
SELECT {shadow_columns}
  FROM {schema}.{shadow} AS shadow
 WHERE NOT EXISTS (SELECT FROM {schema}.{live} AS live WHERE {same_key})
"""
REMOVE = """
DELETE FROM {schema}.{live} AS live
 WHERE NOT EXISTS (SELECT FROM {schema}.{shadow} AS shadow WHERE {same_key})
"""


@dataclass(eq=False)
class RowsHidden(CouponClockError):
    """Row security hides rows of {name} from this role, so it cannot rebuild them: do it as the table's owner, \
without FORCE ROW LEVEL SECURITY, or as a role with BYPASSRLS."""

    name: str


def can_merge(run: Run) -> bool:
    """Whether the live table has the shape of the shadow."""
    key = [str(column.name) for column in run.projection.table(run.shadow).primary_key.columns]
    names = {"live": run.projection.name, "shadow": run.shadow}
    statement = run.store.database.sql(SAME_SHAPE, **names)
    ((same_shape,),) = run.connection.execute(statement, {"key": key})
    return bool(same_shape)


def refuse_hidden_rows(run: Run) -> None:
    """Raises RowsHidden."""
    if fetch_one(run.connection, run.store.database.sql(HIDES_ROWS, live=run.projection.name))[0]:
        raise RowsHidden(run.projection.name)


def merge(run: Run, build: int) -> int | None:
    """Returns the position that is now live; None while the shadow is behind, because rows would go back.

    Readers go on; projectors wait. Raises psycopg.errors.LockNotAvailable while somebody holds rows or the table, and
    ShadowTakenOver; nothing has changed then.
    """
    schema, name = run.store.database.schema, run.projection.name
    with run.connection.transaction():
        live = live_position(run)
        position = own(run, build)
        if live is not None and live > position:
            return None
        run.execute(LONGEST_WAIT)
        run.execute(SHOW_ALL_ROWS)
        if run.options.keep_old:
            keep_copy(run.connection, schema, name, f"{name}_old")
        add_missing_indexes(run.connection, schema, run.projection)
        for statement in (REMOVE, CHANGE, ADD):
            run.connection.execute(composed(run, statement))
        take_over(run, position)
        drop(run.connection, schema, run.shadow)
    run.after_step("swap")
    return position


def composed(run: Run, statement: str) -> bytes:
    table = run.projection.table(run.shadow)
    columns = [Identifier(str(column.name)) for column in table.columns]
    key = [Identifier(str(column.name)) for column in table.primary_key.columns]
    comma, both = SQL(", "), SQL(" AND ")
    return (
        SQL(statement)
        .format(
            schema=Identifier(run.store.database.schema.name),
            live=Identifier(run.projection.name),
            shadow=Identifier(run.shadow),
            same_key=both.join(SQL("live.{0} = shadow.{0}").format(column) for column in key),
            columns=comma.join(columns),
            live_columns=comma.join(SQL("live.{}").format(column) for column in columns),
            shadow_columns=comma.join(SQL("shadow.{}").format(column) for column in columns),
            assignments=comma.join(SQL("{0} = shadow.{0}").format(column) for column in columns),
        )
        .as_bytes(None)
    )
