"""Log lines, `what happened key=value …`, through the standard library's logger `coupon_clock` and its children.

Where they go is the host application's to say; by default nowhere. A line never raises, never stops the work that it
tells about, and holds no local variable: these may be secrets. What came from outside cannot make it look like two.
"""

import atexit
import io
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from logging.handlers import QueueHandler
from queue import Queue
from threading import Lock, Thread
from time import monotonic
from traceback import TracebackException, extract_tb
from typing import TextIO

ROOT = "coupon_clock"
HOST = socket.gethostname()
PLAIN = re.compile(r"[^\s'\"=]+")
LONGEST_VALUE = 500
LONGEST_TRACEBACK = 10_000
SUMMARY_EVERY_S = 60.0
MOST_KINDS = 100
LINES_WAITING = 1_000
LONGEST_FLUSH_S = 1.0
FIELDS = "coupon_clock"
"""The attribute of a record that holds what it says in parts, for those who write it in another form."""

logging.getLogger(ROOT).addHandler(logging.NullHandler())


class Log:
    """`module`: its `__name__`."""

    def __init__(self, module: str) -> None:
        self._logger = logging.getLogger(module)

    def info(self, what: str, /, **values: object) -> None:
        self._write(logging.INFO, what, values)

    def warning(self, what: str, /, **values: object) -> None:
        self._write(logging.WARNING, what, values)

    def error(self, what: str, /, trace: BaseException | None = None, **values: object) -> None:
        """`trace`: whose traceback follows, indented."""
        self._write(logging.ERROR, what, values, trace)

    def _write(self, level: int, what: str, values: dict[str, object], trace: BaseException | None = None) -> None:
        try:
            if self._logger.isEnabledFor(level):
                texts = {key: _cut(_text(value)) for key, value in values.items()}
                traceback = _indented(trace) if trace else ""
                fields = {"event": what} | texts | ({"trace": traceback.strip()} if traceback else {})
                self._logger.log(level, line(what, texts) + traceback, stacklevel=3, extra={FIELDS: fields})
        except Exception:  # of a handler or a filter of the host, or of what was to be shown
            return


class Failures:
    """Tells about each kind of failure in full once, and from then on how often it came, at most once a minute.

    A kind is a type of error, and the place that raised it. Safe to use from several threads.
    """

    def __init__(self, log: Log, every_s: float = SUMMARY_EVERY_S) -> None:
        self._log = log
        self._every_s = every_s
        self._lock = Lock()
        self._kinds: dict[object, _Kind] = {}
        self._is_told = False

    def report(self, what: str, error: BaseException, expected: bool, **values: object) -> None:
        """`expected`: its message says all there is to say."""
        with self._lock:
            is_new, times = self._counted((type(error).__qualname__, None if expected else _place(error)))
        if is_new and not expected:
            self._log.error(what, trace=error, **values)
        elif times:
            self._log.warning(what, **values, why=error, **({"times": times} if times > 1 else {}))

    def over(self, what: str, **values: object) -> None:
        """Tells so, if a failure was told about since the last time."""
        with self._lock:
            is_told, self._is_told = self._is_told, False
        if is_told:
            self._log.info(what, **values)

    def _counted(self, key: object) -> "tuple[bool, int]":
        """Returns whether it is the first of its kind, and how many are to be told about now."""
        now = monotonic()
        kind = self._kinds.get(key)
        if is_new := kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _Kind(now - self._every_s)
        kind.times += 1
        if now - kind.told_at < self._every_s:
            return False, 0
        times, kind.times, kind.told_at, self._is_told = kind.times, 0, now, True
        return is_new, times


@dataclass
class _Kind:
    told_at: float
    times: int = 0


def line(what: str, texts: dict[str, str]) -> str:
    return " ".join([_escaped(what), *(f"{key}={_shown(text)}" for key, text in texts.items())])


def _shown(text: str) -> str:
    return text if text.isprintable() and PLAIN.fullmatch(text) else repr(text)


def _cut(text: str) -> str:
    return f"{text[:LONGEST_VALUE]}…" if len(text) > LONGEST_VALUE else text


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _indented(error: BaseException) -> str:
    """Each line apart: a message of several lines looks like no other line of the log."""
    lines = "".join(TracebackException.from_exception(error, compact=True).format()).split("\n")
    text = "".join(f"\n  {_escaped(each)}" for each in lines if each)
    if len(text) <= LONGEST_TRACEBACK:
        return text
    half = LONGEST_TRACEBACK // 2
    return f"{text[:half]}…\n  …{text[-half:]}"


def _place(error: BaseException) -> tuple[str, int | None] | None:
    frames = extract_tb(error.__traceback__, limit=-1)
    return (frames[0].filename, frames[0].lineno) if frames else None


# ── our own processes ────────────────────────────────────────────────────────────────────────────


class LogFormat(StrEnum):
    """`auto`: text for a terminal, JSON for all else."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


def log_to_stderr(log_format: LogFormat = LogFormat.TEXT, level: int = logging.INFO) -> None:
    """For our own command line only: a host application keeps its own logging."""
    if sys.stderr is not None:
        as_json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not sys.stderr.isatty())
        log_to(_unbuffered(sys.stderr), as_json, level)


def log_to(stream: TextIO, as_json: bool = False, level: int = logging.INFO) -> None:
    """All lines of this process from now on, written by a thread of their own: whoever reads them slowly, or no longer,
    delays nothing. What does not fit in meanwhile is lost."""
    logging.raiseExceptions = False
    waiting: Queue[logging.LogRecord] = Queue(LINES_WAITING)
    written = _json_line if as_json else _text_line(_formatter())
    Thread(target=_write, args=(waiting, stream, written), name="coupon-clock-log", daemon=True).start()
    atexit.register(_wait_until_written, waiting)
    logging.getLogger().handlers = [QueueHandler(waiting)]
    logging.getLogger(ROOT).setLevel(level)
    logging.getLogger("concurrent.futures").setLevel(
        logging.CRITICAL
    )  # tracebacks of RocketMQ's client: see library.py


def _write(waiting: "Queue[logging.LogRecord]", stream: TextIO, written: Callable[[logging.LogRecord], str]) -> None:
    """No handler of the standard library: for the lock of one that hangs, its exit would wait."""
    while True:
        record = waiting.get()
        with suppress(OSError, ValueError):
            stream.write(f"{written(record)}\n")
            stream.flush()
        waiting.task_done()


def _text_line(formatter: logging.Formatter) -> Callable[[logging.LogRecord], str]:
    def written(record: logging.LogRecord) -> str:
        first, *others = formatter.format(record).split("\n")  # also of other libraries
        return "\n    ".join(map(_escaped, (first, *others)))

    return written


def _json_line(record: logging.LogRecord) -> str:
    """The same form for lines of other libraries."""
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"at": at, "level": record.levelname.lower(), "logger": record.name, "host": HOST, "pid": record.process}
    fields = getattr(record, FIELDS, None) or {"event": record.getMessage()}
    return json.dumps(head | fields)


def _unbuffered(stream: TextIO) -> TextIO:
    """At its exit the interpreter flushes its own, and must not meet a lock that a thread holds which still writes."""
    try:
        raw = io.FileIO(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors="backslashreplace", write_through=True)


def _formatter() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


def _wait_until_written(waiting: "Queue[logging.LogRecord]") -> None:
    with waiting.all_tasks_done:
        waiting.all_tasks_done.wait_for(lambda: not waiting.unfinished_tasks, LONGEST_FLUSH_S)
