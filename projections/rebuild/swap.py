"""Puts a shadow in the place of the live table, in one transaction so short that nobody notices."""

from dataclasses import dataclass

from psycopg.errors import DependentObjectsStillExist

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.projections.engine.tables import drop, exists
from coupon_clock.projections.rebuild.run import LONGEST_WAIT, Run, live_position, own, take_over

RETRY_PAUSE_S = 0.2

# Nobody but VACUUM and its like waits behind this one; autovacuum, of a table that is about to go, gives way after 1 s.
KEEP_MAINTENANCE_OUT = "LOCK TABLE {schema}.{table} IN SHARE UPDATE EXCLUSIVE MODE"

LOCK = "LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE"

# As GRANT takes them: whoever may read the old table may read the new one.
GRANTS = """
SELECT format('GRANT %%s ON {schema}.%%I TO %%s%%s', privilege_type, %s::text,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
              CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class, aclexplode(relacl)
 WHERE pg_class.oid = to_regclass('{schema}.{table}')
"""

OWNER = """
SELECT format('ALTER TABLE {schema}.%%I OWNER TO %%s', %s::text, relowner::regrole)
  FROM pg_class
 WHERE oid = to_regclass('{schema}.{table}') AND relowner <> current_user::regrole
"""

INDEXES = """
SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = '{schema}.{old}'::regclass
"""


def refuse_foreign(run: Run) -> None:
    """Raises ForeignTable where something else has a name that this rebuild needs."""
    name = run.projection.name
    for needed in (name, run.shadow, f"{name}_outgoing", *([f"{name}_old"] if run.options.keep_old else [])):
        exists(run.connection, run.store.database.schema, needed)


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
        live = live_position(run)
        position = own(run, build)
        if live is not None and live > position:
            return None
        run.execute(LONGEST_WAIT)
        if replaces:
            run.execute(LOCK, table=name)
            for statement, parameter in ((GRANTS, shadow), (OWNER, shadow)):
                for (copied,) in run.execute(statement, parameter, table=name).fetchall():
                    run.connection.execute(copied.encode())
            rename(run, name, f"{name}_outgoing")
        rename(run, shadow, name)
        take_over(run, position)
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
