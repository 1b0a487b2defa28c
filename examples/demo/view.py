"""What there is to see: a table that updates, or a line for each change where the output is piped."""

from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actions import Template
from observer import Seen

WIDTHS = {"Shop": 4, "Template": 15, "Ends at": 10, "Left": 14, "State": 14, "After end": 9, "What happened": 21}
STATES = {"waiting": "· dim", "message sent": "→ cyan", "terminated": "✕ yellow", "ended": "✓ green"}
"""Each with its sign and style. Of several templates' states the first counts."""
AROUND_ROWS = 5  # lines of the table that are not rows, and one for the cursor
BAR_CELLS, SECONDS_PER_CELL = 7, 3

Show = Callable[[datetime], None]
Entry = namedtuple("Entry", "shops name ends_at left state after_end happened")
"""What a row of the table says, cell by cell: of one template, or several of one name and end."""


@contextmanager
def shown(console: Console, title: str, templates: Sequence[Template], seen: Seen) -> Iterator[Show]:
    """Yields what shows the templates as they are at that (aware) time. The last table stays, whole."""
    printed: dict[tuple[str, str], tuple[object, ...]] = {}

    def print_changes(now: datetime) -> None:
        for e in entries(now, templates, seen):
            key, news = (e.name, e.ends_at), (e.state, bool(e.after_end), e.happened)
            if printed.get(key) != news:
                printed[key] = news
                what = f"shop {e.shops:3}  {e.name:15}  {e.state:12}  {e.after_end:>9}  ends at {e.ends_at}"
                line = f"{clock(now)}  {what}  {e.happened}".rstrip()
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update_table(now: datetime) -> None:
        live.update(table(title, now, templates, seen, max(1, console.height - AROUND_ROWS)), refresh=True)

    if not console.is_terminal:
        console.print(title, highlight=False, soft_wrap=True)
        yield print_changes
        return
    with Live(console=console, auto_refresh=False) as live:
        yield update_table
        live.update(table(title, datetime.now(UTC), templates, seen, len(templates)))


def entries(now: datetime, templates: Sequence[Template], seen: Seen) -> Iterator[Entry]:
    """Soonest end first."""
    end_and_name = attrgetter("ends_at", "name")
    for (ends_at, name), group in groupby(sorted(templates, key=end_and_name), end_and_name):
        some = list(group)
        shops, size = sorted({template.shop_number for template in some}), len(some)
        ended = [seen.committed_at[t.template_id] for t in some if t.template_id in seen.committed_at]
        seconds = max(0.0, (ends_at - now).total_seconds())
        bar = f"{seconds:4.1f} s {'━' * min(BAR_CELLS, round(seconds / SECONDS_PER_CELL))}"
        yield Entry(
            shops=f"{shops[0]}–{shops[-1]}" if len(shops) > 1 else str(shops[0]),
            name=f"{size} × {name}" if size > 1 else name,
            ends_at=clock(ends_at),
            left=bar if not ended else f"{len(ended)} of {size}" if size > 1 else "",
            state=min((state(template, seen) for template in some), key=list(STATES).index),
            after_end=milliseconds(max(ended) - ends_at) if len(ended) == size else "",
            happened=some[0].happened,
        )


def state(template: Template, seen: Seen) -> str:
    if template.happened == "terminated":
        return "terminated"
    if template.template_id in seen.committed_at:
        return "ended"
    return "message sent" if seen.sent.get(template.template_id) == template.ends_at else "waiting"


def table(title: str, now: datetime, templates: Sequence[Template], seen: Seen, most_rows: int) -> Table:
    """Of more rows than fit, those that ended first are left out."""
    caption = f"{clock(now)}, {len(seen.committed_at)} of {len(templates)} over"
    made = Table(title=title, title_style="bold", title_justify="left", caption=caption, caption_style="dim")
    made.caption_justify, made.box, made.show_edge, made.pad_edge = "left", box.SIMPLE_HEAD, False, False
    made.padding = (0, 1, 0, 0)
    for name, width in WIDTHS.items():
        made.add_column(name, width=width, no_wrap=True, justify="right" if name == "After end" else "left")
    for e in list(entries(now, templates, seen))[-most_rows:]:
        sign, style = STATES[e.state].split()
        styled = [Text(cell, style) for cell in (e.left, f"{sign} {e.state}", e.after_end)]
        cells = Text(e.shops), Text(e.name), Text(e.ends_at), *styled, Text(e.happened, "dim")
        made.add_row(*cells, style="dim" if e.state == "waiting" else "")
    return made


def clock(time: datetime) -> str:
    """In this machine's zone, to a tenth of a second."""
    return f"{time.astimezone():%H:%M:%S}.{time.microsecond // 100_000}"


def milliseconds(time: timedelta) -> str:
    """As 2.1 ms, or 1,002 ms."""
    number = time / timedelta(milliseconds=1)
    return f"{number:,.0f} ms" if number >= 1_000 else f"{number:.1f} ms"
