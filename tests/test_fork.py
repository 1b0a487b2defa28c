"""A process forked off one with an open application is refused at its first call, and harms the other in nothing."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from signal import alarm
from threading import Event, Thread

import pytest

from coupon_clock.app import Application
from coupon_clock.infrastructure.postgres.database import OpenedBeforeFork
from examples import SHOP, ending_in
from waiting import eventually

CALLS: dict[str, Callable[[Application], object]] = {
    "execute": lambda app: app.execute(ending_in(3600)),
    "execute_many": lambda app: app.execute_many([ending_in(3600)]),
    "find": lambda app: app.find(SHOP, ending_in(3600).template_id),
    "page": lambda app: app.page(SHOP),
    "history": lambda app: app.history(SHOP, ending_in(3600).template_id),
    "end_of_log": lambda app: app.end_of_log(),
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


def test_a_child_that_ends_in_the_usual_way_hangs_at_no_lock_of_its_parent(settings):
    """As a worker of gunicorn does: what the interpreter finalises includes the parent's application."""
    program = f"""
import os
from coupon_clock.app import Application, Settings
from test_fork import held
app = Application.open(Settings.load(database_url={settings.database()!r}))
pool = app.database._pool
with held(pool._lock, pool._sched._lock, pool._tasks.mutex):
    child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    app.end_of_log()
    app.close()
    raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], timeout=20, capture_output=True, text=True, env=environment
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_child_forked_while_the_loops_run_may_leave_their_block(live):
    with ExitStack() as block:
        block.enter_context(live.running())
        with held(live.runtime._notify.log_grew._rung):
            code = exit_code_of_fork(lambda: block.close() or 0)
        live.execute(template := ending_in(1))
        eventually(lambda: len(live.history(SHOP, template.template_id)) == 2)
    assert code == 0


def test_a_child_that_a_handler_forks_follows_nothing(live):
    live.execute(ending_in(3600))
    parent, codes, stop = os.getpid(), list[int](), Event()

    def fork(batch: object) -> None:
        child = os.fork()
        if child == 0:
            alarm(20)
            return
        codes.append(exit_code(child))
        stop.set()

    try:
        live.follow("mails", fork, stop=stop)
    except OpenedBeforeFork:
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert codes == [0]


def expect_refusal(app: Application) -> None:
    with pytest.raises(OpenedBeforeFork, match="open it after the fork"):
        app.execute(ending_in(3600))


@contextmanager
def held(*locks: AbstractContextManager[object]) -> Iterator[None]:
    """By another thread, which a fork lacks."""
    taken, done = Event(), Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            taken.set()
            done.wait()

    holder = Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        if holder.is_alive():
            holder.join()


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
    return exit_code(pid)


def exit_code(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
