"""Follow the log without ever stepping over an event.

Positions are drawn before transactions commit, so a reader can see 7 before 6. A gap is final once every transaction
that held an INSERT's lock on the table after the gap was seen is gone: only they can have drawn what is missing
(docs/decisions/gaps.md).
No writer ever waits for a reader.
"""

from datetime import datetime
from time import monotonic, sleep
from typing import NamedTuple, Protocol
from uuid import UUID

from msgspec import Struct

WRITER_PAUSE_S = 0.002
LAST_POSITION = 2**63 - 1


class RecordedEvent(NamedTuple):
    """One row of the log: `state` as it is stored, `recorded_at` an aware time."""

    stream_id: UUID
    version: int
    topic: str
    state: bytes
    position: int
    recorded_at: datetime
    command_id: UUID | None
    cause: str
    actor: str | None


class Log(Protocol):
    """What a reader needs of the recorder."""

    def select_page(self, after: int, through: int, limit: int) -> tuple[list[RecordedEvent], bool]: ...

    def writers(self) -> frozenset[str]: ...


class LogPage(NamedTuple):
    """`events` in position order, all final; `more`: whether others may follow at once; `blocked_for`: seconds that the
    oldest gap has been undecided, or None."""

    events: list[RecordedEvent]
    more: bool = False
    blocked_for: float | None = None


class Gap(Struct):
    """A page that begins after something missing: final up to `page_end` once none of `writers` is left."""

    page_end: int
    writers: frozenset[str]
    noticed_at: float


class LogReader:
    """Reads on from `position`, up to `through`. Each judges its own gaps, page by page; readers share nothing."""

    def __init__(self, log: Log, position: int, through: int = LAST_POSITION) -> None:
        self._log = log
        self._gap: Gap | None = None
        self._final_through = position
        self._through = through
        self.position = position

    def page(self, limit: int) -> LogPage:
        """The next events, at most `limit`, and fewer where they are large; none when there are none yet or a gap is
        undecided. Raises DatabaseUnavailable."""
        if self._gap is not None:
            return self._across(self._gap, limit)
        if self.position < self._final_through:
            return self._final(limit)
        events, more = self._log.select_page(self.position, self._through, limit)
        prefix = contiguous(events, self.position)
        if prefix or not events:
            return self._pass(prefix, more)
        # Noted after the page was read: whoever drew a number below its end and is not noted was done by then.
        self._gap = Gap(events[-1].position, self._log.writers(), monotonic())
        return self._across(self._gap, limit)

    def _across(self, gap: Gap, limit: int) -> LogPage:
        gap.writers = still_writing(gap.writers, self._log.writers())
        if gap.writers:
            return LogPage([], blocked_for=monotonic() - gap.noticed_at)
        self._gap = None
        self._final_through = gap.page_end
        return self._final(limit)

    def _final(self, limit: int) -> LogPage:
        """What filled the gap can be far more than a page. Its end is an event, so there is always a next one."""
        events, more = self._log.select_page(self.position, self._final_through, limit)
        return self._pass(events, more)

    def _pass(self, events: list[RecordedEvent], more: bool) -> LogPage:
        if events:
            self.position = events[-1].position
        return LogPage(events, more)


def contiguous(events: list[RecordedEvent], position: int) -> list[RecordedEvent]:
    """The events that follow `position` without a gap."""
    if not events or events[-1].position == position + len(events):
        return events
    return [event for offset, event in enumerate(events, 1) if event.position == position + offset]


def still_writing(noted: frozenset[str], now: frozenset[str]) -> frozenset[str]:
    """Prepared transactions lose their old name when the server restarts, so one of those (-1/…) may be any of them."""
    return frozenset(writer for writer in now if writer in noted or writer.startswith("-1/"))


def wait_for_writers(log: Log) -> None:
    """Returns once all that write now are done: a position below the end of the log is then visible or lost."""
    noted = log.writers()
    while noted := still_writing(noted, log.writers()):
        sleep(WRITER_PAUSE_S)
