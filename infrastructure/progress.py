"""How long work shows how far it is: bars on a terminal, plain lines when piped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_LINE_EVERY_S = 2.0


class Progress(Protocol):
    """Called with the step, how much of it is done and how much there is (None where nobody knows), in any unit; from
    any thread. Another step begins a count of its own."""

    def __call__(self, step: str, done: int, total: int | None, /) -> object: ...


def no_progress(step: str, done: int, total: int | None) -> None:
    """For callers with nobody watching."""


@contextmanager
def shown_progress(
    console: Console, done_before: int = 0, line_every_s: float = PLAIN_LINE_EVERY_S
) -> Iterator[Progress]:
    """`done_before`: what does not count for the rate of the first step."""
    if not console.is_terminal:
        yield PlainLines(console, done_before, line_every_s)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with RichProgress(*columns, console=console) as bars:
        yield Bars(bars, done_before)


class Bars:
    """One bar a step."""

    def __init__(self, bars: RichProgress, done_before: int) -> None:
        self._bars = bars
        self._done_before = done_before
        self._lock = Lock()
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        with self._lock:
            if step not in self._tasks:
                first = 0 if self._tasks else self._done_before
                self._tasks[step] = self._bars.add_task(step, total=total, completed=first)
            self._bars.update(self._tasks[step], completed=done, total=total)


@dataclass
class Step:
    """What plain lines know of one; `first`: how much was done when it began."""

    first: int
    began_at: float
    printed_at: float
    is_done: bool = False


class PlainLines:
    """A line when a step begins, one now and then, and one when it is done."""

    def __init__(self, console: Console, done_before: int, line_every_s: float) -> None:
        self._console = console
        self._done_before = done_before
        self._line_every_s = line_every_s
        self._lock = Lock()
        self._steps: dict[str, Step] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        now = monotonic()
        with self._lock:
            if step not in self._steps:
                self._steps[step] = Step(done if self._steps else self._done_before, now, now)
                if done == 0:
                    self._print(f"{step} …")
            known = self._steps[step]
            if known.is_done:
                return
            if total and done >= total:
                known.is_done = True
                self._print(f"{step}: done")
            elif now - known.printed_at >= self._line_every_s:
                known.printed_at = now
                rate = (done - known.first) / max(now - known.began_at, 1e-6)
                left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
                self._print(f"{step}: {done:,}{f' of {total:,}' if total else ''}, {rate:,.0f} a second{left}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


class RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")
