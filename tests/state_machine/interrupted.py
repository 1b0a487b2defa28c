"""The product is stopped, or overtaken, in the middle of a step: at the calls with which it leaves its own process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

When = Literal["before", "after"]


class Killed(BaseException):
    """Ends the process, so that nothing after it is done. What PostgreSQL has not committed by then is rolled back."""


@contextmanager
def at(owner: Any, name: str, when: When, happens: Callable[[], object]) -> Iterator[None]:
    """`happens`: the first time that `owner.name` is called, before it is or after it was."""
    own = vars(owner).get(name)
    call, waiting = getattr(owner, name), [happens]

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if when == "before" and waiting:
            waiting.pop()()
        result = call(*arguments, **named)
        if when == "after" and waiting:
            waiting.pop()()
        return result

    setattr(owner, name, interrupted)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def killed() -> None:
    raise Killed
