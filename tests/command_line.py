"""The command line as a user meets it: a process of its own, its output and its exit code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def coupon_clock(*arguments: str, database_url: str = "", given: bytes = b"") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(database_url),
        input=given.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coupon_clock.cli", *arguments]


def environment(database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COUPON_CLOCK_")}
    given = {"COUPON_CLOCK_DATABASE_URL": database_url} if database_url else {}
    return kept | given | {"COUPON_CLOCK_LOG_FORMAT": "text"}


@contextmanager
def running(database_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end, if it still runs."""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(database_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
