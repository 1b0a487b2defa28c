import signal
from pathlib import Path

from coupon_clock.local_servers.detached import alive, end, find, launch, telling_line, until


def test_a_server_is_found_by_its_arguments_and_gone_when_ended(tmp_path: Path) -> None:
    pid = launch(["sh", "-c", "while :; do sleep 0.1; done", str(tmp_path)], tmp_path / "log")
    assert until(lambda: find(str(tmp_path)) is not None, within=10)
    process = find(str(tmp_path))
    assert process is not None
    assert process.pid == pid
    end([process], signal.SIGTERM, within=10)
    assert not alive(pid)
    assert find(str(tmp_path)) is None


def test_a_server_deaf_to_the_polite_signal_is_killed(tmp_path: Path) -> None:
    pid = launch(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done", str(tmp_path)], tmp_path / "log")
    assert until(lambda: (tmp_path / "log").read_text() == "deaf\n", within=10)
    process = find(str(tmp_path))
    assert process is not None
    end([process], signal.SIGTERM, within=0.2)
    assert not alive(pid)


def test_the_telling_line_is_the_last_that_names_a_fault(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nFATAL: the port is in use\n\tat Somewhere.fails(Somewhere.java:1)\nbye\n\n")
    assert telling_line(log) == "FATAL: the port is in use"
    log.write_text("one\ntwo\n")
    assert telling_line(log) == "two"
    log.write_text("")
    assert telling_line(log) == "it said nothing"
