"""How slow steps tell a person how far they are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Called with what is being done, how much is done and how much there is, in any unit; from any thread."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """For callers with nobody watching."""


@contextmanager
def shown() -> Iterator[Progress]:
    """Bars on a terminal, plain lines where stderr is piped."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarPerStep(bars)


class BarPerStep:
    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.lock = Lock()
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        with self.lock:
            if what not in self.tasks:
                self.tasks[what] = self.bars.add_task(what, total=total)
            self.bars.update(self.tasks[what], completed=done, total=total)


class Lines:
    """A line when a step begins, at each quarter of the way, and when it is done."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.said: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 4
        with self.lock:
            if self.said.get(what, -1) < quarter:
                self.said[what] = quarter
                print(self.line(what, quarter), file=sys.stderr, flush=True)  # noqa: T201

    def line(self, what: str, quarter: int) -> str:
        ending = {0: " …", 4: ": done"}.get(quarter, f": {25 * quarter} %")
        return what + ending
