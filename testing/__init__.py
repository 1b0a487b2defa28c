"""For users' own tests: a clock to turn, an application on a throw-away database, and given / when / then.

with throw_away_database(server_url) as url, open_test_application(url, datetime(2026, 1, 1, tzinfo=UTC)) as app:
    given(app, CreateCouponTemplate(…))
    app.clock.advance(days=90)
    app.run_due()
    then(app, Ended(shop_number, EndReason.EXPIRED, ended_at))

The same for streams of one's own: `TestRuntime`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from coupon_clock.app import Application
from coupon_clock.domain import rules
from coupon_clock.domain.decider import AnyCommand, Command
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Event
from coupon_clock.domain.validity import utc
from coupon_clock.infrastructure.event_store.log_reader import LogReader
from coupon_clock.infrastructure.event_store.migrations import MIGRATIONS, script
from coupon_clock.infrastructure.loop import Counts
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.infrastructure.postgres.database import Schema, connect
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.registry import PROJECTIONS
from coupon_clock.runtime import Executed, Runtime

MANUAL = """
CREATE TABLE IF NOT EXISTS {schema}.manual_clock (at timestamptz);
CREATE OR REPLACE FUNCTION {schema}.now_utc() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT coalesce((SELECT at FROM {schema}.manual_clock), clock_timestamp())';
DROP TRIGGER refuse_late_move ON {schema}.alarm;
CREATE CONSTRAINT TRIGGER refuse_late_move AFTER UPDATE OF due_at ON {schema}.alarm
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.due_at IS DISTINCT FROM NEW.due_at)
    EXECUTE FUNCTION {schema}.refuse_late_move('0');
"""

MOST_TICKS = 1_000
WAITING = {"not_due"}
"""What is held until an instant that does not come while the clock stands still."""
PAGE = 1_000
TEMPLATE_LOCK = 1129271118

NO_GRACE = timedelta(0)

Refusal = TypeVar("Refusal", bound=CouponClockError)
AnyEvent = TypeVar("AnyEvent")
Answer = TypeVar("Answer")
TakenCommand = TypeVar("TakenCommand", contravariant=True)
GivenAnswer = TypeVar("GivenAnswer", covariant=True)


@contextmanager
def throw_away_database(server_url: str) -> Iterator[str]:
    """The URL of a new database on that server, with all tables in it; dropped afterwards.

    `server_url`: anything that libpq takes, of a user who may create databases, and with a database to connect to.
    Copied from a template database, which is made once a server and version of the tables.
    """
    template = _template(server_url)
    name = f"coupon_clock_test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield in_database(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def open_test_application(database_url: str, now: datetime, **settings: Any) -> Iterator["TestApplication"]:
    """An application whose PostgreSQL thinks it is `now` (an aware time) until the clock is turned.

    Only for a throw-away database.
    """
    given = Settings.load(database_url=database_url, **{"reconcile_grace": 0} | settings)
    clock = ManualClock(given, now)
    with TestApplication.open(given) as app:
        app.clock = clock
        app.reader = LogReader(app.store.recorder, 0)
        app.ticks = [app.runtime.parts(MemoryBroker()).run_once]
        yield app


class ManualClock:
    """PostgreSQL's time in one throw-away database and schema, turned by hand. `now` is kept in UTC."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self._settings = settings
        self._schema = Schema(settings.database_schema)
        with connect(settings) as connection:
            connection.execute(self._schema.sql(MANUAL))
        self.set(now)

    def set(self, now: datetime) -> None:
        """`now`: an aware time. Raises InvalidCommand where it is naive."""
        rules.refuse(rules.instant("now", now))
        self.now = utc(now)
        with connect(self._settings) as connection, connection.transaction():
            connection.execute(self._schema.sql("DELETE FROM {schema}.manual_clock"))
            connection.execute(self._schema.sql("INSERT INTO {schema}.manual_clock VALUES (%s)"), (self.now,))

    def advance(self, **by: float) -> None:
        """By days (of 24 hours), hours, minutes, seconds, milliseconds, microseconds, as `timedelta` takes them."""
        self.set(self.now + timedelta(**by))


class TestApplication(Application):
    """An application with a clock to turn and nothing in the background: `run_due` does what the loops would."""

    __test__ = False  # its name looks like a test to pytest
    clock: ManualClock
    ticks: list[Callable[[], Counts]]
    reader: LogReader
    refusal: CouponClockError | None = None

    def run_due(self) -> Counts:
        """Runs relay, consumer, reconciler and projectors until nothing is left to do at this time."""
        return run_due(self.runtime, self.ticks)

    def happened(self) -> list[Event]:
        """All events since it was asked last, in the order of the log."""
        return news(self.runtime, self.reader)


