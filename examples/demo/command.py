"""Wires the demo. Exit codes: 0 every promise kept, 1 one was broken, 2 it could not run, 130 interrupted."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import psutil
import structlog
import typer
from rich.console import Console

from actions import Stage
from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.postgres.pool import connect
from coupon_clock.local_servers.servers import Broker as BrokerName
from coupon_clock.local_servers.servers import LocalServers
from coupon_clock.runtime import broker_for
from environment import alone_in, fresh_database, interrupt_on_signals, servers_in
from observer import Seen, sent, watching
from report import tell
from scenario import ARMING_WINDOW, LEAD, scenario
from scene import scene
from verdict import Report, judge
from view import Screen, shown

CANNOT_RUN = 2
INTERRUPTED = 130
FRAME_S = 0.1
GRACE = timedelta(seconds=3)
"""How long after the last end the demo goes on waiting for templates that did not end."""

PLAIN = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.dev.ConsoleRenderer(colors=False),
)

out = Console()
err = Console(stderr=True)


def main() -> None:
    interrupt_on_signals()
    try:
        typer.run(demo)
    except CouponClockError as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(CANNOT_RUN)


def demo(
    broker: Annotated[BrokerName, typer.Option(help="A real RocketMQ, or the in-process broker.")] = "rocketmq",
    folder: Annotated[Path, typer.Option("--dir", help="Where the servers keep everything.")] = Path(".demo"),
) -> None:
    """Forty coupon templates of three shops end on time, live."""
    forget_environment()
    try:
        with alone_in(folder), servers_in(folder, broker) as servers, log_to(folder / "demo.log"):
            report = run(servers)
    except KeyboardInterrupt:
        err.print("Interrupted; what the demo started is stopped.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(report.exit_code)


def run(servers: LocalServers) -> Report:
    settings = settings_for(servers)
    Application.migrate(settings)
    broker = broker_for(settings)
    broker.wants_ahead = ARMING_WINDOW  # the in-process one has no setting for it, and its 30 s leave nothing to see
    with Application.open(settings) as app:
        with app.running(broker=broker), watching(settings) as seen:
            stage = Stage(app, broker, next_second(datetime.now(UTC)))
            stage.create(scenario())
            first_template_after = time.time() - psutil.Process().create_time()
            with shown(out, title(broker)) as screen:
                play(stage, seen, screen)
        report = judge(stage.histories(), seen)
    tell(out, report, first_template_after)
    return report


def play(stage: Stage, seen: Seen, screen: Screen) -> None:
    """Until the read model shows every end, or it is long past the last one."""
    with connect(stage.app.settings) as connection:
        while True:
            now, messages = datetime.now(UTC), sent(connection)
            stage.tick(now, messages)
            screen(scene(now, stage.templates, messages, seen))
            if len(seen.shown_at) == len(stage.templates) or now > stage.last_end() + GRACE:
                return
            time.sleep(FRAME_S)


def forget_environment() -> None:
    """Variables that point this shell at other servers must not reach the demo."""
    for name in [name for name in os.environ if name.startswith("COUPON_CLOCK_")]:
        del os.environ[name]


def settings_for(servers: LocalServers) -> Settings:
    return Settings.load(
        database_url=fresh_database(servers.postgres.url),
        rocketmq_endpoints=servers.rocketmq.endpoints if servers.rocketmq else "",
        arming_window=ARMING_WINDOW.total_seconds(),
        lead=LEAD.total_seconds(),
    )


def title(broker: Broker) -> str:
    name = {"rocketmq": "RocketMQ", "memory": "the in-process broker"}[broker.name]
    return f"Coupon Clock on {name}: messages are sent {ARMING_WINDOW.seconds} s before the end"


def next_second(time: datetime) -> datetime:
    return time.replace(microsecond=0) + timedelta(seconds=1)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """What the loops have to say, out of the table's way; what is said after that, of servers that are gone, is not."""
    with file.open("w", buffering=1) as lines:
        structlog.configure([*PLAIN], logger_factory=structlog.WriteLoggerFactory(lines))
        try:
            yield
        finally:
            structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
