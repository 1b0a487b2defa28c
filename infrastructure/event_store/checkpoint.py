"""How far each follower of the log is, kept in PostgreSQL, under a lease."""

from typing import NamedTuple

START = "INSERT INTO checkpoint (name, position) VALUES (%s, %s) ON CONFLICT DO NOTHING"

LEASE = """
UPDATE checkpoint
   SET leased_by = %(me)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (leased_by = %(me)s OR leased_until IS NULL OR leased_until < clock_timestamp())
RETURNING position, build, fold_version
"""

# Not only by the holder of the lease: two processes with handlers slower than a lease would stop each other for ever.
ADVANCE = """
UPDATE checkpoint
   SET position = %(to)s, leased_by = %(me)s, leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s
   AND (position, build, fold_version) = (%(position)s, %(build)s, %(fold_version)s)
"""

END = "SELECT coalesce(max(notification_id), 0), coupon_clock_now() FROM coupon_template_events"

RELEASE = "UPDATE checkpoint SET leased_by = NULL, leased_until = NULL WHERE name = %s AND leased_by = %s"


class Checkpoint(NamedTuple):
    """How far a follower is; `build` counts rebuilds of what it writes, `fold_version` the code that writes it."""

    position: int
    build: int = 1
    fold_version: int = 1
