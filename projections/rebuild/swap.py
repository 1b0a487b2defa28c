"""Puts a shadow in the place of the live table, in one transaction so short that nobody notices."""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.errors import DependentObjectsStillExist
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.migrations import one
from coupon_clock.projections.engine.projection import Projection

# Nobody but VACUUM and its like waits behind this one; autovacuum, of a table that is about to go, gives way after 1 s.
KEEP_MAINTENANCE_OUT = "LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE"

# Readers queue behind this one while it is waited for: so not for long, then they go first and it is tried again.
LOCK = "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
LONGEST_WAIT = "50ms"

POSITION = "SELECT position FROM checkpoint WHERE name = %s FOR UPDATE"

# `build` makes every projector that is under way give up its batch, and begin again at the new position.
TAKE_OVER = """
INSERT INTO checkpoint (name, position, fold_version) VALUES (%(name)s, %(position)s, %(fold_version)s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, build = checkpoint.build + 1, fold_version = excluded.fold_version
"""

# As GRANT takes them: whoever may read the old table may read the new one.
GRANTS = """
SELECT format('GRANT %%s ON %%I TO %%s%%s', privilege_type, %(shadow)s::text,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
              CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class, aclexplode(relacl)
 WHERE pg_class.oid = to_regclass(%(name)s)
"""

HOLDERS = """
SELECT string_agg(pid::text, ', ' ORDER BY pid)
  FROM pg_locks
 WHERE relation = to_regclass(%s) AND granted AND pid <> pg_backend_pid()
"""


def swap(connection: Connection[TupleRow], projection: Projection[Any]) -> int | None:
    """Answers with the position that is now live; None while the shadow is behind, because rows would go back.

    Raises psycopg.errors.LockNotAvailable while somebody holds the table; nothing has changed then. The old table is
    `old_name` afterwards.
    """
    name, shadow = projection.name, projection.shadow
    with connection.transaction():
        replaces = exists(connection, name)
        if replaces:
            connection.execute(KEEP_MAINTENANCE_OUT.format(table=name))
        live = connection.execute(POSITION, (name,)).fetchone()
        (position,) = one(connection, POSITION, shadow)
        if live is not None and live[0] > position:
            return None
        connection.execute(f"SET LOCAL lock_timeout = '{LONGEST_WAIT}'")
        if replaces:
            connection.execute(LOCK.format(table=name))
            for (grant,) in connection.execute(GRANTS, {"name": name, "shadow": shadow}).fetchall():
                connection.execute(grant)
            rename(connection, name, outgoing(projection))
        rename(connection, shadow, name)
        take_over = {"name": name, "position": position, "fold_version": projection.fold_version}
        connection.execute(TAKE_OVER, take_over)
        connection.execute("DELETE FROM checkpoint WHERE name = %s", (shadow,))
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


def clear_away(connection: Connection[TupleRow], projection: Projection[Any], keep: bool) -> None:
    """After the swap, so that removing the files of a big table holds up nobody. Raises OldTableInUse."""
    try:
        _clear_away(connection, projection, keep)
    except DependentObjectsStillExist as error:
        reason = error.diag.message_detail or str(error)
        raise OldTableInUse(projection.name, outgoing(projection), reason) from error


def _clear_away(connection: Connection[TupleRow], projection: Projection[Any], keep: bool) -> None:
    if keep and exists(connection, outgoing(projection)):
        with connection.transaction():
            connection.execute(f"DROP TABLE IF EXISTS {kept(projection)}")
            rename(connection, outgoing(projection), kept(projection))
    connection.execute(f"DROP TABLE IF EXISTS {outgoing(projection)}")


def rename(connection: Connection[TupleRow], old: str, new: str) -> None:
    """With all its indexes, also those that another version made."""
    indexes = connection.execute(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = %s::regclass", (old,)
    ).fetchall()
    connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
    for (index,) in indexes:
        if index.startswith(f"{old}_"):
            connection.execute(f'ALTER INDEX "{index}" RENAME TO "{new}_{index.removeprefix(f"{old}_")}"')


def exists(connection: Connection[TupleRow], table: str) -> bool:
    return bool(one(connection, "SELECT to_regclass(%s) IS NOT NULL", table)[0])


def holders(connection: Connection[TupleRow], projection: Projection[Any]) -> str:
    """The server's process ids of those who hold the live table."""
    (pids,) = one(connection, HOLDERS, projection.name)
    return pids or "nobody any more"
