"""What others hang on a table, and would lose if another table took its place."""

from dataclasses import dataclass

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.projections.rebuild.run import Run

# Whatever depends on the table, but for its row type, its key, its NOT NULLs and the indexes of its own name; and what
# is set on the table itself. Table-wide grants and the owner are carried over (swap.py).
FOREIGN = """
WITH live AS (SELECT * FROM pg_class WHERE oid = '{schema}.{table}'::regclass)
SELECT pg_describe_object(classid, objid, objsubid) AS what
  FROM live JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = live.oid
 WHERE deptype IN ('n', 'a')
   AND NOT EXISTS (SELECT FROM pg_class AS own
                    WHERE classid = 'pg_class'::regclass AND own.oid = objid AND own.relkind IN ('i', 'I')
                      AND starts_with(own.relname, live.relname || '_'))
   AND NOT EXISTS (SELECT FROM pg_constraint
                    WHERE classid = 'pg_constraint'::regclass AND pg_constraint.oid = objid
                      AND conrelid = live.oid AND contype IN ('p', 'n'))
   AND NOT EXISTS (SELECT FROM pg_trigger
                    WHERE classid = 'pg_trigger'::regclass AND pg_trigger.oid = objid AND tgisinternal)
 UNION SELECT 'row security' FROM live WHERE relrowsecurity OR relforcerowsecurity
 UNION SELECT 'storage parameter ' || unnest(reloptions) FROM live
 UNION SELECT 'replica identity' FROM live WHERE relreplident <> 'd'
 UNION SELECT 'tablespace' FROM live WHERE reltablespace <> 0
 UNION SELECT 'being unlogged' FROM live WHERE relpersistence <> 'p'
 UNION SELECT 'comment on ' || CASE objsubid WHEN 0 THEN 'the table' ELSE 'column ' || attname END
   FROM live JOIN pg_description ON objoid = live.oid AND classoid = 'pg_class'::regclass
   LEFT JOIN pg_attribute ON attrelid = live.oid AND attnum = objsubid
 UNION SELECT 'security label of ' || provider
   FROM live JOIN pg_seclabel ON objoid = live.oid AND classoid = 'pg_class'::regclass
 UNION SELECT 'privileges on column ' || attname
   FROM live JOIN pg_attribute ON attrelid = live.oid WHERE attacl IS NOT NULL AND NOT attisdropped
 UNION SELECT 'statistics target of column ' || attname
   FROM live JOIN pg_attribute ON attrelid = live.oid
  WHERE attnum > 0 AND NOT attisdropped AND coalesce(attstattarget, -1) <> -1
 UNION SELECT 'options of column ' || attname
   FROM live JOIN pg_attribute ON attrelid = live.oid WHERE attoptions IS NOT NULL AND NOT attisdropped
 ORDER BY what
"""


@dataclass(eq=False)
class ForeignObjects(CouponClockError):
    """The rows of {name} need a table of another shape, and what hangs on the old one would be lost: {what}. \
Drop it, run `coupon-clock rebuild {name}`, and make it anew."""

    name: str
    what: str


def refuse_foreign_objects(run: Run) -> None:
    """Raises ForeignObjects, which names each."""
    found = run.execute(FOREIGN, table=run.projection.name).fetchall()
    if found:
        raise ForeignObjects(run.projection.name, "; ".join(what for (what,) in found))
