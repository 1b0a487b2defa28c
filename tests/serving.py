"""A process of its own that runs all loops and serves commands, and what tests see of it from outside."""

import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self
from uuid import UUID

import psutil

from coupon_clock.app import Application, Settings
from coupon_clock.infrastructure.logs import log_to_stderr
from coupon_clock.infrastructure.telemetry import FAILURES
from examples import ending_in

MEGABYTE = 1 << 20


class Footprint(NamedTuple):
    threads: int
    descriptors: int
    megabytes: int

    @classmethod
    def of(cls, pid: int) -> Self:
        process = psutil.Process(pid)
        return cls(process.num_threads(), process.num_fds(), process.memory_info().rss // MEGABYTE)

    def grew(self, since: Self) -> Self:
        return type(self)(*map(operator.sub, self, since))

    def is_within(self, most: Self) -> bool:
        return all(map(operator.le, self, most))


class Serving:
    """What it says is in `log`."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | variables(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
        )

    def create_template(self, seconds: float) -> UUID:
        """Its id; it ends in so many seconds."""
        stdin, stdout = pipes(self._process)
        print(seconds, file=stdin, flush=True)
        return UUID(stdout.readline().strip())

    def failed_ticks(self) -> int:
        """Of all loops so far."""
        stdin, stdout = pipes(self._process)
        print("failed", file=stdin, flush=True)
        return int(float(stdout.readline()))

    def says(self, words: str) -> int:
        """How often."""
        return self._log.read_text().count(words)

    def footprint(self) -> Footprint:
        return Footprint.of(self._process.pid)

    def stop(self) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[Serving]:
    process = Serving(settings, log)
    try:
        yield process
        process.stop()
    finally:
        process.kill()


def variables(settings: Settings) -> dict[str, str]:
    return {
        "COUPON_CLOCK_DATABASE_URL": settings.database(),
        "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": settings.rocketmq_endpoints,
        "COUPON_CLOCK_ROCKETMQ_TOPIC": settings.rocketmq_topic,
        "COUPON_CLOCK_ROCKETMQ_GROUP": settings.rocketmq_group,
        "COUPON_CLOCK_LEAD": str(settings.lead),
    }


def pipes(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert process.stdin
    assert process.stdout
    return process.stdin, process.stdout


def serve() -> None:
    """Reads seconds, one number a line, and answers each with the id of a new template that ends in so many; "failed"
    with how many ticks did."""
    log_to_stderr()
    with Application.open() as app, app.running():
        for seconds in sys.stdin:
            if seconds.strip() == "failed":
                print(failed_ticks(), flush=True)
                continue
            template = ending_in(float(seconds))
            app.execute(template)
            print(template.template_id, flush=True)


def failed_ticks() -> float:
    samples = (sample for metric in FAILURES.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


if __name__ == "__main__":
    serve()
