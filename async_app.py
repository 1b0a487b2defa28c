"""The in-process API, awaited: the same commands and queries, and nothing that blocks the event loop.

Commands go through the queue that callers share, which one thread serves; what has to wait for PostgreSQL waits in a
few threads of its own. A thin face on app.py: all that is decided is decided there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import date, datetime
from functools import partial
from threading import Event as StopEvent
from threading import Semaphore, Thread
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar
from uuid import UUID

from coupon_clock.app import NO_FILTERS, SHOP_COMMANDS, Application, Outcome, not_a_command, outcome
from coupon_clock.deadlines import ROLES, Role
from coupon_clock.domain.commands import ShopCommand
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Event
from coupon_clock.infrastructure.command_handling.shared_queue import WAIT_ALONE
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.loop import LoopDied
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.projections.coupon_templates import Filters, Page, TemplateView
from coupon_clock.projections.shop_months import MonthsPage

__all__ = ["AsyncApplication"]

P = ParamSpec("P")
T = TypeVar("T")

Batch = list[Envelope[Event]]


class AsyncApplication:
    """`async with AsyncApplication.open(settings) as app`. For one event loop; any number of tasks.

    A task that is cancelled leaves nothing half done: a command that waits for its turn is not executed any more, and
    one that is on its way happens, or not, as where an answer is lost. There is no `connection=`: a command in a
    transaction of yours is Application's.
    """

    def __init__(self, settings: Settings | None) -> None:
        self._settings = settings
        self._opened: Application | None = None
        self._threads: Executor | None = None

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Opens nothing yet: `async with` does, and raises as Application.open does."""
        return cls(settings)

    async def __aenter__(self) -> Self:
        app = await asyncio.to_thread(Application.open, self._settings)
        self._opened = app
        self._threads = ThreadPoolExecutor(app.settings.database_connections, thread_name_prefix="coupon-clock-await")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._close))

    @property
    def application(self) -> Application:
        """The same, to be called from threads."""
        assert self._opened is not None, "use it within `async with`"
        return self._opened

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    async def execute(self, command: ShopCommand) -> Outcome:
        """As Application.execute, in a transaction shared with those that come at the same time."""
        if not isinstance(command, SHOP_COMMANDS):
            raise not_a_command(command)
        runtime = self.application.runtime
        runtime.database.refuse_fork()
        executed = await asyncio.wrap_future(runtime.queue.submit(command))
        if isinstance(executed, WAIT_ALONE):
            return outcome(await self._in_thread(runtime.queue.alone, command))
        if isinstance(executed, CouponClockError):
            raise executed
        return outcome(executed)

    async def execute_many(self, commands: Sequence[ShopCommand]) -> list[Outcome | CouponClockError]:
        """As Application.execute_many."""
        return await self._in_thread(self.application.execute_many, commands)

    # ── queries ──────────────────────────────────────────────────────────────────────────────────

    async def find(
        self, shop_number: int, template_id: UUID, at_least: int | None = None, timeout: float = 5.0
    ) -> TemplateView:
        """As Application.find."""
        return await self._in_thread(self.application.find, shop_number, template_id, at_least, timeout)

    async def page(
        self,
        shop_number: int,
        filters: Filters = NO_FILTERS,
        after: UUID | None = None,
        limit: int = 50,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> Page:
        """As Application.page."""
        return await self._in_thread(self.application.page, shop_number, filters, after, limit, at_least, timeout)

    async def shop_months(
        self,
        shop_number: int,
        before: date | None = None,
        limit: int = 12,
        at_least: int | None = None,
        timeout: float = 5.0,
    ) -> MonthsPage:
        """As Application.shop_months."""
        return await self._in_thread(self.application.shop_months, shop_number, before, limit, at_least, timeout)

    async def history(self, shop_number: int, template_id: UUID) -> Batch:
        """As Application.history."""
        return await self._in_thread(self.application.history, shop_number, template_id)

    async def state_at(self, shop_number: int, template_id: UUID, at: int | datetime) -> TemplateView:
        """As Application.state_at."""
        return await self._in_thread(self.application.state_at, shop_number, template_id, at)

    async def is_usable(self, shop_number: int, template_id: UUID, at: datetime | None = None) -> bool:
        """As Application.is_usable."""
        return await self._in_thread(self.application.is_usable, shop_number, template_id, at)

    async def end_of_log(self) -> int:
        """As Application.end_of_log."""
        return await self._in_thread(self.application.end_of_log)

    # ── reactions ────────────────────────────────────────────────────────────────────────────────

    async def follow(self, name: str, batch: int = 500, start: int | Literal["now"] = 0) -> AsyncIterator[Batch]:
        """Yields every event, in batches, in position order and at least once, from a durable checkpoint.

        A batch counts as handled when the next one is asked for; one that is in hand when the iteration ends comes
        again. `async for` ends only by a `break`, an error or a cancellation; close it with `contextlib.aclosing`.
        Raises as Application.follow does.
        """
        following = Following(self.application, name, batch, start)
        try:
            while True:
                yield await following.next()
        finally:
            await asyncio.shield(asyncio.to_thread(following.end))

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def running(self, roles: Sequence[Role] = ROLES, broker: Broker | None = None) -> AsyncIterator[None]:
        """As Application.running, whose loops are threads. Raises LoopDied at the end, if one died; the block itself is
        not interrupted."""
        block = self.application.running(roles, broker, died=_noted)
        await asyncio.to_thread(block.__enter__)
        try:
            yield
        finally:
            await asyncio.shield(asyncio.to_thread(block.__exit__, None, None, None))

    # ── what the above needs ─────────────────────────────────────────────────────────────────────

    async def _in_thread(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        waiting = partial(call, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, waiting)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False)


class Abandoned(BaseException):
    """Ends a follower in the middle of a batch, which is then not handled. No Exception, which would be a failure that
    is reported and repeated."""


class Following:
    """A thread that follows the log, and hands one batch at a time to the event loop."""

    def __init__(self, app: Application, name: str, batch: int, start: int | Literal["now"]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = StopEvent()
        self._batches: asyncio.Queue[Batch | BaseException] = asyncio.Queue()
        self._asked_for = Semaphore(0)
        follow = partial(app.follow, name, self._hand_over, batch, start, self._stop)
        self._thread = Thread(target=self._run, args=(follow,), name="coupon-clock-follow", daemon=True)

    async def next(self) -> Batch:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._asked_for.release()
        given = await self._batches.get()
        if isinstance(given, BaseException):
            raise given
        return given

    def end(self) -> None:
        self._stop.set()
        self._asked_for.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self, follow: Callable[[], None]) -> None:
        try:
            follow()
        except Abandoned:
            return
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._batches.put_nowait, error)

    def _hand_over(self, batch: Batch) -> None:
        """Returns once the batch was handled."""
        self._loop.call_soon_threadsafe(self._batches.put_nowait, batch)
        self._asked_for.acquire()
        if self._stop.is_set():
            raise Abandoned


def _noted(death: LoopDied) -> None:
    """The end of the block raises it."""
