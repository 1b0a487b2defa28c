"""Replays the log into a shadow table and swaps it in, while commands, queries and the live projector run on.

The shadow is filled by a projector of its own under its own checkpoint, so a rebuild that was interrupted resumes.
"""

from collections.abc import Callable

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.database import Pool, available
from coupon_clock.infrastructure.event_store import EventStore
from coupon_clock.infrastructure.follower import end_of_log
from coupon_clock.infrastructure.schema import one
from coupon_clock.projections import read_model
from coupon_clock.projections.projector import Projector

SHADOW = f"{read_model.NAME}_shadow"

POSITION = "SELECT position FROM checkpoint WHERE name = %s FOR UPDATE"
TAKE_OVER = """
INSERT INTO checkpoint (name, position, build, fold_version) VALUES (%(live)s, %(position)s, 1, %(fold)s)
    ON CONFLICT (name) DO UPDATE
   SET position = excluded.position, build = checkpoint.build + 1, fold_version = excluded.fold_version
"""


class RebuildRunning(CouponError):
    """Another rebuild of {table} is running: wait for it, or stop it; its lease ends 15 s after its last step."""

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.table = table


def rebuild(pool: Pool, store: EventStore[Event], progress: Callable[[int, int], object]) -> int:
    """Answers with the position at which the new read model went live. `progress(position, end)` after each batch.

    Raises RebuildRunning, DatabaseUnavailable, UnreadableEvent; the live model is then as it was.
    """
    with available(), pool.connection() as connection:
        read_model.create_table(connection, SHADOW)
    shadow = Projector(pool, store, SHADOW)
    try:
        while True:
            _catch_up(pool, shadow, progress)
            with available(), pool.connection() as connection, connection.transaction():
                position = _swap(connection)
            if position is not None:
                return position
    finally:
        shadow.release()


def _catch_up(pool: Pool, shadow: Projector, progress: Callable[[int, int], object]) -> None:
    end = end_of_log(pool)
    while True:
        followed = shadow.run_once()
        with available(), pool.connection() as connection:
            (position, is_ours) = one(
                connection, "SELECT position, leased_by = %s FROM checkpoint WHERE name = %s", shadow.identity, SHADOW
            )
        if not is_ours:
            raise RebuildRunning(read_model.NAME)
        progress(position, end)
        if not followed and position >= end:
            return


def _swap(connection: Connection[TupleRow]) -> int | None:
    """Answers None while the shadow is behind the live model: a swap would take rows back."""
    live = connection.execute(POSITION, (read_model.NAME,)).fetchone()
    (shadow,) = one(connection, POSITION, SHADOW)
    if live is not None and live[0] > shadow:
        return None
    connection.execute("SET LOCAL lock_timeout = '500ms'")
    connection.execute(f"DROP TABLE IF EXISTS {read_model.NAME}")
    connection.execute(f"ALTER TABLE {SHADOW} RENAME TO {read_model.NAME}")
    for suffix in ("pkey", "shop_idx", "shop_end_idx"):
        connection.execute(f"ALTER INDEX {SHADOW}_{suffix} RENAME TO {read_model.NAME}_{suffix}")
    connection.execute(TAKE_OVER, {"live": read_model.NAME, "position": shadow, "fold": read_model.FOLD_VERSION})
    connection.execute("DELETE FROM checkpoint WHERE name = %s", (SHADOW,))
    return int(shadow)
