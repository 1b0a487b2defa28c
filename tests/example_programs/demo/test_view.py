"""What a user sees, for templates in each state."""

from datetime import timedelta
from io import StringIO
from uuid import UUID

import pytest
from rich.console import Console

from actions import OnStage
from examples import MORNING, a_template
from observer import Seen
from scene import Scene, scene
from view import shown, table

END = MORNING + timedelta(seconds=10)
LATER = END + timedelta(seconds=5)
SOON = timedelta(milliseconds=2)


def on_stage(number: int, name: str = "Winter coats", **given: object) -> OnStage:
    created = a_template(template_id=UUID(int=number), name=name, shop_number=number, valid_until=END)
    return OnStage(**{"created": created, "ends_at": END, "turn": None} | given)


def at(*templates: OnStage, sent: int = 0, ended: int = 0) -> Scene:
    """The first `sent` have their message sent, the first `ended` have ended."""
    ids = [template.template_id for template in templates]
    ends = {template.template_id: template.ends_at for template in templates[:sent]}
    return scene(MORNING, templates, ends, Seen(dict.fromkeys(ids[:ended], END + SOON)))


def test_waiting_then_sent_then_ended():
    template = on_stage(1)

    states = [at(template, sent=sent, ended=ended).rows[0].state for sent, ended in ((0, 0), (1, 0), (0, 1))]

    assert states == ["waiting", "message sent", "ended"]
    assert at(template, ended=1).rows[0].after_end == SOON


def test_a_message_for_an_end_that_was_moved_does_not_count():
    template = on_stage(1, ends_at=LATER, twist="moved later")

    (row,) = scene(MORNING, [template], {template.template_id: END}, Seen()).rows

    assert row.state == "waiting"
    assert row.planned_end == END


def test_those_of_one_name_and_end_share_a_row_that_is_as_far_as_the_last():
    (row,) = at(on_stage(1), on_stage(2), on_stage(3), sent=3, ended=2).rows

    assert (row.size, row.over, row.shops, row.state) == (3, 2, (1, 2, 3), "message sent")


def test_rows_come_in_the_order_of_their_ends():
    rows = at(on_stage(1, "Prolonged", ends_at=LATER), on_stage(2), on_stage(3, "Book week")).rows

    assert [row.name for row in rows] == ["Book week", "Winter coats", "Prolonged"]


@pytest.fixture
def terminal() -> Console:
    return Console(file=StringIO(), width=100, height=30, force_terminal=True, color_system=None)


def test_nothing_is_cut_at_a_hundred_columns(terminal):
    flash = [on_stage(number, "Flash sale") for number in range(1, 21)]
    moved = on_stage(30, "Announced twice", ends_at=LATER, twist="moved earlier")
    late = on_stage(31, "Cut short", ends_at=END - timedelta(seconds=1))

    terminal.print(table(at(late, *flash, moved, ended=21), "title", 10))

    text = terminal.file.getvalue()
    assert "…" not in text
    assert "20 × Flash sale" in text
    assert "1,002 ms" in text
    assert "earlier, was " in text
    assert max(map(len, text.splitlines())) <= 100


def test_where_the_terminal_is_too_short_the_earliest_ends_are_left_out(terminal):
    terminal.print(table(at(on_stage(1, "First"), on_stage(2, "Last", ends_at=LATER)), "title", 1))

    assert "First" not in terminal.file.getvalue()
    assert "Last" in terminal.file.getvalue()


def test_the_last_scene_stays_whole_on_the_terminal():
    short = Console(file=StringIO(), width=100, height=10, force_terminal=True, color_system=None)
    templates = [on_stage(number, f"Number {number}") for number in range(1, 13)]

    with shown(short, "title") as screen:
        screen(at(*templates))
        assert "Number 1 " not in last_frame(short)

    assert all(f"Number {number} " in last_frame(short) for number in range(1, 13))


def test_piped_it_says_each_change_once():
    piped = Console(file=StringIO(), width=80)
    template = on_stage(1)

    with shown(piped, "title") as screen:
        for state in (at(template), at(template), at(template, sent=1), at(template, ended=1)):
            screen(state)

    title, waiting, sent, ended = piped.file.getvalue().splitlines()
    assert title == "title"
    assert "waiting" in waiting
    assert "message sent" in sent
    assert "ended" in ended
    assert "2.0 ms" in ended


def last_frame(console: Console) -> str:
    return console.file.getvalue().rpartition("title")[2]
