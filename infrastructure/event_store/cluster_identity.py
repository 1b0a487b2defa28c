"""Whether the log came to another cluster, timeline or database, by a restore or a failover.

What was sent to others since that backup may be unknown here, and what is known here may never have reached them.
"""

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.infrastructure.postgres.database import Schema, fetch_one

IDENTITY = """
SELECT system_identifier
       || ' timeline ' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
       || ' database ' || (SELECT oid FROM pg_database WHERE datname = current_database())
  FROM pg_control_system()
"""
REMEMBERED = "SELECT identity FROM {schema}.cluster_identity"
REMEMBER = f"""
INSERT INTO {{schema}}.cluster_identity AS known (identity) ({IDENTITY})
    ON CONFLICT (only_row) DO UPDATE SET identity = excluded.identity WHERE known.identity <> excluded.identity
"""


def failover_detected(connection: Connection[TupleRow], schema: Schema) -> bool:
    """Whether the cluster identity differs from that of the last `remember_cluster`."""
    remembered = connection.execute(schema.sql(REMEMBERED)).fetchone()
    return remembered is not None and remembered != fetch_one(connection, IDENTITY)


def remember_cluster(connection: Connection[TupleRow], schema: Schema) -> None:
    """Call it after what a failover calls for is done: a crash between the two does it again."""
    connection.execute(schema.sql(REMEMBER))
