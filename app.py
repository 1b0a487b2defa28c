"""The in-process API: commands in, answers out, and what runs in the background. Parts are wired together here and in
runtime.py, and nowhere else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from threading import Event as StopEvent
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Literal, Self, get_args
from uuid import UUID

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.deadlines import ROLES, Role, RolesTornApart, UnknownRole
from coupon_clock.domain import arguments
from coupon_clock.domain.commands import (
    ChangeValidity,
    Command,
    CreateCouponTemplate,
    IncreaseStock,
    ShopCommand,
    TerminateCouponTemplate,
)
from coupon_clock.domain.coupon_template import COUPON_TEMPLATES, CouponTemplate, existing, fold
from coupon_clock.domain.decider import Decider
from coupon_clock.domain.discount import FixedAmount, Percentage, ThresholdAmount
from coupon_clock.domain.errors import (
    CommandConflict,
    CouponClockError,
    CouponTemplateNotFound,
    CouponTemplateOver,
    InvalidArgument,
    InvalidCommand,
    OutcomeUnknown,
    Problem,
)
from coupon_clock.domain.events import (
    ConsumeRule,
    Created,
    Ended,
    EndReason,
    Event,
    ReceiveRule,
    StockIncreased,
    StoredEvent,
    ValidityChanged,
)
from coupon_clock.domain.validity import Validity
from coupon_clock.infrastructure.command_handling.handler import Executed
from coupon_clock.infrastructure.event_store.migrations import (
    ForeignTable,
    SchemaInUse,
    SchemaMissing,
    SchemaTooNew,
    roles,
)
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.infrastructure.loop import Died, LoopDied, interrupt_main_thread
from coupon_clock.infrastructure.messaging.broker import Broker, BrokerMisconfigured
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.postgres.caller_transaction import UnusableTransaction
from coupon_clock.infrastructure.postgres.database import OpenedBeforeFork, Schema
from coupon_clock.infrastructure.postgres.errors import AnswerLost, DatabaseUnavailable, MissingRight
from coupon_clock.infrastructure.settings import Settings, UnusableSettings
from coupon_clock.maintenance.operations import Maintenance
from coupon_clock.maintenance.verify.promise import LatenessDistribution, PromiseReport, Violation
from coupon_clock.maintenance.verify.rows import NotInParts, Part
from coupon_clock.maintenance.verify.stored_rows import Difference
from coupon_clock.projections import coupon_templates as read_model
from coupon_clock.projections import shop_months
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS, Filters, Page, TemplateRow, TemplateView
from coupon_clock.projections.engine.projection import Projection, ReadModelBehind, ReadModelOutdated
from coupon_clock.projections.engine.projection import position as rows_are_at
from coupon_clock.projections.rebuild.rebuild import (
    ForeignObjects,
    RebuildOptions,
    RebuildRunning,
    Rebuilt,
    RowsHidden,
    ShadowOfOtherFold,
    SwapBlocked,
)
from coupon_clock.projections.registry import PROJECTIONS, UnknownProjection
from coupon_clock.projections.shop_months import SHOP_MONTHS, MonthsPage, ShopMonth
from coupon_clock.runtime import Runtime

__all__ = [
    "AnswerLost",
    "Application",
    "BrokerMisconfigured",
    "ChangeValidity",
    "CommandConflict",
    "ConsumeRule",
    "CouponClockError",
    "CouponTemplateNotFound",
    "CouponTemplateOver",
    "CreateCouponTemplate",
    "Created",
    "DatabaseUnavailable",
    "Decider",
    "Difference",
    "EndReason",
    "Ended",
    "Envelope",
    "Event",
    "Executed",
    "Filters",
    "FixedAmount",
    "ForeignObjects",
    "ForeignTable",
    "IncreaseStock",
    "InvalidArgument",
    "InvalidCommand",
    "LatenessDistribution",
    "LoopDied",
    "Maintenance",
    "MemoryBroker",
    "MissingRight",
    "MonthsPage",
    "NotInParts",
    "OpenedBeforeFork",
    "Outcome",
    "OutcomeUnknown",
    "Page",
    "Part",
    "Percentage",
    "Problem",
    "PromiseReport",
    "ReadModelBehind",
    "ReadModelOutdated",
    "RebuildOptions",
    "RebuildRunning",
    "Rebuilt",
    "ReceiveRule",
    "RolesTornApart",
    "RowsHidden",
    "Runtime",
    "SchemaInUse",
    "SchemaMissing",
    "SchemaTooNew",
    "Settings",
    "ShadowOfOtherFold",
    "ShopMonth",
    "StockIncreased",
    "SwapBlocked",
    "TemplateRow",
    "TemplateView",
    "TerminateCouponTemplate",
    "ThresholdAmount",
    "UnknownProjection",
    "UnknownRole",
    "UnreadableEvent",
    "UnsafeLog",
    "UnusableSettings",
    "UnusableTransaction",
    "Validity",
    "ValidityChanged",
    "Violation",
]

SHOP_COMMANDS = get_args(ShopCommand)

READ_POLL_S = 0.005

NO_FILTERS = Filters()


class Outcome(Struct, frozen=True, gc=False):
    """`events`: those of this command, none when it was already so; `version` and `position` after them."""

    template_id: UUID
    version: int
    position: int
    events: tuple[Event, ...]


class Application:
    """Coupon templates that end on time. Safe to use from several threads."""

    def __init__(self, templates: Runtime[CouponTemplate, Command, Event]) -> None:
        self.runtime = templates
        self.settings = templates.settings
        self.database = templates.database
        self.store = templates.store
        self.maintenance = Maintenance(templates)

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Checks the schema; starts nothing. Raises UnusableSettings, DatabaseUnavailable, SchemaMissing, UnsafeLog."""
        settings = Settings.load() if settings is None else settings
        return cls(Runtime.open(settings, COUPON_TEMPLATES, StoredEvent, PROJECTIONS))

    @staticmethod
    def migrate(settings: Settings) -> list[int]:
        """Makes or updates the tables, all or nothing; returns the numbers of the migrations that ran.

        Raises ForeignTable, SchemaTooNew, SchemaInUse, UnsafeLog, MissingRight, DatabaseUnavailable.
        """
        return Runtime.migrate(settings, PROJECTIONS)

    @staticmethod
    def planned_migration(settings: Settings) -> str:
        """Returns the SQL that `migrate` would execute, empty where there is nothing to do. Raises as it does."""
        return Runtime.planned_migration(settings, PROJECTIONS)

    @staticmethod
    def roles_sql(settings: Settings) -> str:
        """Returns SQL that makes an owner, an application and a reader with their rights (docs/postgresql.md)."""
        arguments.refuse(arguments.of_type("settings", settings, Settings))
        return roles(Schema(settings.database_schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what follows and closes all connections; a `with` block does it by itself."""
        self.runtime.close()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def execute(self, command: ShopCommand, connection: Connection[Any] | None = None) -> Outcome:
        """Its events are stored when this returns; with a `connection`, when the open transaction there commits.

        Raises a CouponClockError: InvalidCommand, CouponTemplateNotFound, CouponTemplateOver, CommandConflict,
        OutcomeUnknown (send the same command again), DatabaseUnavailable, UnusableTransaction (docs/transactions.md).
        """
        if not isinstance(command, SHOP_COMMANDS):
            raise not_a_command(command)
        return outcome(self.runtime.execute(command, connection))

    def execute_many(self, commands: Sequence[ShopCommand]) -> list[Outcome | CouponClockError]:
        """Returns outcomes or errors in order, after few transactions; one that fails does not affect the others."""
        arguments.refuse(arguments.list_of("commands", commands))
        given = [(each, isinstance(each, SHOP_COMMANDS)) for each in commands]
        executed = iter(self.runtime.execute_many([each for each, is_ours in given if is_ours]))
        return [outcome_of(next(executed)) if is_ours else not_a_command(each) for each, is_ours in given]

    # ── queries ──────────────────────────────────────────────────────────────────────────────────

    def find(
        self, shop_number: int, template_id: UUID, at_least: int | None = None, timeout: float = 5.0
    ) -> TemplateView:
        """Returns the template from the read model, after waiting up to `timeout` seconds for position `at_least`.

        Raises CouponTemplateNotFound, InvalidArgument, ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        arguments.refuse(arguments.template(shop_number, template_id), arguments.waiting(at_least, timeout))
        with self._rows_at(TEMPLATE_ROWS, at_least, timeout) as connection:
            view = read_model.find(connection, self.database.schema, shop_number, template_id)
        if view is None:
            raise CouponTemplateNotFound(template_id, shop_number)
        return view

    def page(
        self,
        shop_number: int,
        filters: Filters = NO_FILTERS,
        after: UUID | None = None,
        limit: int = 50,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> Page:
        """Returns one shop's templates in order of their ids, up to `limit` (at most 1,000) after the cursor.

        Raises InvalidArgument, ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        wrong = read_model.page_problems(shop_number, filters, after, limit)
        arguments.refuse(wrong, arguments.waiting(at_least, timeout))
        with self._rows_at(TEMPLATE_ROWS, at_least, timeout) as connection:
            return read_model.page(connection, self.database.schema, shop_number, filters, after, limit)

    def shop_months(
        self,
        shop_number: int,
        before: date | None = None,
        limit: int = 12,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> MonthsPage:
        """Returns what happened in one shop, month by month, the latest first: up to `limit` (at most 1,000) before the
        cursor.

        Raises InvalidArgument, ReadModelBehind, ReadModelOutdated, DatabaseUnavailable.
        """
        arguments.refuse(shop_months.page_problems(shop_number, before, limit), arguments.waiting(at_least, timeout))
        with self._rows_at(SHOP_MONTHS, at_least, timeout) as connection:
            return shop_months.page(connection, self.database.schema, shop_number, before, limit)

    def history(self, shop_number: int, template_id: UUID) -> list[Envelope[Event]]:
        """Returns all events of a template, oldest first.

        Raises CouponTemplateNotFound, InvalidArgument (ids of a wrong type), UnreadableEvent, DatabaseUnavailable.
        """
        envelopes, _, _ = self._load(shop_number, template_id)
        return envelopes

    def state_at(self, shop_number: int, template_id: UUID, at: int | datetime) -> TemplateView:
        """Returns what the template was at that position of the log, or (aware) time, from the log alone.

        Raises CouponTemplateNotFound, also where it was created later; InvalidArgument, UnreadableEvent,
        DatabaseUnavailable.
        """
        arguments.refuse(arguments.position_or_time("at", at))
        envelopes, _, _ = self._load(shop_number, template_id)
        view = read_model.view_at(envelopes, at)
        if view is None:
            raise CouponTemplateNotFound(template_id, shop_number)
        return view

    def is_usable(self, shop_number: int, template_id: UUID, at: datetime | None = None) -> bool:
        """Returns whether the template, as the log has it now, is usable at that (aware) time; by default now, by
        PostgreSQL's clock.

        Raises CouponTemplateNotFound, InvalidArgument (a naive time, ids of a wrong type), UnreadableEvent,
        DatabaseUnavailable.
        """
        _, template, now = self._load(shop_number, template_id)
        return template.is_usable(at or now)

    def end_of_log(self) -> int:
        """Returns the highest position stored so far, 0 in an empty log: for `at_least` and `start`.

        Raises DatabaseUnavailable.
        """
        return self.store.end()

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
        """Hands every event to `handler(envelopes)`, in position order and at least once, until `stop` is set or the
        app closes.

        A durable checkpoint keeps the place. `start` counts the first time only: the position after which it begins,
        or "now". A batch whose handler raises is repeated whole, with back-off; an event that cannot be read stops it
        until `coupon-clock followers skip`. A second process with the same name waits, however slow the handler is.

        `transactional`: calls `handler(envelopes, connection)`, within a transaction on Coupon Clock's database in
        which the checkpoint moves too: what the handler writes there is committed exactly once.

        Raises InvalidArgument, for names of projections and a `start` beyond the end of the log too.
        """
        self.runtime.follow(name, handler, batch, start, stop, transactional)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def running(
        self, roles: Sequence[Role] = ROLES, broker: Broker | None = None, died: Died = interrupt_main_thread
    ) -> Iterator[None]:
        """These loops in threads, until the block ends. What is in hand is finished first, in 14 s at most; what is
        due within 5 s is ended, and what is due later is given back to the broker.

        `broker`: by default the one of the settings; closed at the end. `died(error)`: called, in the thread that ends,
        when a loop ends by itself, which none should; by default it does as Ctrl-C does, so that the block ends.
        Raises UnknownRole, RolesTornApart, BrokerMisconfigured, and at the end LoopDied.
        """
        with self.runtime.running(roles, broker, died):
            yield

    # ── what the above needs ─────────────────────────────────────────────────────────────────────

    def _load(self, shop_number: int, template_id: UUID) -> tuple[list[Envelope[Event]], CouponTemplate, datetime]:
        arguments.refuse(arguments.template(shop_number, template_id))
        envelopes, now = self.store.load(template_id)
        template = fold(envelope.event for envelope in envelopes)
        return envelopes, existing(template, template_id, shop_number), now

    @contextmanager
    def _rows_at(
        self, projection: Projection[Any], at_least: int | None, timeout: float
    ) -> Iterator[Connection[TupleRow]]:
        """Once they are that far; no connection is held meanwhile. Raises ReadModelBehind, ReadModelOutdated."""
        deadline = monotonic() + timeout
        while True:
            with self.database.connection() as connection:
                position = rows_are_at(connection, self.database.schema, projection)
                if at_least is None or position >= at_least:
                    yield connection
                    return
            if monotonic() >= deadline:
                raise ReadModelBehind(position, at_least)
            sleep(READ_POLL_S)


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────


def not_a_command(given: object) -> InvalidCommand:
    return InvalidCommand([Problem("command", given, "must be a command of a shop")])


def outcome_of(executed: Executed[Event] | CouponClockError) -> Outcome | CouponClockError:
    return executed if isinstance(executed, CouponClockError) else outcome(executed)


def outcome(executed: Executed[Event]) -> Outcome:
    return Outcome(executed.stream_id, executed.version, executed.position, executed.events)
