"""What ended, how late, and the verdict: that of `coupon-clock verify promise`, and what was seen from outside."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from math import ceil

from rich import box
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from actions import Template
from coupon_clock import Application, Ended, EndReason, PromiseReport
from observer import EVERY_S, Seen
from view import milliseconds

LATEST = timedelta(seconds=1)
SEEN = f"Seen: PostgreSQL's clock, read by another connection that looks every {EVERY_S * 1_000:.0f} ms."
KEPT = "✓ Every template ended exactly once, none early, none more than a second late."


def broken_promises(check: PromiseReport, templates: Sequence[Template], seen: Seen) -> Iterator[str]:
    """Yields what the check found, and what was seen to end early, late or not at all, a line each."""
    names = {template.template_id: template.name for template in templates}
    for violation in check.violations:
        yield f"{names.get(violation.stream_id, 'unknown')} ({violation.stream_id}) {violation.what}"
    for template in templates:
        seen_at = seen.committed_at.get(template.template_id)
        if seen_at is None or template.template_id in check.overdue:
            yield f"{template.name} ({template.template_id}) did not end"
        elif not timedelta(0) <= (late := seen_at - template.ends_at) <= LATEST:
            how, by = ("late", late) if late > LATEST else ("early", -late)
            yield f"{template.name} ({template.template_id}) ended {how} by {milliseconds(by)}"


def summary(
    app: Application, templates: Sequence[Template], seen: Seen, first_after: float, broken: Sequence[str]
) -> Iterator[RenderableType]:
    """`first_after`: seconds from the start of this process until the first template was there."""
    histories = [app.history(template.shop_number, template.template_id) for template in templates]
    ends = [(each, each.event) for history in histories for each in history if isinstance(each.event, Ended)]
    expired = {each.stream_id: ended.ended_at for each, ended in ends if ended.reason is EndReason.EXPIRED}
    causes, reasons = counted(each.cause for each, _ in ends), counted(ended.reason for _, ended in ends)
    yield Text(f"\nEnded: {reasons}; caused by {causes}.\n")
    columns = (Column(name, width=9, justify="right") for name in ("p50", "p99", "max"))
    table = Table("After the end", *columns, "Measured as", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for what, times, how in (
        ("decided", {each.stream_id: each.recorded_at for each, _ in ends}, "recorded_at of Ended"),
        ("committed", seen.committed_at, "Ended seen in the log"),
        ("in the read model", seen.shown_at, "its row seen as ended"),
    ):
        after = (times[template_id] - due for template_id, due in expired.items() if template_id in times)
        table.add_row(what, *percentiles(after), Text(how, "dim"))
    yield table
    yield Text(f"\n{SEEN}\nThe first template was there {first_after:.1f} s after the demo's start.\n", "dim")
    yield from [Text(f"✕ {each}", "red") for each in broken] or [Text(KEPT, "green")]


def percentiles(values: Iterable[timedelta]) -> list[str]:
    """Returns p50, p99 and the greatest, by nearest rank."""
    ranked = sorted(values)
    return [milliseconds(ranked[ceil(n * len(ranked) / 100) - 1]) if ranked else "–" for n in (50, 99, 100)]


def counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in Counter(kinds).items()) or "nothing"
