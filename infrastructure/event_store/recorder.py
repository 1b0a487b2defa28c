"""The log's table as the eventsourcing library sees it: its recorder interface, on our insert and our pages.

Differs from the library's own PostgreSQL recorder in how it inserts (no table lock, no NOTIFY, no blind retry of an
insert whose answer was lost) and in that followers read through follower.py, which never steps over an event.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    Notification,
    OperationalError,
    PersistenceError,
    StoredEvent,
    Subscription,
)

from coupon_clock.infrastructure.event_store.log_reader import LogReader
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, translate_errors
from coupon_clock.infrastructure.postgres.pool import Pool

INSERT = """
INSERT INTO coupon_template_events (originator_id, originator_version, topic, state)
SELECT id, version, topic, state
  FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[]) WITH ORDINALITY AS given (id, version, topic, state, n)
 ORDER BY n
    ON CONFLICT (originator_id, originator_version) DO NOTHING
RETURNING notification_id
"""

SELECT_EVENTS = """
SELECT originator_id, originator_version, topic, state
  FROM coupon_template_events
 WHERE originator_id = %(id)s
   AND (%(gt)s::bigint  IS NULL OR originator_version >  %(gt)s)
   AND (%(lte)s::bigint IS NULL OR originator_version <= %(lte)s)
 ORDER BY originator_version
"""

SELECT_NOTIFICATIONS = """
SELECT originator_id, originator_version, topic, state, notification_id
  FROM coupon_template_events
 WHERE notification_id >= %(first)s
   AND (%(stop)s::bigint   IS NULL OR notification_id <= %(stop)s)
   AND (%(topics)s::text[] IS NULL OR topic = ANY(%(topics)s))
 ORDER BY notification_id
 LIMIT %(limit)s
"""

POLL_S = 0.05
PAGE = 500


class EventLogRecorder(ApplicationRecorder):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        """All or nothing; positions in the order given. Raises IntegrityError when a version exists already, and
        OperationalError when it is unknown whether they were stored, or certain that they were not."""
        columns = [(e.originator_id, e.originator_version, e.topic, e.state) for e in stored_events]
        if not columns:
            return []
        with translate_to_library_errors(), self._pool.connection() as connection, connection.transaction():
            rows = connection.execute(INSERT, [list(c) for c in zip(*columns, strict=True)], prepare=True).fetchall()
            if len(rows) < len(columns):
                raise IntegrityError(f"{len(columns) - len(rows)} of {len(columns)} events exist already")
        return [position for (position,) in rows]

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        with translate_to_library_errors(), self._pool.connection() as connection:
            rows = connection.execute(
                SELECT_EVENTS, {"id": originator_id, "gt": gt, "lte": lte}, prepare=True, binary=True
            ).fetchall()
        events = [StoredEvent(*row) for row in rows]
        return (events[::-1] if desc else events)[:limit]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        first = (start or 0) + (0 if inclusive_of_start or start is None else 1)
        with translate_to_library_errors(), self._pool.connection() as connection:
            rows = connection.execute(
                SELECT_NOTIFICATIONS,
                {"first": first, "stop": stop, "topics": list(topics) or None, "limit": limit},
                prepare=True,
                binary=True,
            ).fetchall()
        return [Notification(*row) for row in rows]

    def max_notification_id(self) -> int | None:
        with translate_to_library_errors(), self._pool.connection() as connection:
            row = connection.execute("SELECT max(notification_id) FROM coupon_template_events").fetchone()
        return row[0] if row else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return PollingSubscription(self, gt, topics, LogReader(self._pool, gt or 0))


class PollingSubscription(Subscription[EventLogRecorder]):
    """Blocks until the next event; polls, because NOTIFY serialises all commits."""

    def __init__(self, recorder: EventLogRecorder, gt: int | None, topics: Sequence[str], reader: LogReader) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._reader = reader
        self._pending: list[Notification] = []
        self._stopped = Event()

    def stop(self) -> None:
        super().stop()
        self._stopped.set()

    def __next__(self) -> Notification:
        while not self._pending:
            if self._stopped.is_set():
                raise StopIteration
            with translate_to_library_errors():
                page = self._reader.page(PAGE)
            wanted = [row for row in page.rows if not self._topics or row.topic in self._topics]
            self._pending = [Notification(r.stream_id, r.version, r.topic, r.state, r.position) for r in wanted]
            if not page.rows:
                self._stopped.wait(POLL_S)
        if self._stopped.is_set():
            raise StopIteration
        return self._pending.pop(0)


@contextmanager
def translate_to_library_errors() -> Iterator[None]:
    """Its users catch its own errors."""
    try:
        with translate_errors():
            yield
    except DatabaseUnavailable as error:
        raise OperationalError(str(error)) from error
    except psycopg.IntegrityError as error:
        raise IntegrityError(str(error)) from error
    except psycopg.Error as error:
        raise PersistenceError(str(error)) from error
