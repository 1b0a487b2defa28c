"""What can be seen from outside, with PostgreSQL's time: the log and the read model, looked at on a connection of its
own. `recorded_at` tells when an end was decided; only a look from outside tells when it could be read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from threading import Event
from typing import Any
from uuid import UUID

from msgspec import Struct, field
from psycopg import Connection

from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.pool import connect
from coupon_clock.infrastructure.settings import Settings

EVERY_S = 0.002

# One statement sees both at one moment, and reads the clock after that moment: never too early, at most one look late.
LOOK = """
SELECT 'log', originator_id, clock_timestamp()
  FROM coupon_template_events
 WHERE topic = 'CouponTemplate.Ended' AND originator_id <> ALL(%b::uuid[])
 UNION ALL
SELECT 'read model', template_id, clock_timestamp()
  FROM coupon_template
 WHERE ended_at IS NOT NULL AND template_id <> ALL(%b::uuid[])
"""

# A broker that forgets gets its alarms leased until a second past their end.
SENT = """
SELECT stream_id, due_at
  FROM alarm
 WHERE armed_at IS NOT NULL OR leased_until = due_at + interval '1 second'
"""


class Seen(Struct):
    """When each template's end was first seen in the log, and in the read model, by PostgreSQL's clock."""

    committed_at: dict[UUID, datetime] = field(default_factory=dict)
    shown_at: dict[UUID, datetime] = field(default_factory=dict)


@contextmanager
def watching(settings: Settings) -> Iterator[Seen]:
    """Fills what it yields, until the block ends. Raises DatabaseUnavailable at the end, if it could not go on."""
    seen, stop = Seen(), Event()
    with ThreadPoolExecutor(1, "watch") as beside:
        watch = beside.submit(look_until, stop, seen, settings)
        try:
            yield seen
        finally:
            stop.set()
        watch.result()


def look_until(stop: Event, seen: Seen, settings: Settings) -> None:
    with connect(settings) as connection:
        while not stop.wait(EVERY_S):
            look(connection, seen)
        look(connection, seen)


def look(connection: Connection[Any], seen: Seen) -> None:
    known = list(seen.committed_at), list(seen.shown_at)
    with translate_errors():
        rows = connection.execute(LOOK, known, prepare=True, binary=True).fetchall()
    for place, template_id, at in rows:
        times = seen.committed_at if place == "log" else seen.shown_at
        times[template_id] = at


def sent(connection: Connection[Any]) -> dict[UUID, datetime]:
    """The templates whose message the broker has, and the end that it is for. Raises DatabaseUnavailable."""
    with translate_errors():
        return dict(connection.execute(SENT, prepare=True).fetchall())
