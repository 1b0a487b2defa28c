"""The one way to the log: the eventsourcing library's recorder interface, and what the store needs beyond it.

Differs from the library's own PostgreSQL recorder in how it inserts: no table lock, no NOTIFY, and no blind retry of an
insert whose answer was lost. Followers read through log_reader.py, which never steps over an event.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event
from typing import Any, NamedTuple
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

from coupon_clock.infrastructure.event_store.log_reader import LogReader, RecordedEvent
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.database import Connections, fetch_one
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, detect_lost_answer

POLL_S = 0.05
PAGE = 500


class NewEvents(NamedTuple):
    """Columns of what is appended, one entry an event, sorted by stream and version; and the alarms that change.

    `due_ats`: aware times, None where the stream's alarm goes.
    """

    stream_ids: arrays.Uuids
    versions: arrays.Bigints
    topics: arrays.Texts
    states: arrays.Byteas
    command_ids: arrays.Uuids
    causes: arrays.Texts
    actors: arrays.Texts
    alarm_ids: arrays.Uuids
    due_ats: arrays.Timestamps


class EventLogRecorder(ApplicationRecorder):
    """`connections`: a Database, or one transaction of a caller."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    # ── of many streams, with alarms ─────────────────────────────────────────────────────────────

    APPEND = """
    SELECT stream_id, version, log_position
      FROM {schema}.append_events(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
    """
    APPEND_EACH_STREAM = APPEND.replace("append_events", "append_each_stream")

    def append(
        self, events: NewEvents, longest_wait: timedelta | None = None, *, each_stream: bool = False
    ) -> list[tuple[UUID, int | None, int | None]]:
        """Appends in one transaction and one round trip: a stream whole or not at all, directly after its last version.

        Returns (stream, version, position) of what is stored; of a stream left out its last version and no position, or
        neither where somebody else has it under way (only with `each_stream`, where each waits for itself).
        Raises TimedOut, RolledBack or another DatabaseUnavailable (nothing was stored), AnswerLost.
        """
        statement = self._connections.sql(self.APPEND_EACH_STREAM if each_stream else self.APPEND)
        with self._connections.connection() as connection, detect_lost_answer(connection):
            rows: list[Any] = connection.execute(
                statement, (*events, longest_wait), prepare=True, binary=True
            ).fetchall()
        return rows

    SELECT_STREAMS = """
    SELECT clock.now, originator_id, originator_version, topic, state, notification_id,
           recorded_at, command_id, cause, actor
      FROM (SELECT {schema}.now_utc() AS now) AS clock
      LEFT JOIN {schema}.event ON originator_id = ANY(%b)
     ORDER BY originator_id, originator_version
    """

    def select_streams(self, stream_ids: Sequence[UUID]) -> tuple[datetime, list[RecordedEvent]]:
        """Returns PostgreSQL's time, and all events of these streams, in order of stream and version."""
        statement = self._connections.sql(self.SELECT_STREAMS)
        with self._connections.connection() as connection:
            rows = connection.execute(statement, (arrays.uuids(stream_ids),), prepare=True, binary=True).fetchall()
        now: datetime = rows[0][0]
        return now, [RecordedEvent._make(row[1:]) for row in rows if row[1] is not None]

    # ── in the order of the log ──────────────────────────────────────────────────────────────────

    SELECT_PAGE = """
    SELECT originator_id, originator_version, topic, state, notification_id, recorded_at, command_id, cause, actor
      FROM {schema}.event
     WHERE notification_id > %s AND notification_id <= %s
     ORDER BY notification_id
     LIMIT %s
    """

    def select_page(self, after: int, through: int, limit: int) -> list[RecordedEvent]:
        """Returns what is visible now; a lower position may still come."""
        with self._connections.connection() as connection:
            statement = self._connections.sql(self.SELECT_PAGE)
            rows = connection.execute(statement, (after, through, limit), prepare=True, binary=True)
            return [RecordedEvent._make(row) for row in rows]

    WRITERS = """
    SELECT virtualtransaction
      FROM pg_locks
     WHERE locktype = 'advisory'
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND classid  = 1129271116
       AND objid    = '{schema}.event'::regclass::oid
       AND objsubid = 2
       AND mode     = 'ShareLock'
       AND granted
    """

    def writers(self) -> frozenset[str]:
        """Returns the transactions that may hold positions which nobody can see yet."""
        with self._connections.connection() as connection:
            return frozenset(
                writer for (writer,) in connection.execute(self._connections.sql(self.WRITERS), prepare=True)
            )

    # ── the library's interface ──────────────────────────────────────────────────────────────────

    INSERT = """
    INSERT INTO {schema}.event (originator_id, originator_version, topic, state, command_id, cause, actor)
    SELECT id, version, topic, state, %s, %s, %s
      FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[])
           WITH ORDINALITY AS given (id, version, topic, state, n)
     ORDER BY n
        ON CONFLICT (originator_id, originator_version) DO NOTHING
    RETURNING notification_id
    """

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        command_id: UUID | None = None,
        cause: str = "command",
        actor: str | None = None,
        **kwargs: Any,
    ) -> Sequence[int]:
        """Stores all or none, and returns the positions in the order given. Alarms stay as they are.

        Raises IntegrityError when a version exists already, and OperationalError when it is unknown whether the events
        were stored, or certain that they were not.
        """
        columns = [(e.originator_id, e.originator_version, e.topic, e.state) for e in stored_events]
        if not columns:
            return []
        parameters = [command_id, cause, actor, *(list(column) for column in zip(*columns, strict=True))]
        with (
            translate_to_library_errors(),
            self._connections.connection() as connection,
            connection.transaction(),
        ):
            rows = connection.execute(self._connections.sql(self.INSERT), parameters, prepare=True).fetchall()
            if len(rows) < len(columns):
                raise IntegrityError(f"{len(columns) - len(rows)} of {len(columns)} events exist already")
        return [position for (position,) in rows]

    SELECT_EVENTS = """
    SELECT originator_id, originator_version, topic, state
      FROM {schema}.event
     WHERE originator_id = %(id)s
       AND (%(gt)s::bigint  IS NULL OR originator_version >  %(gt)s)
       AND (%(lte)s::bigint IS NULL OR originator_version <= %(lte)s)
     ORDER BY originator_version
    """

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        parameters = {"id": originator_id, "gt": gt, "lte": lte}
        with translate_to_library_errors(), self._connections.connection() as connection:
            statement = self._connections.sql(self.SELECT_EVENTS)
            rows = connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
        events = [StoredEvent(*row) for row in rows]
        return (events[::-1] if desc else events)[:limit]

    SELECT_NOTIFICATIONS = """
    SELECT originator_id, originator_version, topic, state, notification_id
      FROM {schema}.event
     WHERE notification_id >= %(first)s
       AND (%(stop)s::bigint   IS NULL OR notification_id <= %(stop)s)
       AND (%(topics)s::text[] IS NULL OR topic = ANY(%(topics)s))
     ORDER BY notification_id
     LIMIT %(limit)s
    """

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
        parameters = {"first": first, "stop": stop, "topics": list(topics) or None, "limit": limit}
        with translate_to_library_errors(), self._connections.connection() as connection:
            statement = self._connections.sql(self.SELECT_NOTIFICATIONS)
            rows = connection.execute(statement, parameters, prepare=True, binary=True).fetchall()
        return [Notification(*row) for row in rows]

    END = "SELECT max(notification_id) FROM {schema}.event"

    def max_notification_id(self) -> int | None:
        with translate_to_library_errors(), self._connections.connection() as connection:
            (position,) = fetch_one(connection, self._connections.sql(self.END))
        return None if position is None else int(position)

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return PollingSubscription(self, gt, topics)


class PollingSubscription(Subscription[EventLogRecorder]):
    """Blocks until the next event; polls, because NOTIFY serialises all commits."""

    def __init__(self, recorder: EventLogRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._reader = LogReader(recorder, gt or 0)
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
            wanted = [e for e in page.events if not self._topics or e.topic in self._topics]
            self._pending = [Notification(e.stream_id, e.version, e.topic, e.state, e.position) for e in wanted]
            if not page.events:
                self._stopped.wait(POLL_S)
        if self._stopped.is_set():
            raise StopIteration
        return self._pending.pop(0)


@contextmanager
def translate_to_library_errors() -> Iterator[None]:
    """The library's users catch its own errors."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise OperationalError(str(error)) from error
    except psycopg.IntegrityError as error:
        raise IntegrityError(str(error)) from error
    except psycopg.Error as error:
        raise PersistenceError(str(error)) from error
