"""Persistence for applications of the eventsourcing library: `PERSISTENCE_MODULE=coupon_clock.persistence`.

Writers do not wait for each other, and followers never step over an event (docs/eventsourcing.md). The library finds
the factory in this module by its class.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import eventsourcing.persistence as library
from eventsourcing.persistence import IntegrityError, Notification, StoredEvent, Tracking
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.infrastructure.event_store import migrations
from coupon_clock.infrastructure.event_store.recorder import (
    EventLogRecorder,
    columns,
    translate_to_library_errors,
)
from coupon_clock.infrastructure.postgres.caller_transaction import Enlisted
from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.postgres.database import Database, Schema
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.settings import Settings

__all__ = ["AggregateRecorder", "Factory", "ProcessRecorder", "SnapshotRecorder", "TrackingRecorder"]

DEFAULT_SCHEMA = "eventsourcing"


class AggregateRecorder(library.AggregateRecorder):
    """Events by aggregate, in the log."""

    def __init__(self, database: Database) -> None:
        self._log = EventLogRecorder(database)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        self._log.insert_events(stored_events, **kwargs)

    def select_events(self, originator_id: UUID | str, **kwargs: Any) -> Sequence[StoredEvent]:
        return self._log.select_events(originator_id, **kwargs)


class SnapshotRecorder(library.AggregateRecorder):
    """States of aggregates."""

    INSERT = """
    INSERT INTO {schema}.snapshot (originator_id, originator_version, topic, state) SELECT * FROM unnest(%b, %b, %b, %b)
    """
    SELECT = """
    SELECT originator_id, originator_version, topic, state
      FROM {schema}.snapshot
     WHERE originator_id = %(id)s
       AND (%(gt)s::bigint  IS NULL OR originator_version >  %(gt)s)
       AND (%(lte)s::bigint IS NULL OR originator_version <= %(lte)s)
     ORDER BY originator_version * %(direction)s
     LIMIT %(limit)s
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        if stored_events:
            with translate_to_library_errors(), self._database.connection() as connection:
                connection.execute(self._database.sql(self.INSERT), columns(stored_events))

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        parameters = {"id": originator_id, "gt": gt, "lte": lte, "direction": -1 if desc else 1, "limit": limit}
        with translate_to_library_errors(), self._database.connection() as connection:
            return [StoredEvent(*row) for row in connection.execute(self._database.sql(self.SELECT), parameters)]


class TrackingRecorder(library.TrackingRecorder):
    """How far a process has followed. A subclass can keep rows of its own in the same `transaction`."""

    INSERT = """
    INSERT INTO {schema}.tracking AS tracked VALUES (%s, %s)
        ON CONFLICT (application_name) DO UPDATE SET notification_id = excluded.notification_id
     WHERE tracked.notification_id < excluded.notification_id
    """
    MAX = "SELECT notification_id FROM {schema}.tracking WHERE application_name = %s"

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def transaction(self) -> Iterator[Connection[TupleRow]]:
        """A connection within a transaction, which is committed at the end of the block."""
        with translate_to_library_errors(), self.database.connection() as connection, connection.transaction():
            yield connection

    def insert_tracking(self, tracking: Tracking) -> None:
        """Raises IntegrityError where that position, or a later one, was tracked already."""
        with self.transaction() as connection:
            self.track(connection, tracking)

    def track(self, connection: Connection[TupleRow], tracking: Tracking) -> None:
        """The same, within a transaction that is under way."""
        row = (tracking.application_name, tracking.notification_id)
        if connection.execute(self.database.sql(self.INSERT), row).rowcount != 1:
            raise IntegrityError(f"position {row[1]} of {row[0]}, or a later one, was tracked already")

    def max_tracking_id(self, application_name: str) -> int | None:
        with translate_to_library_errors(), self.database.connection() as connection:
            found = connection.execute(self.database.sql(self.MAX), (application_name,)).fetchone()
        return None if found is None else int(found[0])


