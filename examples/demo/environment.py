"""What one run needs around it: the folder to itself, its servers, a fresh database. All of it is given back."""

import fcntl
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.local_servers.progress import shown
from coupon_clock.local_servers.servers import Broker, LocalServers, named_if_unusable
from coupon_clock.testing import in_database

DATABASE = "coupon_clock_demo_"


@dataclass(eq=False)
class FolderBusy(CouponClockError):
    """Another demo is running in {folder}: wait for it, or choose another folder with --dir."""

    folder: Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder against other demos. The kernel lets go when this process ends, however it ends."""
    with named_if_unusable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "demo.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusy(folder) from None
        yield


@contextmanager
def servers_in(folder: Path, broker: Broker) -> Iterator[LocalServers]:
    """Started, or taken over from a demo that was killed. Killed at the end, which is quick; what they store stays."""
    servers = LocalServers(folder, broker)
    try:
        with shown() as progress:
            servers.up(progress)
        yield servers
    finally:
        ignore_interruptions()
        servers.kill()


def fresh_database(server_url: str) -> str:
    """The URL of a new database; those of earlier runs are dropped."""
    with translate_errors(), psycopg.connect(server_url, autocommit=True) as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall():
            if re.fullmatch(f"{DATABASE}[0-9a-f]{{32}}", name):
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        name = DATABASE + uuid4().hex
        connection.execute(f"CREATE DATABASE {name}")
    return in_database(server_url, name)


def interrupt_on_signals() -> None:
    """SIGTERM as Ctrl-C, and Ctrl-C also where a shell started this in the background, ignoring it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def ignore_interruptions() -> None:
    """For the last steps: an impatient second Ctrl-C must not leave servers behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
