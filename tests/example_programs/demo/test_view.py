"""What a user sees, for templates in each state."""

from datetime import datetime, timedelta
from io import StringIO
from uuid import UUID

import pytest
from rich.console import Console

from actions import Template
from examples import MORNING
from observer import Seen
from view import Entry, entries, shown, table

END = MORNING + timedelta(seconds=10)
LATER = END + timedelta(seconds=5)
SOON = timedelta(milliseconds=2)


def planned(number: int, name: str = "Winter coats", ends_at: datetime = END, happened: str = "") -> Template:
    return Template(number, name, ends_at, happened=happened, template_id=UUID(int=number))


def seen(*templates: Template, sent: int = 0, ended: int = 0) -> Seen:
    """The first `sent` have their message sent, the first `ended` have ended."""
    committed_at = {template.template_id: END + SOON for template in templates[:ended]}
    return Seen(committed_at, sent={template.template_id: template.ends_at for template in templates[:sent]})


def at(*templates: Template, sent: int = 0, ended: int = 0) -> list[Entry]:
    return list(entries(MORNING, templates, seen(*templates, sent=sent, ended=ended)))


def test_waiting_then_sent_then_ended():
    template = planned(1)

    states = [at(template, sent=sent, ended=ended)[0].state for sent, ended in ((0, 0), (1, 0), (0, 1))]

    assert states == ["waiting", "message sent", "ended"]
    assert at(template, ended=1)[0].after_end == "2.0 ms"


def test_a_message_for_an_end_that_was_moved_does_not_count():
    template = planned(1, ends_at=LATER)

    (entry,) = entries(MORNING, [template], Seen(sent={template.template_id: END}))

    assert entry.state == "waiting"


def test_those_of_one_name_and_end_share_a_row_that_is_as_far_as_the_last():
    (entry,) = at(planned(1), planned(2), planned(3), sent=3, ended=2)

    assert (entry.name, entry.left, entry.shops) == ("3 × Winter coats", "2 of 3", "1–3")
    assert (entry.state, entry.after_end) == ("message sent", "")


def test_rows_come_in_the_order_of_their_ends():
    rows = at(planned(1, "Prolonged", ends_at=LATER), planned(2), planned(3, "Book week"))

    assert [row.name for row in rows] == ["Book week", "Winter coats", "Prolonged"]


@pytest.fixture
def terminal() -> Console:
    return Console(file=StringIO(), width=100, height=30, force_terminal=True, color_system=None)


def test_nothing_is_cut_at_a_hundred_columns(terminal):
    flash = [planned(number, "Flash sale") for number in range(1, 21)]
    moved = planned(30, "Announced twice", LATER, "earlier, was 08:00:00")
    late = planned(31, "Cut short", END - timedelta(seconds=1))
    templates = [late, *flash, moved]

    terminal.print(table("title", MORNING, templates, seen(*templates, ended=21), 10))

    text = terminal.file.getvalue()
    assert "…" not in text
    assert "20 × Flash sale" in text
    assert "1,002 ms" in text
    assert "earlier, was " in text
    assert "21 of 22 over" in text
    assert max(map(len, text.splitlines())) <= 100


def test_where_the_terminal_is_too_short_the_earliest_ends_are_left_out(terminal):
    templates = planned(1, "First"), planned(2, "Last", LATER)

    terminal.print(table("title", MORNING, templates, Seen(), 1))

    assert "First" not in terminal.file.getvalue()
    assert "Last" in terminal.file.getvalue()


def test_the_last_table_stays_whole_on_the_terminal():
    short = Console(file=StringIO(), width=100, height=10, force_terminal=True, color_system=None)
    templates = [planned(number, f"Number {number}") for number in range(1, 13)]

    with shown(short, "title", templates, Seen()) as show:
        show(MORNING)
        assert "Number 1 " not in last_frame(short)

    assert all(f"Number {number} " in last_frame(short) for number in range(1, 13))


def test_piped_it_says_each_change_once():
    piped = Console(file=StringIO(), width=80)
    template, now = planned(1), Seen()

    with shown(piped, "title", [template], now) as show:
        for state in (Seen(), Seen(), seen(template, sent=1), seen(template, ended=1)):
            now.sent, now.committed_at = state.sent, state.committed_at
            show(MORNING)

    title, waiting, sent, ended = piped.file.getvalue().splitlines()
    assert title == "title"
    assert "waiting" in waiting
    assert "message sent" in sent
    assert "ended" in ended
    assert "2.0 ms" in ended


def last_frame(console: Console) -> str:
    return console.file.getvalue().rpartition("title")[2]
