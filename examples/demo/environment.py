"""What one run needs: the folder to itself, servers, an empty database, a log file."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGTERM, signal

import psycopg
from rich.console import Console

from actions import ARMING_WINDOW, LEAD
from coupon_clock import CouponClockError, Settings
from coupon_clock.infrastructure.progress import shown_progress
from coupon_clock.local_servers.folder_lock import locked
from coupon_clock.local_servers.servers import BrokerKind, LocalServers, named_if_unusable
from coupon_clock.testing import in_database


@dataclass(eq=False)
class FolderBusy(CouponClockError):
    """Another demo is running in {folder}: wait for it, or choose another folder with --dir."""

    folder: Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder against other demos."""
    with ExitStack() as stack:
        with named_if_unusable(folder):
            try:
                stack.enter_context(locked(folder, wait=False))
            except BlockingIOError:
                raise FolderBusy(folder) from None
        yield


@contextmanager
def environment(folder: Path, broker: BrokerKind) -> Iterator[Settings]:
    """Yields settings for the servers in that folder, started or taken over. They are killed at the end; data stays."""
    for name in [name for name in os.environ if name.startswith("COUPON_CLOCK_")]:
        del os.environ[name]  # this shell may point at other servers
    servers = LocalServers(folder, broker)
    try:
        with shown_progress(Console(stderr=True)) as progress:
            servers.up(progress)
        logging.basicConfig(filename=folder / "demo.log", filemode="w", level=logging.INFO)  # out of the table's way
        yield Settings.load(
            database_url=empty_database(servers.postgres.url),
            rocketmq_endpoints=servers.rocketmq.endpoints if servers.rocketmq else "",
            arming_window=ARMING_WINDOW.total_seconds(),
            lead=LEAD.total_seconds(),
        )
    finally:
        signal(SIGTERM, SIG_IGN)
        signal(SIGINT, SIG_IGN)  # an impatient second Ctrl-C must not leave servers behind
        servers.kill()


def empty_database(server_url: str, name: str = "coupon_clock_demo") -> str:
    """Returns the URL of a new database, in the place of the one of the run before."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    return in_database(server_url, name)
