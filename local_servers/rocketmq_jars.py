"""RocketMQ's jars, fetched once from Maven Central into a cache outside the repository.

Only what has the pinned checksum is moved into the cache, in one step. What is there is checked again at every start,
since others may have written to it. The list is pinned flat, because jgo cannot resolve a version range of the grpc
dependencies.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import requests
from jgo.maven import MavenContext, PythonResolver

from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.local_servers.errors import JarDamaged, JarNotDownloaded
from coupon_clock.local_servers.folder_lock import locked

VERSION = "5.5.0"
THREADS = 8


@dataclass(frozen=True)
class Jar:
    """One pinned artifact."""

    group: str
    name: str
    classifier: str
    version: str
    sha256: str
    size: int

    @classmethod
    def from_line(cls, line: str) -> "Jar":
        """Reads `group:artifact[:classifier]:version sha256 size`."""
        artifact, sha256, size = line.split()
        group, name, *classifier, version = artifact.split(":")
        return cls(group, name, "".join(classifier), version, sha256, int(size))

    def __str__(self) -> str:
        return ":".join(filter(None, (self.group, self.name, self.classifier, self.version)))

    @property
    def filename(self) -> str:
        return "-".join(filter(None, (self.name, self.version, self.classifier))) + ".jar"

    def is_in(self, folder: Path) -> bool:
        """Whether the folder holds it with the pinned checksum. All of them take about 0.2 s."""
        try:
            with (folder / self.filename).open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


def pinned() -> list[Jar]:
    lines = Path(__file__).with_suffix(".txt").read_text().splitlines()
    return [Jar.from_line(line) for line in lines if not line.startswith("#")]


def cache_folder() -> Path:
    """Where this platform keeps what can be fetched again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "coupon-clock"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coupon-clock"


def rocketmq_jars(progress: Progress = no_progress) -> Path:
    """The folder that holds all of RocketMQ's jars, those missing or changed fetched first."""
    folder = cache_folder() / f"rocketmq-{VERSION}"
    jars = pinned()
    if not all(jar.is_in(folder) for jar in jars):
        with locked(folder):
            fetch([jar for jar in jars if not jar.is_in(folder)], folder, progress)
    return folder


def fetch(jars: list[Jar], folder: Path, progress: Progress) -> None:
    """Downloads side by side, the biggest first. The first failure stops the rest; what has arrived is kept."""
    meter = Meter(sum(jar.size for jar in jars), progress)
    biggest_first = sorted(jars, key=lambda jar: jar.size, reverse=True)
    arrivals = folder / "arriving"
    shutil.rmtree(arrivals, ignore_errors=True)  # what a killed run left may not be whole
    with ThreadPoolExecutor(THREADS) as threads:
        downloads = [threads.submit(fetch_one, jar, arrivals, folder, meter) for jar in biggest_first]
        try:
            for done in as_completed(downloads):
                done.result()
        finally:
            meter.stopped.set()
            threads.shutdown(cancel_futures=True)
            shutil.rmtree(arrivals, ignore_errors=True)


def fetch_one(jar: Jar, arrivals: Path, folder: Path, meter: "Meter") -> None:
    """Raises JarNotDownloaded, JarDamaged."""
    resolver = PythonResolver(progress_callback=meter.count)
    context = MavenContext(resolver=resolver, repo_cache=arrivals, timeout=30)
    artifact = context.project(jar.group, jar.name).at_version(jar.version).artifact(jar.classifier)
    try:
        arrived = artifact.resolve()
    except (requests.RequestException, RuntimeError) as failure:
        raise JarNotDownloaded(str(jar), reason(failure)) from failure
    if hashlib.sha256(arrived.read_bytes()).hexdigest() != jar.sha256:
        raise JarDamaged(str(jar))
    arrived.replace(folder / jar.filename)


def reason(failure: Exception) -> str:
    """The innermost cause: requests wraps it several times, each time with more of the wrapper in the text."""
    while failure.__cause__ or failure.__context__:
        failure = failure.__cause__ or failure.__context__  # type: ignore[assignment]
    return str(failure)


class Stopped(Exception):
    """Another download has failed, or the user has interrupted all."""


class Meter:
    """Adds up the bytes of all downloads, and ends them in the middle when asked to."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self.progress = progress
        self.done = 0
        self.lock = Lock()
        self.stopped = Event()

    @contextmanager
    def count(self, filename: str, size: int) -> Iterator[Callable[[int], None]]:
        """jgo's progress callback: one file of that many bytes begins."""
        yield self.add

    def add(self, size: int) -> None:
        if self.stopped.is_set():
            raise Stopped
        with self.lock:
            self.done += size
            self.progress("Fetching RocketMQ", self.done, self.total)
