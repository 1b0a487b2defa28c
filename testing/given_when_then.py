"""given / when / then, for an application, a runtime and a decider alike."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from coupon_clock.domain.decider import Command
from coupon_clock.domain.errors import CouponClockError

Refusal = TypeVar("Refusal", bound=CouponClockError)
Result = TypeVar("Result")
TakenCommand = TypeVar("TakenCommand", contravariant=True)
GivenResult = TypeVar("GivenResult", covariant=True)


class Subject(Protocol[TakenCommand, GivenResult]):
    """What given / when / then need: a TestApplication, a TestRuntime, or a DeciderSpec."""

    refusal: CouponClockError | None

    def execute(self, command: TakenCommand, /) -> GivenResult: ...

    def prepare(self, step: Any, /) -> None: ...

    def happened(self) -> Sequence[object]: ...


def given(app: Subject[Any, Any], *steps: object) -> None:
    """These happened before: commands, or events for a DeciderSpec. Raises what one is refused with."""
    fail_if_refused(app)
    for step in steps:
        app.prepare(step)
    app.happened()


def when(app: Subject[Command, Result], command: Command) -> Result | None:
    """This comes; None where it is refused, which `then_refused` wants to know and all others take for a failure."""
    fail_if_refused(app)
    try:
        return app.execute(command)
    except CouponClockError as refusal:
        app.refusal = refusal
        return None


def then(app: Subject[Any, Any], *events: object) -> None:
    """These events have happened since the last `given` or `then`, in the order of the log, and no other."""
    fail_if_refused(app)
    happened = list(app.happened())
    if happened != list(events):
        raise AssertionError(f"happened: {happened}, not {list(events)}")


def then_nothing(app: Subject[Any, Any]) -> None:
    """Nothing has happened since the last `given` or `then`."""
    then(app)


def then_refused(app: Subject[Any, Any], error: type[Refusal]) -> Refusal:
    """The last `when` was refused so, and nothing has happened. Results with the refusal."""
    refusal, app.refusal = app.refusal, None
    if not isinstance(refusal, error):
        raise AssertionError(f"refused: {refusal!r}, not {error.__name__}") from refusal
    then_nothing(app)
    return refusal


def fail_if_refused(app: Subject[Any, Any]) -> None:
    """A refusal that no `then_refused` asked for is a failure, and the next step is the last that can report it."""
    refusal, app.refusal = app.refusal, None
    if refusal is not None:
        raise AssertionError(f"refused: {refusal}") from refusal
