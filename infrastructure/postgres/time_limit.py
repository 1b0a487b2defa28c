"""Every wait for PostgreSQL has an end on this side: its own statement_timeout ends none for a server that is silent.

psycopg resumes the generator that it waits on each time that the socket is ready, and every tenth of a second when it
is not. So no thread is needed to watch, and a statement that is answered at once pays some microseconds.
"""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.waiting import Wait

STATEMENT_LIMIT_S = 10.0
LONG_STATEMENT_LIMIT_S = 3600.0
"""Of a rebuild, a migration, a verification: what reads or writes whole tables."""
ANSWER_LIMIT_S = 5.0

LOOK_AFTER_S = 10.0
LOOK_AGAIN_S = 2.0
LOOKS = 3

T = TypeVar("T")

IsAtWork = Callable[[], bool]
"""Whether PostgreSQL still executes what a connection waits for, as another connection sees it."""


class NoAnswer(psycopg.OperationalError):
    """PostgreSQL did not answer in time: the connection is closed, and what it was doing is unknown."""


def limited(
    connection: Connection[Any], waiting: PQGen[T], state: Wait, limit_s: float, is_at_work: IsAtWork | None = None
) -> PQGen[T]:
    """Goes on with what has begun to wait, for `state`.

    A statement that takes longer than `limit_s` is cancelled; if even that brings no answer, the connection is closed
    and NoAnswer raised. With `is_at_work`, that happens as soon as PostgreSQL shows no work for it.
    """
    cancel_at = monotonic() + limit_s
    cancelled = False
    watch = Watch(is_at_work) if is_at_work else None
    try:
        while True:
            ready = yield state
            state = waiting.send(ready)
            if ready:
                watch = Watch(is_at_work) if is_at_work else None
            elif watch and watch.sees_silence():
                raise closed(connection, "PostgreSQL is at work on it no longer, and no answer came")
            elif monotonic() < cancel_at:
                continue
            elif not cancelled:
                cancelled = True
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=ANSWER_LIMIT_S - 1)
            elif monotonic() > cancel_at + ANSWER_LIMIT_S:
                raise closed(connection, f"it did not answer for {limit_s + ANSWER_LIMIT_S:g} s")
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]
    except psycopg.errors.QueryCanceled as error:
        if cancelled:
            raise psycopg.errors.QueryCanceled(f"it took longer than {limit_s:g} s") from error
        raise


def closed(connection: Connection[Any], reason: str) -> NoAnswer:
    connection.pgconn.finish()
    return NoAnswer(reason)


class Watch:
    """Looks, after 10 s without an answer, whether a long statement is still worked on. Several looks must find no
    work, because an answer may be on its way, and a busy server may let nobody in for some seconds."""

    def __init__(self, is_at_work: IsAtWork) -> None:
        self._is_at_work = is_at_work
        self._look_at = monotonic() + LOOK_AFTER_S
        self._in_vain = 0

    def sees_silence(self) -> bool:
        if monotonic() < self._look_at:
            return False
        self._in_vain = 0 if self._is_at_work() else self._in_vain + 1
        self._look_at = monotonic() + (LOOK_AGAIN_S if self._in_vain else LOOK_AFTER_S)
        return self._in_vain >= LOOKS
