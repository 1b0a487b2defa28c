import pytest

from coupon_clock.local_servers.progress import shown


def test_a_piped_step_is_told_in_a_few_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as progress:
        for done in range(101):
            progress("Fetching", done, 100)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "Fetching …",
        "Fetching: 25 %",
        "Fetching: 50 %",
        "Fetching: 75 %",
        "Fetching: done",
    ]
    assert captured.out == ""
