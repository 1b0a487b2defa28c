"""What can be seen from outside, by PostgreSQL's clock: `recorded_at` does not say when an end could be read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event
from typing import Any
from uuid import UUID

import psycopg

from coupon_clock import Settings

EVERY_S = 0.002

# One statement sees all at one moment, and reads the clock after that moment: never too early, at most one look late.
# A broker that forgets gets its alarms leased until a second past their end.
LOOK = """
SELECT 'committed_at', originator_id, clock_timestamp()
  FROM coupon_clock.event
 WHERE topic = 'CouponTemplate.Ended' AND originator_id <> ALL(%b::uuid[])
 UNION ALL
SELECT 'shown_at', template_id, clock_timestamp()
  FROM coupon_clock.coupon_template
 WHERE ended_at IS NOT NULL AND template_id <> ALL(%b::uuid[])
 UNION ALL
SELECT 'sent', stream_id, due_at
  FROM coupon_clock.alarm
 WHERE (armed_at IS NOT NULL OR leased_until = due_at + interval '1 second')
   AND (stream_id, due_at) NOT IN (SELECT * FROM unnest(%b::uuid[], %b::timestamptz[]))
"""


@dataclass
class Seen:
    """By template: when its end was first seen in the log and in the read model, and the end that was last sent."""

    committed_at: dict[UUID, datetime] = field(default_factory=dict)
    shown_at: dict[UUID, datetime] = field(default_factory=dict)
    sent: dict[UUID, datetime] = field(default_factory=dict)


@contextmanager
def observing(settings: Settings) -> Iterator[Seen]:
    """Fills what it yields, until the block ends. Raises psycopg.Error at the end, if it could not go on."""
    seen, stop = Seen(), Event()

    def observe() -> None:
        with connect(settings) as connection:
            while not stop.wait(EVERY_S):
                known = list(seen.committed_at), list(seen.shown_at), list(seen.sent), list(seen.sent.values())
                for what, template_id, at in connection.execute(LOOK, known, prepare=True, binary=True).fetchall():
                    getattr(seen, what)[template_id] = at

    with ThreadPoolExecutor(1, "observer") as thread:
        done = thread.submit(observe)
        try:
            yield seen
        finally:
            stop.set()
        done.result()


def connect(settings: Settings) -> psycopg.Connection[Any]:
    return psycopg.connect(settings.database(), autocommit=True)
