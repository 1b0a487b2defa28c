"""The one way to the log: the eventsourcing library's recorder interface, and what the store needs beyond it.

Differs from the library's own PostgreSQL recorder in how it inserts: no table lock, no NOTIFY, and no blind retry of an
insert whose answer was lost. Followers read through log_reader.py, which never steps over an event.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from psycopg import Connection
from psycopg.errors import SerializationFailure
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.log_reader import LAST_POSITION, LogReader, RecordedEvent
from coupon_clock.infrastructure.postgres import arrays
from coupon_clock.infrastructure.postgres.database import Connections, fetch_one
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, detect_lost_answer, first_line

SHORTEST_POLL_S, LONGEST_POLL_S = 0.002, 0.05
SMALLEST_PAGE = 100
PAGE = 500
PAGE_BYTES = 8 * 1024 * 1024
"""Of states and actors in one page of the log."""


MOST_EVENTS, MOST_BYTES = 20_000, 16 * 1024 * 1024
"""Of several streams that are loaded together."""
SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=1)
"""For a stream that was due and could not be handled."""
LONGEST_REASON = 1_000


@dataclass(eq=False)
class TooMuchAtOnce(CouponClockError):
    """These {streams} streams are too large to be loaded together: load fewer of them."""

    streams: int


class NewEvents(NamedTuple):
    """Columns of what is appended, one entry an event, sorted by stream and version; and the alarms that change.

    `due_ats`: aware times, None where the stream's alarm goes. `alarm_versions`: the stream's version then.
    `ending_topics`, `endings`: what is appended when the time has come, None where that has to be decided.
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
    alarm_versions: arrays.Bigints
    ending_topics: arrays.Texts
    endings: arrays.Byteas


class NewAlarm(NamedTuple):
    """When a stream is to be looked at next, None for never; `version`: the stream's then."""

    stream_id: UUID
    due_at: datetime | None
    version: int


class DueStream(NamedTuple):
    """A stream whose alarm is due."""

    stream_id: UUID
    due_at: datetime


class EndedPage(NamedTuple):
    """`lateness`: of each ending that was stored, in seconds; `ended`: those of the streams asked for; `others`: the
    streams that have to be loaded and decided on; `last`: of all that was due, where there may be more."""

    lateness: list[float]
    ended: list[UUID]
    others: list[DueStream]
    last: DueStream | None