class TestRuntime(Generic[Command, AnyEvent]):
    """An open runtime of one's own with a clock to turn, and nothing in the background. Only in a throw-away
    database: `with open_orders(database_url=url) as runtime: orders = TestRuntime(runtime, now)`."""

    __test__ = False

    def __init__(self, runtime: Runtime[Any, Command, AnyEvent], now: datetime) -> None:
        self.runtime = runtime
        self.clock = ManualClock(runtime.settings, now)
        self.refusal: CouponClockError | None = None
        self._reader = LogReader(runtime.store.recorder, 0)
        self._ticks = [runtime.parts(MemoryBroker()).run_once]

    def execute(self, command: Command) -> Executed[AnyEvent]:
        """As the runtime does."""
        return self.runtime.execute(command)

    def run_due(self) -> Counts:
        """Runs relay, consumer, reconciler and projectors until nothing is left to do at this time."""
        return run_due(self.runtime, self._ticks)

    def happened(self) -> list[AnyEvent]:
        """All events since it was asked last, in the order of the log."""
        return news(self.runtime, self._reader)


# ── given / when / then ──────────────────────────────────────────────────────────────────────────


class Turned(Protocol[TakenCommand, GivenAnswer]):
    """What given / when / then need: a TestApplication, a TestRuntime, or what does as they do."""

    refusal: CouponClockError | None

    def execute(self, command: TakenCommand, /) -> GivenAnswer: ...

    def happened(self) -> Sequence[object]: ...


def given(app: Turned[Any, Any], *commands: AnyCommand) -> None:
    """These happened before. Raises what one is refused with."""
    fail_if_refused(app)
    for command in commands:
        app.execute(command)
    app.happened()


def when(app: Turned[Command, Answer], command: Command) -> Answer | None:
    """This comes; None where it is refused, which `then_refused` wants to know and all others take for a failure."""
    fail_if_refused(app)
    try:
        return app.execute(command)
    except CouponClockError as refusal:
        app.refusal = refusal
        return None


def then(app: Turned[Any, Any], *events: object) -> None:
    """These events have happened since the last `given` or `then`, in the order of the log, and no other."""
    fail_if_refused(app)
    happened = list(app.happened())
    if happened != list(events):
        raise AssertionError(f"happened: {happened}, not {list(events)}")


def then_nothing(app: Turned[Any, Any]) -> None:
    """Nothing has happened since the last `given` or `then`."""
    then(app)


def then_refused(app: Turned[Any, Any], error: type[Refusal]) -> Refusal:
    """The last `when` was refused so, and nothing has happened. Answers with the refusal."""
    refusal, app.refusal = app.refusal, None
    if not isinstance(refusal, error):
        raise AssertionError(f"refused: {refusal!r}, not {error.__name__}") from refusal
    then_nothing(app)
    return refusal


def fail_if_refused(app: Turned[Any, Any]) -> None:
    """A refusal that no `then_refused` asked for is a failure, and the next step is the last chance to say so."""
    refusal, app.refusal = app.refusal, None
    if refusal is not None:
        raise AssertionError(f"refused: {refusal}") from refusal


# ── databases and ticks ──────────────────────────────────────────────────────────────────────────


def run_due(runtime: Runtime[Any, Any, Any], ticks: Sequence[Callable[[], Counts]]) -> Counts:
    """Runs these in turn until nothing is left to do at this time; for a runtime alone, its `parts(…).run_once`."""
    runtime.store.learn_time()
    done = Counts()
    for _ in range(MOST_TICKS):
        counts = sum((tick() for tick in ticks), Counts())
        if not set(counts) - WAITING:
            return done
        if set(counts) == {"failed"} and (reason := why_it_fails(runtime)):
            raise AssertionError(f"{counts['failed']} of the streams that are due fail: {reason}")
        done += counts
    raise AssertionError(f"still busy after {MOST_TICKS} ticks: {done}")


def why_it_fails(runtime: Runtime[Any, Any, Any]) -> str:
    """Why the first stream that is due cannot be looked at, found by looking again, because the loops only log it;
    empty where it now can."""
    return "".join(str(failure.error) for failure in runtime.handle_due([], "reconciler").failures[:1])


def news(runtime: Runtime[Any, Any, AnyEvent], reader: LogReader) -> list[AnyEvent]:
    """The events that this reader has not read yet, in the order of the log."""
    events: list[AnyEvent] = []
    while page := reader.page(PAGE).events:
        events += [runtime.store.envelope(stored).event for stored in page]
    return events


def in_database(server_url: str, name: str) -> str:
    """The URL of another database on the same server, which is named by a URL or by libpq's key=value pairs."""
    parameters = {key: value for key, value in conninfo_to_dict(server_url).items() if key != "dbname"}
    return f"postgresql:///{quote(name)}?{urlencode(parameters, safe='/', quote_via=quote)}"


def _template(server_url: str) -> str:
    tables = [(repr(projection.table(projection.name)), projection.fold_version) for projection in PROJECTIONS]
    shape = "".join(script(number) for number in range(1, len(MIGRATIONS) + 1)) + str(tables)
    name = f"coupon_clock_template_{sha256(shape.encode()).hexdigest()[:16]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (TEMPLATE_LOCK,))
        (exists,) = connection.execute(
            "SELECT exists(SELECT FROM pg_database WHERE datname = %s AND datistemplate)", (name,)
        ).fetchone() or (False,)
        if not exists:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name}")
            Application.migrate(Settings.load(database_url=in_database(server_url, name)))
            connection.execute(f"ALTER DATABASE {name} IS_TEMPLATE true")
    return name
