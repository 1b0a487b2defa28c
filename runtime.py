"""Streams of one kind that are to be looked at when they are due, and the loops that do so at the instant.

What such a stream is comes in as a Decider: the application's own (app.py), or, in a schema and a topic of its own,
an order that must be paid in time (examples/order_timeout.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from threading import Event as StopEvent
from types import TracebackType
from typing import Any, Generic, Literal, Self

from psycopg import Connection

from coupon_clock.deadlines import FOLLOW_POLL_S, ROLES, Deadlines, Parts, Role
from coupon_clock.domain import arguments
from coupon_clock.domain.decider import Command, Decider, Event, State
from coupon_clock.domain.errors import CouponClockError, InvalidArgument, Problem
from coupon_clock.infrastructure.command_handling.due import decide_by
from coupon_clock.infrastructure.command_handling.handler import CommandHandler, Executed
from coupon_clock.infrastructure.command_handling.shared_queue import SharedQueue
from coupon_clock.infrastructure.event_store import migrations
from coupon_clock.infrastructure.event_store.store import Cause, Envelope, EventStore
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.loop import Died, Loop, interrupt_main_thread
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.notifier import AppendNotifier
from coupon_clock.infrastructure.postgres.caller_transaction import enlist
from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.postgres.database import Database, Schema
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.postgres.server_clock import ServerClock
from coupon_clock.infrastructure.postgres.time_limit import LONG_STATEMENT_LIMIT_S
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.engine import tables
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.engine.projector import Projector

__all__ = ["Decider", "Envelope", "Executed", "Parts", "Role", "Runtime", "Settings"]

LARGEST_BATCH = 10_000


class Runtime(Generic[State, Command, Event]):
    """Safe to use from several threads. `stored_type`: the union of all event shapes in the log (docs/events.md).
    `projections`: rows that the role projector keeps up to date (docs/projections.md)."""

    def __init__(
        self,
        database: Database,
        decider: Decider[State, Command, Event],
        stored_type: Any,
        projections: Sequence[Projection[Any]] = (),
    ) -> None:
        self.settings = database.settings
        self.database = database
        self.decider = decider
        self.projections = projections
        self.clock = ServerClock()
        self.store: EventStore[Event] = EventStore(database, self.clock, stored_type)
        self._notify = AppendNotifier()
        self._handler = CommandHandler(self.store, decider, self._notify)
        self.queue = SharedQueue(self._handler)
        self.deadlines = Deadlines(
            database,
            self.store.recorder,
            self.clock,
            decide_by(decider, self._handler),
            self._notify,
            all_prepared=decider.prepares_ending,
            projectors=[Projector(self.store, projection) for projection in projections],
        )
        self._closing = StopEvent()

    @classmethod
    def open(
        cls,
        settings: Settings,
        decider: Decider[State, Command, Event],
        stored_type: Any,
        projections: Sequence[Projection[Any]] = (),
    ) -> Self:
        """Checks the schema; starts nothing. Raises UnusableSettings, DatabaseUnavailable, SchemaMissing, UnsafeLog."""
        arguments.refuse(arguments.of_type("settings", settings, Settings))
        database = migrations.open_database(settings)
        try:
            runtime = cls(database, decider, stored_type, projections)
            runtime._begin()
        except BaseException:
            database.close()
            raise
        return runtime

    @staticmethod
    def migrate(settings: Settings, projections: Sequence[Projection[Any]] = ()) -> list[int]:
        """Makes or updates log, alarms and what goes with them, and makes the tables of projections where they are
        missing: all, or nothing. Returns the numbers of the migrations that ran.

        Raises ForeignTable, SchemaTooNew, SchemaInUse, UnsafeLog, MissingRight, DatabaseUnavailable.
        """
        arguments.refuse(arguments.of_type("settings", settings, Settings))
        schema = Schema(settings.database_schema)
        with connect(settings, LONG_STATEMENT_LIMIT_S) as connection, translate_errors():
            return migrations.migrate(connection, schema, missing_tables(schema, projections))

    @staticmethod
    def planned_migration(settings: Settings, projections: Sequence[Projection[Any]] = ()) -> str:
        """Returns the SQL that `migrate` would execute, empty where there is nothing to do. Raises as it does."""
        arguments.refuse(arguments.of_type("settings", settings, Settings))
        schema = Schema(settings.database_schema)
        with connect(settings) as connection, translate_errors():
            planned = migrations.plan(connection, schema, missing_tables(schema, projections))
        return ";\n\n".join(statement.decode().strip().removesuffix(";") for statement in planned.statements)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what follows and closes all connections; a `with` block does it by itself. Nothing after a fork."""
        if self.database.is_forked:
            return
        self._closing.set()
        self.queue.close()
        self.database.close()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def execute(self, command: Command, connection: Connection[Any] | None = None) -> Executed[Event]:
        """Its events are stored when this returns; with a `connection`, when the transaction there commits.

        Raises a CouponClockError: the decider's own, CommandConflict, OutcomeUnknown, DatabaseUnavailable, UnsafeLog,
        UnusableTransaction.
        """
        self.database.refuse_fork()
        if connection is None:
            return self.queue.handle(command)
        with enlist(connection, self.database.schema, "event") as lent:
            return CommandHandler(self.store.over(lent), self.decider, no_notifier).handle(command)

    def execute_many(
        self, commands: Sequence[Command], cause: Cause = "command"
    ) -> "list[Executed[Event] | CouponClockError]":
        """What each came to, or its error, in order, in few transactions: one that fails spoils no other."""
        self.database.refuse_fork()
        arguments.refuse(arguments.list_of("commands", commands))
        return self._handler.handle_many(commands, cause)

    def running(
        self, roles: Sequence[Role] = ROLES, broker: Broker | None = None, died: Died = interrupt_main_thread
    ) -> AbstractContextManager[Parts]:
        """As `Application.running`, which see."""
        return self.deadlines.running(roles, broker, died)

    # ── reactions ────────────────────────────────────────────────────────────────────────────────

    def follow(
        self,
        name: str,
        handler: Callable[..., object],
        batch: int = 500,
        start: int | Literal["now"] = 0,
        stop: StopEvent | None = None,
        transactional: bool = False,
    ) -> None:
        """As `Application.follow`, which see."""
        self.database.refuse_fork()
        arguments.refuse(
            self._follower_name(name),
            arguments.function("handler", handler),
            arguments.whole_number("batch", batch, 1, LARGEST_BATCH),
            arguments.whole_number("start", start, 0) if start != "now" else (),
            arguments.of_type("stop", stop, StopEvent) if stop is not None else (),
            arguments.of_type("transactional", transactional, bool),
        )
        deliver = self._in_transaction(handler) if transactional else self._then_checkpoint(handler)
        follower = Subscription(self.store, name, "follower", deliver, batch, start)
        wait = follower.paced(self._notify.log_grew.subscribe())
        loop = Loop(name, follower.run_once, FOLLOW_POLL_S, wait, final=(InvalidArgument,))
        try:
            loop.run_forever(stop or self._closing, self._closing)
        finally:
            if not self._closing.is_set():
                follower.release()

    def _follower_name(self, name: str) -> Iterator[Problem]:
        yield from arguments.name("name", name)
        if name in [reserved for each in self.projections for reserved in (each.name, each.shadow)]:
            yield Problem("name", name, "is the name of a projection: choose another")

    def _then_checkpoint(self, handler: Callable[..., object]) -> Callable[[Batch[Event]], None]:
        def deliver(batch: Batch[Event]) -> None:
            if batch.envelopes:
                handler(batch.envelopes)
            with self.database.connection() as connection:
                batch.advance(connection)

        return deliver

    def _in_transaction(self, handler: Callable[..., object]) -> Callable[[Batch[Event]], None]:
        def deliver(batch: Batch[Event]) -> None:
            with self.database.connection() as connection, connection.transaction():
                batch.advance(connection)
                if batch.envelopes:
                    handler(batch.envelopes, connection)

        return deliver

    # ── what the above needs ─────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        """Checks the schema, and writes nothing: a reader may open too."""
        with self.database.connection() as connection:
            migrations.check(connection, self.database.schema)
            self.store.learn_time()


def missing_tables(schema: Schema, projections: Sequence[Projection[Any]]) -> migrations.Also:
    return lambda connection: [
        statement for projection in projections for statement in tables.missing(connection, schema, projection)
    ]


def no_notifier(earliest_due_at: datetime | None) -> None:
    """What a caller has not committed yet can wake nobody: the loops find it within their poll."""
