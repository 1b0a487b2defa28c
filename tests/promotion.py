"""A standby that becomes the primary."""

import psycopg

from coupon_clock.local_servers.postgres import LocalPostgres
from waiting import eventually

IS_PRIMARY = "SELECT NOT pg_is_in_recovery()"
PROMOTE = "SELECT pg_promote()"


def promote(standby: LocalPostgres) -> None:
    """Returns once it is one. Asks again where the connection that asked was closed, before the promotion or after."""
    eventually(lambda: answers(standby, IS_PRIMARY) or answers(standby, PROMOTE), within=60)
    eventually(lambda: answers(standby, IS_PRIMARY), within=60)


def answers(server: LocalPostgres, question: str) -> bool:
    """Whether with true."""
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            return connection.execute(question).fetchone() == (True,)
    except psycopg.OperationalError:
        return False
