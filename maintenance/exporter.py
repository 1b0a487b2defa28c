"""Metrics and health of a process over HTTP: /metrics, /livez, /readyz.

What is read from the database is read when it is asked for, so it is also right where the loops are dead; once in some
seconds, however many ask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from time import monotonic
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from coupon_clock.deadlines import ROLES, Deadlines
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.processes import HUNG_AFTER_S, roles_run
from coupon_clock.maintenance.findings import findings
from coupon_clock.maintenance.status import Status, read_status

KEPT_S = 5.0
READY = "SELECT FROM {schema}.event LIMIT 0"

log = Log(__name__)


@dataclass(eq=False)
class PortUnusable(CouponClockError):
    """Metrics cannot be served at {host}:{port} ({reason}): choose another with --port and --host."""

    host: str
    port: int
    reason: str


class Answer(NamedTuple):
    """Of a health check."""

    ok: bool
    says: str


class Health:
    """Of this process: whether its loops get on, and whether PostgreSQL takes its writes."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    def live(self) -> Answer:
        """That PostgreSQL or the broker is away does not fail it: a restart would not help."""
        in_hand = self._deadlines.ticks.in_hand()
        hung = [f"{loop} for {seconds:.0f} s" for loop, seconds in in_hand.items() if seconds > HUNG_AFTER_S]
        return Answer(not hung, f"in one tick: {', '.join(hung)}" if hung else f"{len(in_hand)} loops get on")

    def ready(self) -> Answer:
        """Whether PostgreSQL is there and takes writes."""
        database = self._deadlines.database
        try:
            with database.connection() as connection:
                connection.execute(database.sql(READY))
                ((read_only,),) = connection.execute("SELECT current_setting('transaction_read_only') = 'on'")
        except CouponClockError as error:
            return Answer(False, str(error))
        return Answer(not read_only, "PostgreSQL takes no writes here" if read_only else "PostgreSQL takes writes")


class StatusCollector(Collector):
    """The status as gauges. Where the database cannot be read, one says so, and the others are missing."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._lock = Lock()
        self._read_at = float("-inf")
        self._families: list[GaugeMetricFamily] = []

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            if monotonic() - self._read_at > KEPT_S:
                self._families = list(self._read())
                self._read_at = monotonic()
            families = self._families
        yield from families

    def _read(self) -> Iterator[GaugeMetricFamily]:
        try:
            status = read_status(self._deadlines.database)
        except CouponClockError as error:
            log.warning("the status cannot be read", action="collect", why=error)
            yield gauge("database_up", "Whether PostgreSQL can be read", 0)
            return
        yield gauge("database_up", "Whether PostgreSQL can be read", 1)
        yield from gauges(status)
        found = findings(status, self._deadlines.settings)
        yield labelled("finding", "What needs a person", "name", {finding.name: 1.0 for finding in found})


def gauges(status: Status) -> Iterator[GaugeMetricFamily]:
    alarms, at = status.alarms, status.alarms.at
    since = alarms.overdue_since
    yield gauge("overdue_alarms", "Templates that should have ended already, up to 100,000", alarms.overdue)
    yield gauge("overdue_seconds", "Since when the first of them", (at - since).total_seconds() if since else 0)
    yield gauge("stuck_streams", "Streams that are due and cannot be handled", status.stuck.streams)
    yield gauge("unarmed_alarms", "Alarms in the arming window that no broker has, up to 100,000", alarms.unarmed)
    yield gauge("unarmed_late_alarms", "The same that are due within the lead", alarms.unarmed_late)
    yield gauge("due_in_an_hour", "Templates that end within an hour, up to 100,000", alarms.in_an_hour)
    yield gauge("peak_ends", "The most ends in one minute of the next day", status.ahead.peak)
    followed = {lag.follower.name: lag.follower for lag in status.lags}
    behind = {name: float(follower.behind) for name, follower in followed.items()}
    behind_s = {name: follower.behind_s or 0.0 for name, follower in followed.items()}
    stopped = {name: float(follower.is_stopped) for name, follower in followed.items()}
    yield labelled("behind_events", "Positions up to the end of the log", "follower", behind)
    yield labelled("behind_seconds", "How long ago the next event was recorded", "follower", behind_s)
    yield labelled("stopped", "Whether it does not go on by itself", "follower", stopped)
    quarantined = {name: float(count) for name, count in status.quarantined.items()}
    yield labelled("quarantined_streams", "Streams left alone", "projection", quarantined)
    rejected = sum(each.messages for each in status.rejected)
    yield gauge("rejected_messages", "Messages that could not be acted on, of the five most frequent reasons", rejected)
    shares = {lateness.window: lateness.by_reconciler for lateness in status.lateness}
    yield labelled("reconciler_share", "Of the ends in this window", "window", shares)
    holder_since = status.snapshot[1] if status.snapshot else None
    snapshot_s = (at - holder_since).total_seconds() if holder_since else 0
    yield gauge("snapshot_seconds", "Age of the oldest snapshot", snapshot_s)
    yield gauge("read_only", "Whether PostgreSQL takes no writes", float(status.server.is_read_only))
    yield gauge("broker_up", "Whether RocketMQ takes connections, 1 without one", float(status.broker is None))
    dead = sum(process.is_dead for process in status.processes)
    yield gauge("dead_processes", "Processes that ended without a word in the last day", dead)
    running = roles_run(status.processes)
    yield labelled("processes", "Processes with this role", "role", {role: float(running[role]) for role in ROLES})


def gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"coupon_clock_{name}", about, value=value)


def labelled(name: str, about: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"coupon_clock_{name}", about, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(deadlines: Deadlines, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """As long as the block lasts. Yields the port: another than 0 where that was given. Raises PortUnusable."""
    both = CollectorRegistry()
    both.register(REGISTRY)
    both.register(StatusCollector(deadlines))
    health = Health(deadlines)
    checks: dict[str, Callable[[], Answer]] = {"/livez": health.live, "/readyz": health.ready}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._metrics()
            elif path in checks:
                answer = checks[path]()
                self._answer(200 if answer.ok else 503, f"{answer.says}\n".encode())
            else:
                self._answer(404, b"/metrics, /livez, /readyz\n")

        def _metrics(self) -> None:
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encoder(both), content_type)

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """A probe every second is not worth a line."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise PortUnusable(host, port, error.strerror or str(error)) from error
    thread = Thread(target=server.serve_forever, name="coupon-clock-exporter", daemon=True)
    thread.start()
    log.info("serving metrics", action="serve", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
