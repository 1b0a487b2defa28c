"""Makes the shadow's rows the live ones: merged into the live table, or with the tables swapped."""

from dataclasses import dataclass
from time import monotonic, sleep

from psycopg.errors import LockNotAvailable

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.infrastructure.postgres.errors import first_line
from coupon_clock.projections.engine.tables import exists
from coupon_clock.projections.rebuild.foreign_objects import refuse_foreign_objects
from coupon_clock.projections.rebuild.merge import can_merge, merge, refuse_hidden_rows
from coupon_clock.projections.rebuild.run import Run
from coupon_clock.projections.rebuild.swap import swap

RETRY_PAUSE_S = 0.2

HOLDERS = """
SELECT coalesce(string_agg(pid::text, ', ' ORDER BY pid), 'nobody any more')
  FROM pg_locks
 WHERE relation = to_regclass('{schema}.{table}') AND granted AND pid <> pg_backend_pid()
"""

log = Log(__name__)


@dataclass(eq=False)
class SwapBlocked(CouponClockError):
    """{name} is ready to be swapped in, but transactions held the live table for too long (server processes {pids}): \
end them, then run `coupon-clock rebuild {name} --resume`."""

    name: str
    pids: str


def refuse_losses(run: Run) -> None:
    """Before anything is done for it. Raises RowsHidden, ForeignObjects, ForeignTable."""
    if not exists(run.connection, run.store.database.schema, run.projection.name):
        return
    if can_merge(run):
        refuse_hidden_rows(run)
    else:
        refuse_foreign_objects(run)


def go_live(run: Run, build: int, give_up_at: float) -> int | None:
    """Returns the position that is now live; None while the shadow is behind, or, after a pause, the table is held.

    Raises SwapBlocked after `give_up_at`.
    """
    try:
        there = exists(run.connection, run.store.database.schema, run.projection.name)
        return merge(run, build) if there and can_merge(run) else swap(run, build)
    except LockNotAvailable as error:
        (pids,) = fetch_one(run.connection, run.store.database.sql(HOLDERS, table=run.projection.name))
        if monotonic() > give_up_at:
            raise SwapBlocked(run.projection.name, pids) from error
        log.info("waiting for readers", action="swap", server_processes=pids, why=first_line(error))
        sleep(RETRY_PAUSE_S)
        return None
