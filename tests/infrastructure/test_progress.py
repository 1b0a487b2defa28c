"""What a long command says while it works: on a terminal, and when piped."""

from io import StringIO

from rich.console import Console

from coupon_clock.infrastructure.progress import shown_progress

AT_ONCE = 0.0
"""Plain lines come without waiting for their time."""


def piped() -> Console:
    return Console(file=StringIO())


def said_on(console: Console) -> str:
    return console.file.getvalue()


def test_piped_it_is_a_plain_line_with_how_far_how_fast_and_how_long_still():
    console = piped()
    with shown_progress(console, line_every_s=AT_ONCE) as progress:
        progress("importing", 2_000, 3_000)
        progress("importing", 2_500, None)

    assert "\x1b" not in said_on(console)
    with_total, without = said_on(console).splitlines()
    assert with_total.startswith("importing: 2,000 of 3,000, ")
    assert with_total.endswith(" s left")
    assert " a second, " in with_total
    assert without.startswith("importing: 2,500, ")
    assert without.endswith(" a second")


def test_plain_lines_come_now_and_then_only():
    console = piped()
    with shown_progress(console) as progress:
        for done in range(1, 1_000):
            progress("importing", done, 1_000)

    assert said_on(console) == ""


def test_what_was_done_before_makes_no_one_faster():
    console = piped()
    with shown_progress(console, 1_000_000, AT_ONCE) as progress:
        progress("importing", 1_000_000, 2_000_000)

    assert said_on(console) == "importing: 1,000,000 of 2,000,000, 0 a second\n"


def test_another_step_begins_its_own_count():
    console = piped()
    with shown_progress(console, line_every_s=AT_ONCE) as progress:
        progress("replaying", 0, 1_000)
        progress("folding", 500, 1_000)

    assert said_on(console).splitlines()[-1] == "folding: 500 of 1,000, 0 a second"


def test_on_a_terminal_it_is_a_bar():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with shown_progress(console) as progress:
        progress("importing", 2_000, 3_000)

    assert "2000/3000" in said_on(console)


def test_piped_a_step_says_when_it_begins_and_once_when_it_is_done():
    console = piped()
    with shown_progress(console) as progress:
        for done in (0, 50, 100, 100):
            progress("fetching", done, 100)

    assert said_on(console) == "fetching …\nfetching: done\n"
