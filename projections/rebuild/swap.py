"""Puts a shadow in the place of the live table, in one transaction so short that nobody notices."""

from dataclasses import dataclass
from time import monotonic, sleep

import structlog
from psycopg.errors import DependentObjectsStillExist, LockNotAvailable

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.infrastructure.postgres.errors import first_line
from coupon_clock.projections.engine.tables import drop, exists
from coupon_clock.projections.rebuild.run import Run, own

RETRY_PAUSE_S = 0.2

# Nobody but VACUUM and its like waits behind this one; autovacuum, of a table that is about to go, gives way after 1 s.
KEEP_MAINTENANCE_OUT = "LOCK TABLE {schema}.{table} IN SHARE UPDATE EXCLUSIVE MODE"

# Readers queue behind this one while it is waited for: so not for long, then they go first and it is tried again.
LONGEST_WAIT = "SET LOCAL lock_timeout = '50ms'"
LOCK = "LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE"

POSITION = "SELECT position FROM {schema}.checkpoint WHERE name = %s FOR UPDATE"

# `build` makes every projector that is under way give up its batch, and begin again at the new position.
TAKE_OVER = """
INSERT INTO {schema}.checkpoint AS live (name, position, fold_version) VALUES (%s, %s, %s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, build = live.build + 1, fold_version = excluded.fold_version
"""

# As GRANT takes them: whoever may read the old table may read the new one.
GRANTS = """
SELECT format('GRANT %%s ON {schema}.%%I TO %%s%%s', privilege_type, %s::text,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
              CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class, aclexplode(relacl)
 WHERE pg_class.oid = to_regclass('{schema}.{table}')
"""

HOLDERS = """
SELECT coalesce(string_agg(pid::text, ', ' ORDER BY pid), 'nobody any more')
  FROM pg_locks
 WHERE relation = to_regclass('{schema}.{table}') AND granted AND pid <> pg_backend_pid()
"""

INDEXES = """
SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = '{schema}.{old}'::regclass
"""

log = structlog.get_logger()


@dataclass(eq=False)
class SwapBlocked(CouponClockError):
    """{name} is ready to be swapped in, but transactions held the live table for too long (server processes {pids}): \
end them, then run `coupon-clock rebuild {name} --resume`."""

    name: str
    pids: str


def try_swap(run: Run, build: int, give_up_at: float) -> int | None:
    """As `swap`, and None after a pause while somebody holds the table; raises SwapBlocked after `give_up_at`."""
    try:
        return swap(run, build)
    except LockNotAvailable as error:
        (pids,) = fetch_one(run.connection, run.store.database.sql(HOLDERS, table=run.projection.name))
        if monotonic() > give_up_at:
            raise SwapBlocked(run.projection.name, pids) from error
        log.info("waiting for readers", action="swap", server_processes=pids, why=first_line(error))
        sleep(RETRY_PAUSE_S)
        return None


def swap(run: Run, build: int) -> int | None:
    """Returns the position that is now live; None while the shadow is behind, because rows would go back.

    Raises psycopg.errors.LockNotAvailable while somebody holds the table, and ShadowTakenOver; nothing has changed
    then. The old table is
    `NAME_outgoing` afterwards.
    """
    schema, name, shadow = run.store.database.schema, run.projection.name, run.shadow
    with run.connection.transaction():
        replaces = exists(run.connection, schema, name)
        if replaces:
            run.execute(KEEP_MAINTENANCE_OUT, table=name)
        live = run.execute(POSITION, name).fetchone()
        position = own(run, build)
        if live is not None and live[0] > position:
            return None
        run.execute(LONGEST_WAIT)
        if replaces:
            run.execute(LOCK, table=name)
            for (grant,) in run.execute(GRANTS, shadow, table=name).fetchall():
                run.connection.execute(grant.encode())
            rename(run, name, f"{name}_outgoing")
        rename(run, shadow, name)
        run.execute(TAKE_OVER, name, position, run.projection.fold_version)
        run.execute("DELETE FROM {schema}.checkpoint WHERE name = %s", shadow)
    run.after_step("swap")
    return position


@dataclass(eq=False)
class OldTableInUse(CouponClockError):
    """Something depends on {table}, the rows before the last rebuild: make it anew on {name}, then DROP TABLE {table}.
    PostgreSQL says: {reason}."""

    name: str
    table: str
    reason: str


def clear_away(run: Run, keep: bool) -> None:
    """Drops or keeps the old table: after the swap, because removing the files of a big one takes a while. Raises
    OldTableInUse."""
    schema, name = run.store.database.schema, run.projection.name
    outgoing, kept = f"{name}_outgoing", f"{name}_old"
    try:
        with run.connection.transaction():
            if keep and exists(run.connection, schema, outgoing):
                drop(run.connection, schema, kept)
                rename(run, outgoing, kept)
            drop(run.connection, schema, outgoing)
    except DependentObjectsStillExist as error:
        raise OldTableInUse(name, outgoing, error.diag.message_detail or str(error)) from error


def rename(run: Run, old: str, new: str) -> None:
    """With all its indexes, also those that another version made."""
    indexes = run.execute(INDEXES, old=old).fetchall()
    run.execute("ALTER TABLE {schema}.{old} RENAME TO {new}", old=old, new=new)
    for (index,) in indexes:
        if index.startswith(f"{old}_"):
            renamed = f"{new}_{index.removeprefix(f'{old}_')}"
            run.execute("ALTER INDEX {schema}.{index} RENAME TO {renamed}", index=index, renamed=renamed)
