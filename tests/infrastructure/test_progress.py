"""What a long command says while it works: on a terminal, and when piped."""

from io import StringIO

import pytest
from rich.console import Console

from coupon_clock.infrastructure import progress
from coupon_clock.infrastructure.progress import shown_progress


@pytest.fixture
def at_once(monkeypatch):
    """Plain lines come without waiting for their time."""
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0)


def piped() -> Console:
    return Console(file=StringIO())


def said_on(console: Console) -> str:
    return console.file.getvalue()


def test_piped_it_is_a_plain_line_with_how_far_how_fast_and_how_long_still(at_once):
    console = piped()
    with shown_progress(console, "importing") as told:
        told(2_000, 3_000)
        told(2_500, None)

    assert "\x1b" not in said_on(console)
    with_total, without = said_on(console).splitlines()
    assert with_total.startswith("importing: 2,000 of 3,000, ")
    assert with_total.endswith(" s left")
    assert " a second, " in with_total
    assert without.startswith("importing: 2,500, ")
    assert without.endswith(" a second")


def test_plain_lines_come_now_and_then_only():
    console = piped()
    with shown_progress(console, "importing") as told:
        for done in range(1_000):
            told(done, 1_000)

    assert said_on(console) == ""


def test_what_was_done_before_makes_no_one_faster(at_once):
    console = piped()
    with shown_progress(console, "importing", first=1_000_000) as told:
        told(1_000_000, 2_000_000)

    assert said_on(console) == "importing: 1,000,000 of 2,000,000, 0 a second\n"


def test_another_step_begins_its_own_count(at_once):
    console = piped()
    with shown_progress(console, "replaying") as told:
        told(500, 1_000, "folding")

    assert said_on(console) == "folding: 500 of 1,000, 0 a second\n"


def test_on_a_terminal_it_is_a_bar():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with shown_progress(console, "importing") as told:
        told(2_000, 3_000)

    assert "2000/3000" in said_on(console)
