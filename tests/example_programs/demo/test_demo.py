"""The demo as a user runs it, on real PostgreSQL with the in-process broker."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from waiting import eventually

DEMO = Path(__file__).parents[3] / "examples" / "demo"
LONGEST_S = 120.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "demo"
    for process in working_in(tmp_path):
        process.kill()


@contextmanager
def demo(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(DEMO), "--broker", "memory", "--dir", str(folder), *options]
    with subprocess.Popen(
        command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def working_in(folder: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline", "cwd"]) if belongs(process, folder)]


def belongs(process: psutil.Process, folder: Path) -> bool:
    known = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
    return process.pid != os.getpid() and any(text.startswith(str(folder)) for text in known)


def await_line(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"it ended before it said {text!r}"


def test_every_template_ends_once_and_on_time(folder):
    with demo(folder) as process:
        said, _ = process.communicate(timeout=LONGEST_S)

    assert process.returncode == 0, said
    assert "39 expired, 1 terminated" in said
    assert "sent twice" in said
    assert "later, was" in said
    assert "earlier, was" in said
    assert "✓ Every template ended exactly once" in said
    assert working_in(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process_behind(folder, number):
    with demo(folder) as process:
        await_line(process, "message sent")
        assert working_in(folder), "the servers run"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=LONGEST_S)

    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert working_in(folder) == []


def test_after_a_hard_kill_the_next_one_takes_the_servers_over(folder):
    with demo(folder) as killed:
        await_line(killed, "message sent")
        killed.kill()
    eventually(lambda: working_in(folder) != [], within=LONGEST_S)

    with demo(folder) as process:
        await_line(process, "message sent")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONGEST_S)

    assert process.returncode == 130
    assert working_in(folder) == []


def test_a_second_one_beside_it_is_refused_in_one_sentence(folder):
    with demo(folder) as first:
        await_line(first, "message sent")
        with demo(folder) as second:
            _, complaint = second.communicate(timeout=LONGEST_S)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=LONGEST_S)

    assert second.returncode == 2
    assert complaint == f"Another demo is running in {folder}: wait for it, or choose another folder with --dir.\n"


def test_an_unusable_folder_is_one_sentence(folder):
    folder.touch()

    with demo(folder) as process:
        _, complaint = process.communicate(timeout=LONGEST_S)

    assert process.returncode == 2
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint
