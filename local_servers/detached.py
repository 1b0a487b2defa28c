"""Processes that outlive the one that started them."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

# The shell ends at once, so that init adopts the server: no zombie, and no Ctrl-C from the starter's terminal.
IN_BACKGROUND = '"$@" >&2 & echo $!'
# Not by subprocess itself: with a user it forks, and gRPC's threads in this process can crash what was forked.
# The other user may not be able to read Python's files, so all is imported before.
SWITCH_USER = "import os, pwd, sys; os.setuid(pwd.getpwnam(sys.argv[1]).pw_uid); os.execv(sys.argv[2], sys.argv[2:])"
FAULT = re.compile(r"error|exception|fatal|fail|in use|denied|cannot|not enough", re.IGNORECASE)


def launch(
    command: Sequence[str], log: Path, *, user: str | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Starts a server in a session of its own, its output in `log`, which is overwritten. Returns its process id."""
    with log.open("wb") as output:
        shell = subprocess.run(
            as_user(user, ["sh", "-c", IN_BACKGROUND, "sh", *command]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            cwd=log.parent,
            env=environment,
            check=True,
        )
    return int(shell.stdout)


def as_user(user: str | None, command: Sequence[str]) -> list[str]:
    """The command that runs this one as that user; the same where there is none."""
    if user is None:
        return list(command)
    program = shutil.which(command[0]) or command[0]
    return [sys.executable, "-I", "-c", SWITCH_USER, user, program, *command[1:]]


def running(process: psutil.Process) -> bool:
    """Whether it may still hold ports and files.

    A zombie does not, and in a container nobody may ever reap it; but a Java machine that is killed counts as a zombie
    while its other threads still run.
    """
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return process.is_running() and not ended
    except psutil.NoSuchProcess:
        return False


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and running(psutil.Process(pid))


def find(*arguments: str) -> psutil.Process | None:
    """The running process whose command line has all these arguments. There is no pid file that could be stale."""
    for process in psutil.process_iter(["cmdline"]):
        if set(arguments) <= set(process.info["cmdline"] or []) and running(process):
            return process
    return None


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def end(processes: Sequence[psutil.Process], number: signal.Signals, within: float) -> None:
    """Signals them, waits, and kills what is left. Returns when all have ended, so that ports and locks are free."""
    send(processes, number)
    if not until(lambda: not any(map(running, processes)), within):
        send(processes, signal.SIGKILL)
        until(lambda: not any(map(running, processes)), within=10)


def until(condition: Callable[[], bool], within: float, every: float = 0.05) -> bool:
    """Waits for the condition, at most `within` seconds. Returns whether it came true."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def telling_line(log: Path) -> str:
    """The last line of a log that names a fault, or else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    faults = [line for line in lines if FAULT.search(line) and not line.startswith("at ")]
    return (faults or lines or ["it said nothing"])[-1]
