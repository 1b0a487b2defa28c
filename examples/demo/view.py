"""The scene on a terminal: a table that updates. Plain lines where the output is piped."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scene import Row, Scene, State

COLUMNS = {
    "Shop": 4,
    "Template": 15,
    "Ends at": 10,
    "Left": 14,
    "State": 14,
    "After end": 9,
    "What happened": 21,
}
AROUND_ROWS = 5
"""Lines of the table that are not rows, and one for the cursor."""
BAR_CELLS = 7
SECONDS_PER_CELL = 3

STYLES: dict[State, str] = {"waiting": "dim", "message sent": "cyan", "terminated": "yellow", "ended": "green"}
SIGNS: dict[State, str] = {"waiting": "·", "message sent": "→", "terminated": "✕", "ended": "✓"}


class Screen(Protocol):
    """Called with each scene, several times a second."""

    def __call__(self, scene: Scene) -> None: ...


@contextmanager
def shown(console: Console, title: str) -> Iterator[Screen]:
    """The last scene stays on the terminal, whole."""
    if not console.is_terminal:
        console.print(title, highlight=False, soft_wrap=True)
        yield Lines(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live, title)
        yield table
        table.finish()


class LiveTable:
    def __init__(self, live: Live, title: str) -> None:
        self._live = live
        self._title = title
        self._last: Scene | None = None

    def __call__(self, scene: Scene) -> None:
        self._last = scene
        fitting = max(1, self._live.console.height - AROUND_ROWS)
        self._live.update(table(scene, self._title, fitting), refresh=True)

    def finish(self) -> None:
        if self._last:
            self._live.update(table(self._last, self._title, len(self._last.rows)))


class Lines:
    """A line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[tuple[str, datetime], tuple[object, ...]] = {}

    def __call__(self, scene: Scene) -> None:
        for row in scene.rows:
            place, news = (row.name, row.ends_at), (row.state, row.over == row.size, row.twist)
            if self._said.get(place) != news:
                self._said[place] = news
                self._console.print(line(row, scene.now), markup=False, highlight=False, soft_wrap=True)


def line(row: Row, now: datetime) -> str:
    what = f"{row.state:12}  {after_end(row):>9}"
    told = f"{clock(now)}  shop {shops(row):3}  {named(row):15}  {what}  ends at {clock(row.ends_at)}  {story(row)}"
    return told.rstrip()


def table(scene: Scene, title: str, most_rows: int) -> Table:
    """Of more rows than fit, those that ended first are left out."""
    caption = f"{clock(scene.now)}, {scene.over} of {scene.size} over"
    made = Table(title=title, title_style="bold", title_justify="left")
    made.caption, made.caption_style, made.caption_justify = caption, "dim", "left"
    made.box, made.show_edge, made.pad_edge, made.padding = box.SIMPLE_HEAD, False, False, (0, 1, 0, 0)
    for name, width in COLUMNS.items():
        made.add_column(name, width=width, no_wrap=True, justify="right" if name == "After end" else "left")
    for row in scene.rows[-most_rows:]:
        made.add_row(*cells(row, scene.now), style="dim" if row.state == "waiting" else "")
    return made


def cells(row: Row, now: datetime) -> Iterator[Text]:
    style = STYLES[row.state]
    yield Text(shops(row))
    yield Text(named(row))
    yield Text(clock(row.ends_at))
    yield left(row, now)
    yield Text(f"{SIGNS[row.state]} {row.state}", style)
    yield Text(after_end(row), style)
    yield Text(story(row), "dim")


def left(row: Row, now: datetime) -> Text:
    """A bar that shortens; of several templates, how many are over once the first is."""
    if row.over:
        return Text(f"{row.over} of {row.size}" if row.size > 1 else "", STYLES[row.state])
    seconds = max(0.0, (row.ends_at - now).total_seconds())
    bar = "━" * min(BAR_CELLS, round(seconds / SECONDS_PER_CELL))
    return Text(f"{seconds:4.1f} s {bar}", STYLES[row.state])


def shops(row: Row) -> str:
    return str(row.shops[0]) if len(row.shops) == 1 else f"{row.shops[0]}–{row.shops[-1]}"


def named(row: Row) -> str:
    return f"{row.size} × {row.name}" if row.size > 1 else row.name


def story(row: Row) -> str:
    if row.twist in ("moved later", "moved earlier") and row.planned_end:
        return f"{row.twist.removeprefix('moved ')}, was {row.planned_end.astimezone():%H:%M:%S}"
    return row.twist or ""


def after_end(row: Row) -> str:
    return "" if row.after_end is None else milliseconds(row.after_end)


def clock(time: datetime) -> str:
    """In this machine's zone, to a tenth of a second."""
    return f"{time.astimezone():%H:%M:%S}.{time.microsecond // 100_000}"


def milliseconds(time: timedelta) -> str:
    """As 2.1 ms, or 1,002 ms."""
    number = time / timedelta(milliseconds=1)
    return f"{number:,.0f} ms" if number >= 1_000 else f"{number:.1f} ms"