class ProcessRecorder(library.ProcessRecorder):
    """Events, and how far a process has followed, in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tracking = TrackingRecorder(database)
        self._log = EventLogRecorder(database)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], *, tracking: Tracking | None = None, **kwargs: Any
    ) -> Sequence[int] | None:
        if tracking is None:
            return self._log.insert_events(stored_events, **kwargs)
        with self._tracking.transaction() as connection:
            self._tracking.track(connection, tracking)
            within = Enlisted(connection, self._database.schema, None)
            return EventLogRecorder(within).insert_events(stored_events, **kwargs)

    def select_events(self, originator_id: UUID | str, **kwargs: Any) -> Sequence[StoredEvent]:
        return self._log.select_events(originator_id, **kwargs)

    def select_notifications(
        self, start: int | None, limit: int, stop: int | None = None, topics: Sequence[str] = (), **kwargs: Any
    ) -> Sequence[Notification]:
        return self._log.select_notifications(start, limit, stop, topics, **kwargs)

    def max_notification_id(self) -> int | None:
        return self._log.max_notification_id()

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> library.Subscription[library.ApplicationRecorder]:
        return self._log.subscribe(gt, topics)

    def insert_tracking(self, tracking: Tracking) -> None:
        self._tracking.insert_tracking(tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        return self._tracking.max_tracking_id(application_name)


class Factory(library.InfrastructureFactory[TrackingRecorder]):
    """Opens the database when the first recorder is asked for.

    The log of an application is a schema: POSTGRES_SCHEMA, by default the application's name in lower case. Two
    applications have one each. Further variables: COUPON_CLOCK_DATABASE_URL, POSTGRES_POOL_SIZE, CREATE_TABLE.
    """

    CREATE_TABLE = "CREATE_TABLE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self._opened: Database | None = None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def settings(self) -> Settings:
        """Each COUPON_CLOCK_… may be given for one application alone, as any variable of the library.

        Raises UnusableSettings.
        """
        ours = {name: self.env.get(f"COUPON_CLOCK_{name.upper()}") for name in Settings.model_fields}
        given = ours | {
            "database_schema": self.env.get("POSTGRES_SCHEMA") or self.env.name.lower() or DEFAULT_SCHEMA,
            "database_connections": self.env.get("POSTGRES_POOL_SIZE"),
        }
        return Settings.load(**{name: value for name, value in given.items() if value})

    def aggregate_recorder(self, purpose: str = "events") -> library.AggregateRecorder:
        """`purpose`: events or snapshots."""
        recorders = {"events": AggregateRecorder, "snapshots": SnapshotRecorder}
        if purpose not in recorders:
            raise library.InfrastructureFactoryError(
                f"there are recorders of events and of snapshots, not of {purpose}"
            )
        return recorders[purpose](self.database())

    def application_recorder(self) -> library.ApplicationRecorder:
        return EventLogRecorder(self.database())

    def tracking_recorder(self, tracking_recorder_class: type[Any] | None = None) -> Any:
        """`tracking_recorder_class`: a subclass of TrackingRecorder; by default the one that TRACKING_RECORDER_TOPIC
        names."""
        if tracking_recorder_class is None:
            topic = self.env.get(self.TRACKING_RECORDER_TOPIC)
            tracking_recorder_class = resolve_topic(topic) if topic else TrackingRecorder
        return tracking_recorder_class(self.database())

    def process_recorder(self) -> library.ProcessRecorder:
        return ProcessRecorder(self.database())

    def database(self) -> Database:
        """Raises SchemaMissing, SchemaTooNew, ForeignTable, UnsafeLog, MissingRight, DatabaseUnavailable."""
        if self._opened is None:
            self._opened = opened(self.settings(), create=strtobool(self.env.get(self.CREATE_TABLE) or "yes"))
        return self._opened


def opened(settings: Settings, create: bool) -> Database:
    schema = Schema(settings.database_schema)
    with connect(settings) as connection, translate_errors():
        if create:
            migrations.migrate(connection, schema)
        migrations.check(connection, schema)
    return migrations.open_database(settings)
