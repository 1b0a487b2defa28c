"""How a long command tells a person how far it is: a bar on a terminal, a plain line now and then when piped."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE_EVERY_S = 2.0


@contextmanager
def shown_progress(console: Console, what: str, first: int = 0) -> Iterator["ProgressOf"]:
    """`first`: what was done before, and so does not count for the rate."""
    if not console.is_terminal:
        yield ProgressOf(console, what, first, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield ProgressOf(console, what, first, bar)


class ProgressOf:
    """`progress(done, total)`, with rate and time left; another `what` begins a new step."""

    def __init__(self, console: Console, what: str, first: int, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task(what, total=None, completed=first) if bar else None
        self._what, self._first = what, first
        self._began_at = self._told_at = monotonic()

    def __call__(self, done: int, total: int | None, what: str | None = None) -> None:
        if what is not None and what != self._what:
            self._begin(what, done)
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=self._what, completed=done, total=total)
        elif monotonic() - self._told_at >= PLAIN_LINE_EVERY_S:
            self._console.print(f"{self._what}: {self._measured(done, total)}", highlight=False, soft_wrap=True)
            self._told_at = monotonic()

    def _begin(self, what: str, done: int) -> None:
        self._what, self._first = what, done
        self._began_at = self._told_at = monotonic()
        if self._bar and self._task is not None:
            self._bar.reset(self._task)

    def _measured(self, done: int, total: int | None) -> str:
        rate = (done - self._first) / max(monotonic() - self._began_at, 1e-6)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        return f"{done:,}{f' of {total:,}' if total else ''}, {rate:,.0f} a second{left}"


class RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")
