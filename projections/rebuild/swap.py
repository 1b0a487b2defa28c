"""Puts a shadow in the place of the live table, in one transaction so short that nobody notices."""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.errors import DependentObjectsStillExist
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.projections.engine.projection import Projection

# Nobody but VACUUM and its like waits behind this one; autovacuum, of a table that is about to go, gives way after 1 s.
KEEP_MAINTENANCE_OUT = "LOCK TABLE {schema}.{table} IN SHARE UPDATE EXCLUSIVE MODE"

# Readers queue behind this one while it is waited for: so not for long, then they go first and it is tried again.
LOCK = "LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE"
LONGEST_WAIT = "50ms"

POSITION = "SELECT position FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"

# `build` makes every projector that is under way give up its batch, and begin again at the new position.
TAKE_OVER = """
INSERT INTO {schema}.checkpoint AS live (name, position, fold_version) VALUES (%(name)s, %(position)s, %(fold_version)s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, build = live.build + 1, fold_version = excluded.fold_version
"""

# As GRANT takes them: whoever may read the old table may read the new one.
GRANTS = """
SELECT format('GRANT %%s ON {schema}.%%I TO %%s%%s', privilege_type, %(shadow)s::text,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
              CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class, aclexplode(relacl)
 WHERE pg_class.oid = to_regclass('{schema}.{table}')
"""

HOLDERS = """
SELECT string_agg(pid::text, ', ' ORDER BY pid)
  FROM pg_locks
 WHERE relation = to_regclass('{schema}.{table}') AND granted AND pid <> pg_backend_pid()
"""


def swap(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any]) -> int | None:
    """Answers with the position that is now live; None while the shadow is behind, because rows would go back.

    Raises psycopg.errors.LockNotAvailable while somebody holds the table; nothing has changed then. The old table is
    `old_name` afterwards.
    """
    name, shadow = projection.name, projection.shadow
    with connection.transaction():
        replaces = exists(connection, schema, name)
        if replaces:
            connection.execute(schema.sql(KEEP_MAINTENANCE_OUT, table=name))
        live = connection.execute(schema.sql(POSITION), (name,)).fetchone()
        (position,) = fetch_one(connection, schema.sql(POSITION), shadow)
        if live is not None and live[0] > position:
            return None
        connection.execute(f"SET LOCAL lock_timeout = '{LONGEST_WAIT}'".encode())
        if replaces:
            connection.execute(schema.sql(LOCK, table=name))
            for (grant,) in connection.execute(schema.sql(GRANTS, table=name), {"shadow": shadow}).fetchall():
                connection.execute(grant.encode())
            rename(connection, schema, name, outgoing(projection))
        rename(connection, schema, shadow, name)
        take_over = {"name": name, "position": position, "fold_version": projection.fold_version}
        connection.execute(schema.sql(TAKE_OVER), take_over)
        connection.execute(schema.sql("DELETE FROM {schema}.checkpoint WHERE name = %s"), (shadow,))
        return int(position)


def outgoing(projection: Projection[Any]) -> str:
    """What the old table is called from the swap until it is dropped or kept."""
    return f"{projection.name}_outgoing"


def kept(projection: Projection[Any]) -> str:
    return f"{projection.name}_old"


@dataclass(eq=False)
class OldTableInUse(CouponClockError):
    """Something depends on {table}, the rows before the last rebuild: make it anew on {name}, then DROP TABLE {table}.
    PostgreSQL says: {reason}."""

    name: str
    table: str
    reason: str


def clear_away(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any], keep: bool) -> None:
    """After the swap, so that removing the files of a big table holds up nobody. Raises OldTableInUse."""
    try:
        _clear_away(connection, schema, projection, keep)
    except DependentObjectsStillExist as error:
        reason = error.diag.message_detail or str(error)
        raise OldTableInUse(projection.name, outgoing(projection), reason) from error


def _clear_away(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any], keep: bool) -> None:
    if keep and exists(connection, schema, outgoing(projection)):
        with connection.transaction():
            connection.execute(schema.sql("DROP TABLE IF EXISTS {schema}.{table}", table=kept(projection)))
            rename(connection, schema, outgoing(projection), kept(projection))
    connection.execute(schema.sql("DROP TABLE IF EXISTS {schema}.{table}", table=outgoing(projection)))


def rename(connection: Connection[TupleRow], schema: Schema, old: str, new: str) -> None:
    """With all its indexes, also those that another version made."""
    indexes = connection.execute(
        schema.sql(
            "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE indrelid = '{schema}.{old}'::regclass",
            old=old,
        )
    ).fetchall()
    connection.execute(schema.sql("ALTER TABLE {schema}.{old} RENAME TO {new}", old=old, new=new))
    for (index,) in indexes:
        if index.startswith(f"{old}_"):
            renamed = f"{new}_{index.removeprefix(f'{old}_')}"
            connection.execute(
                schema.sql("ALTER INDEX {schema}.{index} RENAME TO {renamed}", index=index, renamed=renamed)
            )


def exists(connection: Connection[TupleRow], schema: Schema, table: str) -> bool:
    return bool(fetch_one(connection, schema.sql("SELECT to_regclass('{schema}.{table}') IS NOT NULL", table=table))[0])


def holders(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any]) -> str:
    """The server's process ids of those who hold the live table."""
    (pids,) = fetch_one(connection, schema.sql(HOLDERS, table=projection.name))
    return pids or "nobody any more"
