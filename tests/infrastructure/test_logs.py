"""Log lines go where the host's logging says, and no line stops or delays the work that it tells about."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.logs import LONGEST_TRACEBACK, LONGEST_VALUE, Failures, Log
from coupon_clock.infrastructure.loop import Counts, Loop

NAME = "coupon_clock.tested"


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class BadHandler(logging.Handler):
    """Of a host: raises what it was made with."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO)
    return Log(NAME)


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("coupon_clock")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# ── what a line looks like ───────────────────────────────────────────────────────────────────────


def test_a_line_goes_to_the_loggers_of_the_host_with_its_level_and_place(log, caplog):
    log.warning("not done", action="try", times=3, why="it is away")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.filename) == (NAME, "WARNING", "test_logs.py")
    assert record.getMessage() == "not done action=try times=3 why='it is away'"


@pytest.mark.parametrize(
    "outside",
    [
        "a\n2026-01-01T00:00:00.000Z INFO    all is well",
        "\r\x1b[2Jgone",
        "a\u2028b",
        "\u202eevil",
        "\udc80",
        "a b=c",
        "",
        "'",
    ],
)
def test_no_value_from_outside_makes_a_line_look_like_two_or_like_other_values(log, caplog, outside):
    log.warning("rejected", message_id=outside, why="b")
    (message,) = caplog.messages
    assert message.isprintable()
    assert message == f"rejected message_id={outside!r} why=b"


def test_a_long_value_is_cut(log, caplog):
    log.warning("rejected", why="x" * 250_000)
    assert len(caplog.messages[0]) < LONGEST_VALUE + 50


def test_a_traceback_holds_no_local_variable_and_no_line_that_looks_like_another(log, caplog):
    def fail(token: str) -> None:
        raise ValueError("first\nERROR    forged \x1b[2J" + "x" * 50_000)

    log.error("failed", trace=raised_by(lambda: fail("secret" + str(7))))
    first, *others = caplog.messages[0].split("\n")
    assert first == "failed"
    assert others[0] == "  Traceback (most recent call last):"
    assert all(each.startswith("  ") and each.isprintable() for each in others)
    assert "secret7" not in caplog.text
    assert caplog.records[0].exc_info is None
    assert len(caplog.messages[0]) < LONGEST_TRACEBACK + 100


# ── nothing stops the work ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [RuntimeError(), BrokenPipeError(), ValueError("I/O on closed file"), OSError(28)])
def test_a_handler_that_raises_is_not_noticed_by_who_logs(log, error):
    with handled_by(BadHandler(error)):
        log.info("done")
        log.error("failed", trace=error)


def test_what_cannot_be_shown_is_named_by_its_type(log, caplog):
    log.warning("failed", why=Unshowable())
    log.error("failed", trace=raised_by(lambda: refuse(Unshowable())))
    assert caplog.messages[0] == "failed why='<Unshowable that cannot be shown>'"
    assert "Unshowable" in caplog.messages[1]


@pytest.mark.parametrize("error", [Unshowable(), MemoryError(), RecursionError(), CouponClockError()])
def test_a_loop_goes_on_whatever_its_failure_and_its_log_raise(error):
    stop, ticks = Event(), []

    def run_once() -> Counts:
        ticks.append(1)
        if len(ticks) < 3:
            raise error
        stop.set()
        return Counts()

    with handled_by(BadHandler(RuntimeError())):
        Loop("tested", run_once, 0, stop.wait).run_forever(stop)
    assert len(ticks) == 3


# ── the same failure again and again ─────────────────────────────────────────────────────────────


def test_the_traceback_of_a_failure_comes_once_then_a_count_and_then_that_it_is_over(log, caplog):
    failures = Failures(log, every_s=60)
    for number in range(100):
        failures.report("failed", raised_by(lambda n=number: refuse(ValueError(n))), False, role="tested")
    assert [message.split("\n")[0] for message in caplog.messages] == ["failed role=tested"]

    failures._every_s = 0
    failures.report("failed", raised_by(lambda: refuse(ValueError(100))), False, role="tested")
    assert caplog.messages[1:] == ["failed role=tested why=100 times=100"]

    failures.over("works again", role="tested")
    failures.over("works again", role="tested")
    assert caplog.messages[2:] == ["works again role=tested"]


def test_another_place_or_another_type_is_another_failure(log, caplog):
    failures = Failures(log)
    for error in (ValueError(), TypeError(), CouponClockError(), CouponClockError()):
        failures.report("failed", raised_by(lambda e=error: refuse(e)), isinstance(error, CouponClockError))
    failures.report("failed", raised_by(lambda: int("x")), False)
    assert len(caplog.messages) == 4


def test_failures_that_are_all_different_are_forgotten_in_time(log):
    failures = Failures(log)
    for number in range(1_000):
        failures.report("failed", type(f"Error{number}", (Exception,), {})(), False)
    assert len(failures._kinds) <= 100


