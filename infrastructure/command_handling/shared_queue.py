"""Commands of several callers in one transaction: while some are under way, those that come meanwhile go together."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Generic
from uuid import UUID

from coupon_clock.domain.decider import Command, State
from coupon_clock.domain.decider import Event as DecidedEvent
from coupon_clock.domain.errors import CouponClockError, OutcomeUnknown
from coupon_clock.infrastructure.command_handling.handler import (
    EACH_WAIT,
    CommandHandler,
    Executed,
    Overtaken,
)
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres.errors import TimedOut

DIRECT = 4
"""Callers that execute by themselves at the same time: so few gain nothing from sharing."""
CROWD = 8
"""A batch of so many shows that it is crowded: then nobody goes alone."""
BATCH = 100
LINGER_S = 0.001
"""How long the thread waits for as many as it had the last time: those whose outcomes it has just released."""
LIMIT_S = 30.0
LONG_STREAM = 500
MOST_LONG_STREAMS = 1_000
WAIT_ALONE = (Overtaken, TimedOut)
"""Somebody holds the stream, or keeps changing it: to wait for that is the caller's own affair."""

log = Log(__name__)


class Ticket(Generic[Command, DecidedEvent]):
    """One caller's command in the queue. Its outcome can be cancelled as long as the command waits for its turn."""

    __slots__ = ("command", "outcome")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.outcome: Future[Executed[DecidedEvent] | CouponClockError] = Future()


class SharedQueue(Generic[State, Command, DecidedEvent]):
    """Safe to use from several threads. `limit_s`: how long a caller waits for its turn, and then for its outcome."""

    def __init__(
        self,
        handler: CommandHandler[State, Command, DecidedEvent],
        *,
        direct: int = DIRECT,
        batch: int = BATCH,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._handler = handler
        self._direct = direct
        self._batch = batch
        self._limit_s = limit_s
        self._long_streams: dict[UUID, None] = {}
        self._changed = Condition()
        self._queue: deque[Ticket[Command, DecidedEvent]] = deque()
        self._alone_now = 0
        self._last = 0
        self._server: Thread | None = None
        self._closed = False

    def handle(self, command: Command) -> Executed[DecidedEvent]:
        """Executes it, alone or together with others. Raises as CommandHandler.handle does."""
        if self._goes_alone(command):
            return self.alone(command)
        outcome = self._shared(Ticket(command))
        if isinstance(outcome, WAIT_ALONE):
            return self.alone(command)
        if isinstance(outcome, CouponClockError):
            raise outcome
        return outcome

    def submit(self, command: Command) -> Future[Executed[DecidedEvent] | CouponClockError]:
        """For who must not wait: at once, whatever PostgreSQL does. An outcome of WAIT_ALONE means that the command has
        to go `alone`, by a thread that may wait. Cancelled before its turn, it is not executed any more."""
        stream_id: object = self._handler.stream_id(command)
        ticket: Ticket[Command, DecidedEvent] = Ticket(command)
        if not isinstance(stream_id, UUID) or stream_id in self._long_streams or self._closed:
            ticket.outcome.set_result(TimedOut("it goes alone"))
        else:
            self._enqueue(ticket)
        return ticket.outcome

    def close(self) -> None:
        """Lets the serving thread end, once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # ── by the caller ────────────────────────────────────────────────────────────────────────────

    def _goes_alone(self, command: Command) -> bool:
        stream_id: object = self._handler.stream_id(command)
        if not isinstance(stream_id, UUID) or stream_id in self._long_streams:
            return True
        with self._changed:
            return self._closed or (self._last < CROWD and self._alone_now < self._direct)

    def alone(self, command: Command) -> Executed[DecidedEvent]:
        """In a transaction of its own, as CommandHandler.handle."""
        with self._changed:
            self._alone_now += 1
        try:
            executed = self._handler.handle(command)
        finally:
            with self._changed:
                self._alone_now -= 1
        self._note_length(executed)
        return executed

    def _shared(self, ticket: Ticket[Command, DecidedEvent]) -> Executed[DecidedEvent] | CouponClockError:
        self._enqueue(ticket)
        try:
            return ticket.outcome.result(self._limit_s)
        except TimeoutError:
            if ticket.outcome.cancel():
                raise TimedOut(f"the command waited {self._limit_s:g} s for its turn") from None
        except BaseException:
            ticket.outcome.cancel()  # by Ctrl-C, for instance: what was not sent is not executed any more
            raise
        try:
            return ticket.outcome.result(self._limit_s)
        except TimeoutError:
            raise OutcomeUnknown(ticket.command.command_id) from None

    def _enqueue(self, ticket: Ticket[Command, DecidedEvent]) -> None:
        with self._changed:
            self._queue.append(ticket)
            if self._server is None:
                self._start_server()
            self._changed.notify()

    # ── by the serving thread ────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        """Whatever ends this thread, the next one serves on: nobody waits for one that is gone."""
        try:
            while tickets := self._next():
                self._answer(tickets)
        except BaseException as error:
            with self._changed:
                self._server = None
                if self._queue:
                    self._start_server()
            log.error("serving thread died, the next one serves on", trace=error, action="serve")

    def _answer(self, tickets: Sequence[Ticket[Command, DecidedEvent]]) -> None:
        try:
            outcomes = self._handler.attempt([ticket.command for ticket in tickets], longest_wait=EACH_WAIT)
        except BaseException:
            self._release(tickets, [OutcomeUnknown(ticket.command.command_id) for ticket in tickets])
            raise
        self._release(tickets, outcomes)
        for outcome in outcomes:
            self._note_length(outcome)

    def _start_server(self) -> None:
        self._server = Thread(target=self._serve, name="coupon-clock-commands", daemon=True)
        self._server.start()

    def _release(
        self,
        tickets: Sequence[Ticket[Command, DecidedEvent]],
        outcomes: Sequence[Executed[DecidedEvent] | CouponClockError],
    ) -> None:
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.outcome.set_result(outcome)

    def _next(self) -> list[Ticket[Command, DecidedEvent]]:
        """What waits, in the order of arrival; nothing once this is closed."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                self._changed.wait_for(lambda: len(self._queue) >= self._last, LINGER_S)
                taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]
                tickets = [ticket for ticket in taken if ticket.outcome.set_running_or_notify_cancel()]
                self._last = len(tickets)
                if tickets or not taken:
                    return tickets

    def _note_length(self, executed: Executed[DecidedEvent] | CouponClockError) -> None:
        """Long streams go alone: to load them would make the others wait."""
        if isinstance(executed, Executed) and executed.version >= LONG_STREAM:
            if len(self._long_streams) >= MOST_LONG_STREAMS:
                self._long_streams.clear()
            self._long_streams[executed.stream_id] = None
