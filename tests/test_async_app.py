"""The application, awaited: the same outcomes, and an event loop that never waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from coupon_clock.async_app import AsyncApplication
from coupon_clock.domain.errors import CouponTemplateNotFound, InvalidArgument, InvalidCommand
from coupon_clock.infrastructure.settings import Settings
from examples import SHOP, ending_in, increase, terminate

Body = Callable[[AsyncApplication], Awaitable[Any]]


@pytest.fixture
def awaited(settings: Settings) -> Callable[[Body], Any]:
    """Runs a body with an application in an event loop."""

    async def within(body: Body) -> Any:
        async with AsyncApplication.open(settings) as app:
            return await asyncio.wait_for(body(app), 60)

    return lambda body: asyncio.run(within(body))


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    deadline = monotonic() + 30
    while not await condition():
        assert monotonic() < deadline
        await asyncio.sleep(0.01)


# ── commands and queries ─────────────────────────────────────────────────────────────────────────


def test_commands_and_queries_are_those_of_the_application(awaited):
    async def body(app: AsyncApplication) -> None:
        template = ending_in(3600)
        created = await app.execute(template)
        assert created.version == 1
        several = await app.execute_many([increase(template.template_id), increase(template.template_id)])
        assert [each.version for each in several] == [2, 3]
        async with app.running(["projector"]):
            view = await app.find(SHOP, template.template_id, at_least=several[1].position, timeout=20)
        assert view.version == 3
        assert await app.is_usable(SHOP, template.template_id)
        assert len(await app.history(SHOP, template.template_id)) == 3
        assert (await app.state_at(SHOP, template.template_id, created.position)).version == 1
        assert (await app.page(SHOP)).views[0].template_id == template.template_id
        assert (await app.shop_months(SHOP)).months
        assert await app.end_of_log() == several[1].position
        with pytest.raises(CouponTemplateNotFound):
            await app.execute(terminate(uuid4()))
        with pytest.raises(InvalidCommand):
            await app.execute(None)

    awaited(body)


def test_a_thousand_tasks_share_transactions_and_each_has_its_own_outcome(awaited):
    async def body(app: AsyncApplication) -> None:
        templates = [ending_in(3600) for _ in range(1000)]
        outcomes = await asyncio.gather(*map(app.execute, templates))
        assert [outcome.template_id for outcome in outcomes] == [template.template_id for template in templates]
        assert {outcome.version for outcome in outcomes} == {1}

    awaited(body)


def test_commands_on_one_template_meet_and_all_happen(awaited):
    async def body(app: AsyncApplication) -> None:
        template = ending_in(3600)
        await app.execute(template)
        outcomes = await asyncio.gather(*(app.execute(increase(template.template_id, by=1)) for _ in range(50)))
        assert sorted(outcome.version for outcome in outcomes) == list(range(2, 52))

    awaited(body)


def test_templates_end_while_the_loops_run_beside_the_event_loop(awaited):
    async def body(app: AsyncApplication) -> None:
        template = ending_in(1)
        async with app.running():
            await app.execute(template)

            async def ended() -> bool:
                return len(await app.history(SHOP, template.template_id)) == 2

            await until(ended)

    awaited(body)


# ── the event loop ───────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def locked(settings: Settings) -> AsyncIterator[None]:
    """All appends wait."""
    with psycopg.connect(settings.database()) as connection:
        connection.execute("LOCK TABLE coupon_clock.event IN ACCESS EXCLUSIVE MODE")
        yield


def test_while_postgresql_keeps_commands_waiting_the_event_loop_goes_on(awaited, settings):
    async def body(app: AsyncApplication) -> None:
        template = ending_in(3600)
        async with locked(settings):
            waiting = [asyncio.create_task(app.execute(template)), asyncio.create_task(app.end_of_log())]
            turns = 0
            until_then = monotonic() + 1.5
            while monotonic() < until_then:
                await asyncio.sleep(0)
                turns += 1
            assert turns > 1_000
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)

    awaited(body)


def test_a_command_that_is_cancelled_before_its_turn_is_not_executed(awaited, settings):
    async def body(app: AsyncApplication) -> None:
        sent, cancelled = ending_in(3600), ending_in(3600)
        async with locked(settings):
            first = asyncio.create_task(app.execute(sent))
            queue = app.application.runtime.queue
            await until(lambda: _is(queue._server is not None and not queue._queue))
            second = asyncio.create_task(app.execute(cancelled))
            await until(lambda: _is(len(queue._queue) == 1))
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        await first
        with pytest.raises(CouponTemplateNotFound):
            await app.history(SHOP, cancelled.template_id)

    awaited(body)


async def _is(condition: bool) -> bool:
    return condition


# ── reactions ────────────────────────────────────────────────────────────────────────────────────


def test_a_follower_is_an_iterator_of_batches_from_a_durable_checkpoint(awaited):
    async def body(app: AsyncApplication) -> None:
        await app.execute_many([ending_in(3600) for _ in range(10)])
        seen: list[int] = []
        async with aclosing(app.follow("mails", batch=4)) as batches:
            async for batch in batches:
                seen += [envelope.position for envelope in batch]
                if len(seen) >= 8:
                    break  # the second batch was not handled
        again: list[int] = []
        async with aclosing(app.follow("mails", batch=4)) as batches:
            async for batch in batches:
                again += [envelope.position for envelope in batch]
                if len(again) >= 6:
                    break
        assert again == [*seen[4:8], *range(seen[-1] + 1, seen[-1] + 3)]

    awaited(body)


def test_a_follower_that_is_cancelled_while_it_waits_ends_and_another_goes_on(awaited):
    async def body(app: AsyncApplication) -> None:
        async def next_batch() -> None:
            async with aclosing(app.follow("mails")) as batches:
                async for _ in batches:
                    pass

        waiting = asyncio.create_task(next_batch())
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await app.execute(ending_in(3600))
        async with aclosing(app.follow("mails")) as batches:
            assert len(await anext(batches)) == 1

    awaited(body)


def test_wrong_arguments_of_a_follower_are_refused_when_it_is_asked(awaited):
    async def body(app: AsyncApplication) -> None:
        with pytest.raises(InvalidArgument, match="name of a projection"):
            await anext(app.follow("coupon_template"))

    awaited(body)