# ── processes of our own, and those of others ────────────────────────────────────────────────────

SAYING = """
import logging, sys, threading
from coupon_clock.infrastructure.logs import Log, log_to_stderr
log = Log("coupon_clock.tested")
"""
DONE = "\nprint('done', flush=True)\n"


def program(text: str, **streams: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SAYING + text + DONE],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
        **{"stderr": subprocess.PIPE} | streams,  # type: ignore[call-overload]
    )


def test_without_a_word_from_the_host_nothing_is_printed():
    ran = program("log.error('failed', trace=ValueError('x'))")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def test_a_host_that_sets_up_logging_gets_the_lines_by_its_own_rules():
    ran = program(
        "logging.basicConfig(format='%(name)s|%(message)s'); log.warning('not done', n=1); log.info('hidden')"
    )
    assert (ran.stdout, ran.stderr) == ("done\n", "coupon_clock.tested|not done n=1\n")


def test_our_own_command_line_writes_lines_in_utc_to_stderr():
    ran = program("log_to_stderr(); log.warning('not done', text='\\udc80 ä')")
    assert ran.stdout == "done\n"
    assert ran.stderr.endswith("Z WARNING not done text='\\udc80 ä'\n")


def test_lines_are_json_where_that_is_asked_for_or_nobody_watches():
    lines = (
        "log.warning('not done', text='ä\\x1b', number=5);"
        "logging.getLogger('psycopg.pool').error('lost\\n it');"
        "log.error('died', trace=ValueError('secret'), action='die')"
    )
    for chosen in ("LogFormat.JSON", "LogFormat.AUTO"):
        ran = program(f"from coupon_clock.infrastructure.logs import LogFormat; log_to_stderr({chosen}); {lines}")
        warning, foreign, error = map(json.loads, ran.stderr.splitlines())
        assert (warning["level"], warning["event"], warning["text"], warning["number"]) == (
            "warning",
            "not done",
            "ä\x1b",
            "5",
        )
        assert (foreign["logger"], foreign["event"]) == ("psycopg.pool", "lost\n it")
        assert (error["action"], "ValueError" in error["trace"]) == ("die", True)
        assert warning["at"].endswith("Z")
        assert warning["host"]
        assert warning["pid"]


def test_lines_below_the_level_are_left_out():
    ran = program("log_to_stderr(level=logging.ERROR); log.warning('not done'); log.error('died')")
    assert "died" in ran.stderr
    assert "not done" not in ran.stderr


def test_lines_of_other_libraries_look_like_one_line_each_too():
    ran = program(r"log_to_stderr(); logging.getLogger('psycopg.pool').warning('lost\nERROR   forged\x1b[2J')")
    lost, forged = ran.stderr.splitlines()
    assert lost.endswith("Z WARNING lost")
    assert forged == r"    ERROR   forged\x1b[2J"


def test_text_that_stderr_cannot_encode_is_written_nevertheless():
    ran = program("log_to_stderr(); log.warning('not done', text='ä')", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ran.stderr.endswith("not done text=\\xe4\n")


def test_stderr_without_a_reader_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    ran = program("log_to_stderr(); [log.warning('not done', n=n) for n in range(10_000)]", stderr=writing)
    os.close(writing)
    assert (ran.returncode, ran.stdout) == (0, "done\n")


def test_stderr_whose_reader_sleeps_delays_nothing_but_the_end_by_a_second():
    reading, writing = os.pipe()
    began = monotonic()
    ran = program("log_to_stderr(); [log.warning('x' * 400, n=n) for n in range(10_000)]", stderr=writing)
    assert (ran.returncode, ran.stdout) == (0, "done\n")
    assert monotonic() - began < 10
    os.close(writing)
    os.close(reading)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_no_failure():
    with Path("/dev/full").open("w") as full:
        ran = program("log_to_stderr(); [log.warning('not done', n=n) for n in range(100)]", stderr=full)
    assert (ran.returncode, ran.stdout) == (0, "done\n")


@pytest.mark.parametrize("closing", ["sys.stderr.close()", "sys.stderr = None"])
@pytest.mark.parametrize("first", [True, False])
def test_a_closed_stderr_is_no_failure(closing, first):
    setting_up = "log_to_stderr()"
    steps = (closing, setting_up) if first else (setting_up, closing)
    ran = program(f"{steps[0]}; {steps[1]}; log.warning('not done')")
    assert (ran.returncode, ran.stdout) == (0, "done\n")


def test_a_handler_of_the_host_on_a_closed_stderr_is_no_failure():
    ran = program("logging.basicConfig(); sys.stderr.close(); log.warning('not done')")
    assert (ran.returncode, ran.stdout) == (0, "done\n")


# ── what the above needs ─────────────────────────────────────────────────────────────────────────


def refuse(error: Exception) -> None:
    raise error


def raised_by(call) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")