class EventLogRecorder(ApplicationRecorder):
    """`connections`: a Database, or one transaction of a caller."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    # ── of many streams, with alarms ─────────────────────────────────────────────────────────────

    APPEND = """
    SELECT stream_id, version, log_position
      FROM {schema}.append_events(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
    """
    APPEND_EACH_STREAM = APPEND.replace("append_events", "append_each_stream")

    def append(
        self,
        events: NewEvents,
        decided_at: datetime | None = None,
        longest_wait: timedelta | None = None,
        *,
        each_stream: bool = False,
    ) -> list[tuple[UUID, int | None, int | None]]:
        """Appends in one transaction and one round trip: a stream whole or not at all, directly after its last version.

        Returns (stream, version, position) of what is stored; of a stream left out its last version and no position, or
        neither where somebody else has it under way (only with `each_stream`, where each waits for itself).
        Raises TimedOut, RolledBack or another DatabaseUnavailable (nothing was stored), AnswerLost.
        """
        statement = self._connections.sql(self.APPEND_EACH_STREAM if each_stream else self.APPEND)
        with self._connections.connection() as connection, detect_lost_answer(connection):
            rows: list[Any] = connection.execute(
                statement, (*events, decided_at, longest_wait or self._connections.longest_wait), prepare=True
            ).fetchall()
        return rows

    END_DUE = """
    SELECT found, last_due_at, last_stream_id, lateness, ended, other_ids, other_due_ats
      FROM {schema}.end_due(%(due_at)b, %(stream_id)b, %(limit)b, %(grace)b, %(asked)b, %(cause)s, %(longest_wait)b)
    """

    def end_due(
        self,
        after: DueStream,
        limit: int,
        grace: timedelta,
        asked: Collection[UUID],
        cause: str,
        longest_wait: timedelta,
    ) -> EndedPage:
        """Stores the prepared endings of up to `limit` alarms that were due `grace` ago, beyond `after`, soonest first.

        Skips alarms that others hold. Raises TimedOut, RolledBack or another DatabaseUnavailable, AnswerLost.
        """
        parameters = after._asdict() | {
            "limit": limit,
            "grace": grace,
            "asked": arrays.uuids(list(asked)),
            "cause": cause,
            "longest_wait": longest_wait,
        }
        with self._connections.connection() as connection, detect_lost_answer(connection):
            rows = connection.execute(self._connections.sql(self.END_DUE), parameters, prepare=True)
            ((found, last_due_at, last_stream_id, lateness, ended, ids, due_ats),) = rows
        last = DueStream(last_stream_id, last_due_at) if found == limit else None
        others = [DueStream(*other) for other in zip(ids or (), due_ats or (), strict=True)]
        return EndedPage(lateness or [], ended or [], others, last)

    END_EACH_STREAM = """
    SELECT stream_id, due_at, recorded_at FROM {schema}.end_each_stream(%(ids)b, %(cause)s, %(longest_wait)b)
    """

    def end_each_stream(
        self, due: Sequence[DueStream], asked: Collection[UUID], cause: str, longest_wait: timedelta
    ) -> EndedPage:
        """As `end_due`, of these streams, each for itself: one that must wait too long is left out. Slower."""
        parameters = {
            "ids": arrays.uuids([each.stream_id for each in due]),
            "cause": cause,
            "longest_wait": longest_wait,
        }
        with self._connections.connection() as connection, detect_lost_answer(connection):
            rows = connection.execute(self._connections.sql(self.END_EACH_STREAM), parameters, prepare=True).fetchall()
        stored = [(stream_id, recorded_at - due_at) for stream_id, due_at, recorded_at in rows if recorded_at]
        return EndedPage(
            [late.total_seconds() for _, late in stored],
            [stream_id for stream_id, _ in stored if stream_id in asked],
            [DueStream(stream_id, due_at) for stream_id, due_at, recorded_at in rows if not recorded_at],
            None,
        )

    SELECT_DUE = """
    SELECT stream_id, due_at
      FROM {schema}.alarm
     WHERE due_at <= (SELECT {schema}.now_utc() - %(grace)b)
       AND (due_at, stream_id) > (%(due_at)b, %(stream_id)b)
       AND (stuck_until IS NULL OR stuck_until <= (SELECT {schema}.now_utc()))
     ORDER BY due_at, stream_id
     LIMIT %(limit)b
    """

    def select_due(self, after: DueStream, limit: int, grace: timedelta) -> list[DueStream]:
        """Up to `limit` alarms that were due `grace` ago, beyond `after`, soonest first; nothing is ended."""
        parameters = after._asdict() | {"grace": grace, "limit": limit}
        with self._connections.connection() as connection:
            rows = connection.execute(self._connections.sql(self.SELECT_DUE), parameters)
            return [DueStream(*row) for row in rows]

    SELECT_ALARMS = """
    SELECT asked.id,
           EXISTS (SELECT FROM {schema}.event WHERE originator_id = asked.id),
           due_at,
           due_at <= clock.now,
           CASE WHEN stuck_until > clock.now THEN stuck_by END
      FROM (SELECT {schema}.now_utc() AS now) AS clock
     CROSS JOIN unnest(%b) AS asked (id)
      LEFT JOIN {schema}.alarm ON stream_id = asked.id
    """

    def select_alarms(
        self, stream_ids: Sequence[UUID]
    ) -> list[tuple[UUID, bool, datetime | None, bool | None, str | None]]:
        """Returns of each stream whether it exists, when it is due, whether that is over, and what it is stuck by."""
        with self._connections.connection() as connection:
            statement = self._connections.sql(self.SELECT_ALARMS)
            rows: Any = connection.execute(statement, (arrays.uuids(stream_ids),))
            return list(rows)

    MARK_STUCK = """
    WITH given AS MATERIALIZED (
         SELECT alarm.stream_id, reason, stuck_since IS NULL AS is_new
           FROM {schema}.alarm
           JOIN unnest(%b, %b, %b) AS given (stream_id, due_at, reason) USING (stream_id, due_at)
            FOR NO KEY UPDATE OF alarm SKIP LOCKED)
    UPDATE {schema}.alarm
       SET stuck_since = coalesce(stuck_since, {schema}.now_utc()),
           stuck_until = {schema}.now_utc() + least(greatest({schema}.now_utc() - due_at, %b), %b),
           stuck_by = reason
      FROM given
     WHERE alarm.stream_id = given.stream_id
    RETURNING alarm.stream_id, is_new
    """

    def mark_stuck(self, stuck: Sequence[tuple[DueStream, str]]) -> set[UUID]:
        """Leaves these alone for as long as they have been due, within bounds. Returns those that were free before."""
        due, reasons = zip(*stuck, strict=True)
        columns = (
            arrays.uuids([each.stream_id for each in due]),
            arrays.timestamps([each.due_at for each in due]),
            arrays.packed(arrays.Texts, [reason[:LONGEST_REASON].replace("\0", "") for reason in reasons]),
        )
        with self._connections.connection() as connection:
            parameters = (*columns, SHORTEST_PAUSE, LONGEST_PAUSE)
            rows = connection.execute(self._connections.sql(self.MARK_STUCK), parameters)
            return {stream_id for stream_id, is_new in rows if is_new}

    # Deleted and inserted: an update would be taken for the late move of an end (schema.sql).
    CORRECT_ALARM = """
    WITH wrong AS (
        DELETE FROM {schema}.alarm WHERE stream_id = %(stream_id)s AND due_at = %(seen)s RETURNING stream_id)
    INSERT INTO {schema}.alarm (stream_id, due_at)
    SELECT stream_id, %(due_at)s FROM wrong WHERE %(due_at)s::timestamptz IS NOT NULL
    """

    def correct_alarm(self, stream_id: UUID, seen: datetime, due_at: datetime | None) -> None:
        """Sets an alarm to what its stream says, or drops it, where it still has the due time `seen`."""
        parameters = {"stream_id": stream_id, "seen": seen, "due_at": due_at}
        with self._connections.connection() as connection:
            connection.execute(self._connections.sql(self.CORRECT_ALARM), parameters)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    VERSIONS = """
    SELECT id, (SELECT max(originator_version) FROM {schema}.event WHERE originator_id = id)
      FROM unnest(%b) AS asked (id)
    """

    def select_versions(self, stream_ids: Sequence[UUID]) -> dict[UUID, int]:
        """Returns the last version of each stream, 0 where there is none."""
        with self._connections.connection() as connection:
            rows = connection.execute(self._connections.sql(self.VERSIONS), (arrays.uuids(stream_ids),))
            return {stream_id: version or 0 for stream_id, version in rows}

    LOAD_STREAMS = "SELECT * FROM {schema}.load_streams(%b, %b, %b)"

    def select_streams(self, stream_ids: Sequence[UUID]) -> tuple[datetime, list[RecordedEvent]]:
        """Returns PostgreSQL's time, and all events of these streams, in order of stream and version.

        Raises TooMuchAtOnce for several streams that are larger together than MOST_EVENTS or MOST_BYTES.
        """
        statement = self._connections.sql(self.LOAD_STREAMS)
        parameters = arrays.uuids(stream_ids), MOST_EVENTS, MOST_BYTES
        with self._connections.connection() as connection:
            rows = connection.execute(statement, parameters, prepare=True).fetchall()
        if not rows:
            raise TooMuchAtOnce(len(stream_ids))
        now: datetime = rows[0][0]
        return now, [RecordedEvent._make(row[1:]) for row in rows if row[1] is not None]

    # ── in the order of the log ──────────────────────────────────────────────────────────────────

    # Sizes are known without reading what is stored out of line, so that what is left out costs nothing.
    SELECT_PAGE = """
    SELECT originator_id, originator_version, topic, state, notification_id, recorded_at, command_id, cause, actor,
           found
      FROM (SELECT *,
                   count(*) OVER () AS found,
                   sum(octet_length(state) + coalesce(octet_length(actor), 0)) OVER (ORDER BY notification_id)
                 - octet_length(state) - coalesce(octet_length(actor), 0) AS bytes_before
              FROM (SELECT *
                      FROM {schema}.event
                     WHERE notification_id > %s AND notification_id <= %s
                     ORDER BY notification_id
                     LIMIT %s) AS events) AS page
     WHERE bytes_before < %s
     ORDER BY notification_id
    """

    def select_page(self, after: int, through: int, limit: int) -> tuple[list[RecordedEvent], bool]:
        """Returns what is visible now, up to PAGE_BYTES and the event that passes them, and whether there may be more;
        a lower position may still come."""
        with self._connections.connection() as connection:
            statement = self._connections.sql(self.SELECT_PAGE)
            rows = connection.execute(statement, (after, through, limit, PAGE_BYTES)).fetchall()
        more = bool(rows) and (rows[0][-1] == limit or rows[0][-1] > len(rows))
        return [RecordedEvent._make(row[:-1]) for row in rows], more

    SELECT_END = "SELECT coalesce(max(notification_id), 0), {schema}.now_utc() FROM {schema}.event"

    def select_end(self) -> tuple[int, datetime]:
        """Returns the highest position stored, and PostgreSQL's time."""
        with self._connections.connection() as connection:
            (position, now) = fetch_one(connection, self._connections.sql(self.SELECT_END))
        return position, now

    WRITERS = """
    SELECT virtualtransaction
      FROM pg_locks
     WHERE locktype = 'relation'
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND relation = '{schema}.event'::regclass::oid
       AND mode     = 'RowExclusiveLock'
       AND granted
    """

    def writers(self) -> frozenset[str]:
        """Returns the transactions that may hold positions which nobody can see yet."""
        with self._connections.connection() as connection:
            return frozenset(writer for (writer,) in connection.execute(self._connections.sql(self.WRITERS)))

    # ── the library's interface ──────────────────────────────────────────────────────────────────

    INSERT = """
    INSERT INTO {schema}.event (originator_id, originator_version, topic, state, command_id, cause, actor)
    SELECT id, version, topic, state, %s, %s, %s
      FROM unnest(%b, %b, %b, %b) WITH ORDINALITY AS given (id, version, topic, state, n)
     ORDER BY n
    RETURNING notification_id
    """
    INSERT_WITH_ALARMS = """
    SELECT * FROM {schema}.insert_events(%(ids)b, %(versions)b, %(topics)b, %(states)b, %(command_id)s, %(cause)s,
                                         %(actor)s, %(alarm_ids)b, %(due_ats)b, %(alarm_versions)b, %(decided_at)b)
    """

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        command_id: UUID | None = None,
        cause: str = "command",
        actor: str | None = None,
        alarms: Sequence[NewAlarm] = (),
        decided_at: datetime | None = None,
        **kwargs: Any,
    ) -> Sequence[int] | None:
        """Stores all or none, and returns the positions in the order given.

        `alarms`: of their streams; others stay as they are. `decided_at`: alarms that were due then are replaced; one
        that is due and not replaced must not move.
        Raises IntegrityError when a version exists already, or an alarm would be moved too late, and OperationalError
        when it is unknown whether the events were stored, or certain that they were not.
        """
        if not stored_events:
            return []
        how = {"command_id": command_id, "cause": cause, "actor": actor}
        with translate_to_library_errors(), self._connections.connection() as connection:
            if alarms:
                parameters = how | event_columns(stored_events) | alarm_columns(alarms) | {"decided_at": decided_at}
                rows = self._insert_with_alarms(connection, parameters)
            else:
                values = [*how.values(), *columns(stored_events)]
                rows = connection.execute(self._connections.sql(self.INSERT), values, prepare=True).fetchall()
        return [position for (position,) in rows]

    def _insert_with_alarms(self, connection: Connection[TupleRow], parameters: dict[str, object]) -> list[Any]:
        try:
            statement = self._connections.sql(self.INSERT_WITH_ALARMS)
            return connection.execute(statement, parameters, prepare=True).fetchall()
        except SerializationFailure as moved_too_late:
            raise IntegrityError(first_line(moved_too_late)) from moved_too_late

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
            rows = connection.execute(statement, parameters).fetchall()
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
        """Ends before a gap that may still be filled: what comes after it is there at the next call."""
        after = (start or 0) - (1 if inclusive_of_start and start else 0)
        reader, found = LogReader(self, after, LAST_POSITION if stop is None else stop), list[Notification]()
        with translate_to_library_errors():
            while len(found) < limit and (events := reader.page(max(limit - len(found), SMALLEST_PAGE)).events):
                found += [notification(event) for event in events if not topics or event.topic in topics]
        return found[:limit]

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
        self._pending: deque[Notification] = deque()
        self._pause = SHORTEST_POLL_S
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
            self._pending += [notification(e) for e in page.events if not self._topics or e.topic in self._topics]
            self._pause = SHORTEST_POLL_S if page.events else min(2 * self._pause, LONGEST_POLL_S)
            if not page.events:
                self._stopped.wait(self._pause)
        if self._stopped.is_set():
            raise StopIteration
        return self._pending.popleft()


def notification(event: RecordedEvent) -> Notification:
    return Notification(event.stream_id, event.version, event.topic, event.state, event.position)


def event_columns(stored_events: Sequence[StoredEvent]) -> dict[str, object]:
    return dict(zip(("ids", "versions", "topics", "states"), columns(stored_events), strict=True))


def alarm_columns(alarms: Sequence[NewAlarm]) -> dict[str, object]:
    ids, due_ats, versions = zip(*alarms, strict=True)
    return {
        "alarm_ids": arrays.packed(arrays.Uuids, ids),
        "due_ats": arrays.packed(arrays.Timestamps, due_ats),
        "alarm_versions": arrays.packed(arrays.Bigints, versions),
    }


def columns(stored_events: Sequence[StoredEvent]) -> list[object]:
    """Of the table, packed."""
    ids, versions, topics, states = zip(
        *((e.originator_id, e.originator_version, e.topic, e.state) for e in stored_events), strict=True
    )
    return [
        arrays.packed(arrays.Uuids, ids),
        arrays.packed(arrays.Bigints, versions),
        arrays.packed(arrays.Texts, topics),
        arrays.packed(arrays.Byteas, states),
    ]


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
