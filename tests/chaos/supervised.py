"""Processes of a run, started again after each end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import time

from chaos.journal import Journal

STOP_SECONDS = 30.0
CANNOT_BE_DONE = 2
"""The exit code of the command line, where PostgreSQL is away as it starts, too."""
TEXT_LOG = {"COUPON_CLOCK_LOG_FORMAT": "text"}
LIFE = "CHAOS_LIFE"
"""In the environment: how often a process of that name was started before."""


class Supervised:
    """One process at a time under a name. Its lives are noted: when each began and ended, and whether by itself."""

    def __init__(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], folder: Path, journal: Journal
    ) -> None:
        self.name = name
        self._command = command
        self._variables = variables
        self._log = folder / f"{name}.log"
        self._journal = journal
        self._process: subprocess.Popen[bytes] | None = None
        self._lives = 0
        self._lock = Lock()

    def start(self) -> None:
        self._process = self._run(self._command)
        self._lives += 1
        self._note("began")

    def start_again(self) -> None:
        """If it ended because PostgreSQL was away."""
        with self._lock:
            if self._running().poll() == CANNOT_BE_DONE:
                self._note("ended")
                self.start()

    def kill(self) -> None:
        """As by kill -9, unless it has ended by itself before."""
        with self._lock:
            process = self._running()
            self.note_own_end()
            process.kill()
            process.wait()
            self._note("ended")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing, and keeps all that it has."""
        process = self._running()
        self._note("ended")
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            self._note("began")

    def stop(self) -> None:
        process = self._running()
        self.note_own_end()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._journal.note("unexpected", by=self.name, error=f"it did not stop within {STOP_SECONDS:g} s")
            process.kill()
            process.wait()

    def note_own_end(self) -> None:
        """It should not, but for that."""
        if (code := self._running().poll()) not in (None, CANNOT_BE_DONE):
            self._journal.note("unexpected", by=self.name, error=f"it ended by itself, exit code {code}")

    def says(self, words: str) -> bool:
        """In its log, so far."""
        return words in self._log.read_text()

    def command_line(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Of the product, on its log."""
        return self._run([sys.executable, "-m", "coupon_clock.cli", *arguments])

    def end(self) -> None:
        """Whatever became of it."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def _run(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        variables = {**self._variables, LIFE: str(self._lives)}
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=os.environ | variables | TEXT_LOG, stdout=log, stderr=log)

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process
        return self._process

    def _note(self, what: str) -> None:
        self._journal.note("process", name=self.name, event=what, time=time())
