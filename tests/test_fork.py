"""A process forked off one with an open application is refused at its first call, and harms the other in nothing."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from signal import alarm
from threading import Event

import pytest

from coupon_clock.app import Application
from coupon_clock.infrastructure.postgres.database import OpenedBeforeFork
from examples import SHOP, ending_in

CALLS: dict[str, Callable[[Application], object]] = {
    "execute": lambda app: app.execute(ending_in(3600)),
    "execute_many": lambda app: app.execute_many([ending_in(3600)]),
    "page": lambda app: app.page(SHOP),
    "is_usable": lambda app: app.is_usable(SHOP, ending_in(3600).template_id),
    "follow": lambda app: app.follow("mails", print),
    "running": lambda app: app.running().__enter__(),
    "rebuild": lambda app: app.maintenance.rebuild("coupon_template"),
    "verify": lambda app: list(app.maintenance.verify()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_first_call_of_the_child_is_refused_with_what_to_do(live, call):
    live.execute(ending_in(3600))
    assert exit_code_of_fork(lambda: 0 if is_refused(live, call) else 1) == 0
    assert live.execute(ending_in(3600)).version == 1


def test_a_child_hangs_at_no_lock_that_a_thread_of_its_parent_held(live):
    """Forked again and again while threads execute, so that some are within every part of it."""
    stop = Event()

    def execute_on() -> None:
        while not stop.is_set():
            live.execute(ending_in(3600))

    with ThreadPoolExecutor(12) as threads:
        working = [threads.submit(execute_on) for _ in range(12)]
        codes = {exit_code_of_fork(lambda: 0 if is_refused(live, CALLS["execute"]) else 1) for _ in range(20)}
        stop.set()
    assert codes == {0}
    assert [each.exception() for each in working] == [None] * 12


def test_the_child_may_leave_the_block_of_its_parent(live):
    assert exit_code_of_fork(lambda: live.close() or 0) == 0
    assert live.execute(ending_in(3600)).version == 1


def test_the_child_opens_its_own(live, settings):
    def child() -> int:
        with Application.open(settings) as own:
            return 0 if own.execute(ending_in(3600)).version == 1 else 1

    assert exit_code_of_fork(child) == 0


def test_a_process_of_multiprocessing_is_refused_and_ends_in_the_usual_way(live):
    process = get_context("fork").Process(target=expect_refusal, args=(live,))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert live.execute(ending_in(3600)).version == 1


def expect_refusal(app: Application) -> None:
    with pytest.raises(OpenedBeforeFork, match="open it after the fork"):
        app.execute(ending_in(3600))


def is_refused(app: Application, call: Callable[[Application], object]) -> bool:
    try:
        call(app)
    except OpenedBeforeFork:
        return True
    return False


def exit_code_of_fork(child: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        alarm(20)  # a child that hangs is killed
        try:
            code = child()
        except BaseException:
            code = 2
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
