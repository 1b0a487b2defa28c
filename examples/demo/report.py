"""The closing words: what ended, how late, and whether the promise was kept."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from coupon_clock.domain.events import EndReason
from observer import EVERY_S
from verdict import Fault, Lateness, Report
from view import milliseconds

SEEN = f"Seen: PostgreSQL's clock, read by another connection that looks every {EVERY_S * 1_000:.0f} ms."


def tell(console: Console, report: Report, first_template_after: float) -> None:
    """`first_template_after`: seconds from the start of this process until the first template was there."""
    console.print(Group(*parts(report, first_template_after)), soft_wrap=not console.is_terminal)


def parts(report: Report, first_template_after: float) -> Iterator[RenderableType]:
    yield Text(f"\nEnded: {counted(report.reasons)}; caused by {counted(report.causes)}.\n")
    yield lateness_table(report)
    yield Text(f"\n{SEEN}\nThe first template was there {first_template_after:.1f} s after the demo's start.\n", "dim")
    for fault in report.faults:
        yield Text(f"✕ {in_words(fault)}", "red")
    if not report.faults:
        yield Text("✓ Every template ended exactly once, none early, none more than a second late.", "green")


def lateness_table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("After the end", width=17)
    for name in ("p50", "p99", "max"):
        table.add_column(name, width=9, justify="right")
    table.add_column("Measured as", style="dim")
    table.add_row("decided", *figures(report.decided), "recorded_at of Ended")
    table.add_row("committed", *figures(report.committed), "Ended seen in the log")
    table.add_row("in the read model", *figures(report.shown), "its row seen as ended")
    return table


def figures(lateness: Lateness | None) -> Iterator[str]:
    return (milliseconds(value) if lateness else "–" for value in lateness or (timedelta(0),) * 3)


def counted(counts: Counter[EndReason] | Counter[str]) -> str:
    """As 39 expired, 1 terminated."""
    return ", ".join(f"{number} {what}" for what, number in counts.items()) or "nothing"


def in_words(fault: Fault) -> str:
    by = f" by {milliseconds(fault.by)}" if fault.by is not None else ""
    return f"{fault.name} ({fault.template_id}) {fault.what}{by}"
