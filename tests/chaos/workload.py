"""Commands at a steady rate, questions about what they made, and a note of each answer for the checker."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from chaos.journal import Journal
from coupon_clock.app import (
    Application,
    ChangeValidity,
    CouponClockError,
    CouponTemplateNotFound,
    CreateCouponTemplate,
    DatabaseUnavailable,
    Filters,
    IncreaseStock,
    Outcome,
    OutcomeUnknown,
    TerminateCouponTemplate,
)
from examples import a_template

SHOPS = range(1, 6)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = timedelta(hours=2)
BURST_EVERY_S = 5
MOST_KNOWN = 300
COMMAND_EVERY_S = 0.08
TRANSACTION_EVERY_S = 0.3
QUESTION_EVERY_S = 0.02
LONGEST_HOLD_S = 1.0
GIVE_UP_AFTER_S = 40.0
"""Longer than a connection that is silent takes."""

CALLERS_ROW = "INSERT INTO chaos.callers_row VALUES (%s, %s) ON CONFLICT DO NOTHING"


class Known(NamedTuple):
    template_id: UUID
    shop_number: int
    valid_until: datetime


class Workload:
    """Threads that go on until `stop`, all on one application. What each asked is noted before, the answer after."""

    def __init__(self, app: Application, url: str, journal: Journal, seed: str, stop: Event) -> None:
        self._app = app
        self._url = url
        self._journal = journal
        self._seed = seed
        self._stop = stop
        self._known: deque[Known] = deque(maxlen=MOST_KNOWN)
        self._answered: deque[Any] = deque(maxlen=MOST_KNOWN)
        self._ahead = timedelta()

    def start(self) -> list[Thread]:
        """All of them."""
        parts = [
            (self._one_command, COMMAND_EVERY_S),
            (self._one_command, COMMAND_EVERY_S),
            (self._many_commands, 1.0),
            (self._transaction, TRANSACTION_EVERY_S),
            (self._question, QUESTION_EVERY_S),
            (self._learn, 1.0),
        ]
        threads = [
            Thread(target=self._repeat, args=(part, pause, Random(f"{self._seed}-{number}")), daemon=True)
            for number, (part, pause) in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _repeat(self, part: Callable[[Random], None], pause: float, random: Random) -> None:
        while not self._stop.wait(random.uniform(0, 2 * pause)):
            try:
                part(random)
            except Exception as error:
                self._journal.note("unexpected", by=part.__name__, error=repr(error))

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def _one_command(self, random: Random) -> None:
        command = self._chosen(random)
        self.execute(command)
        if random.random() < 0.1 and self._answered:
            self.execute(random.choice(self._answered))

    def _many_commands(self, random: Random) -> None:
        """Creates whose ends come in a burst, some other commands, and a wrong one in between."""
        commands = [self._creation(random, self._next_burst()) for _ in range(random.randint(5, 30))]
        commands += [self._chosen(random) for _ in range(3)]
        wrong = a_template(valid_until=LONG_AGO, stock=-1)
        commands.insert(random.randrange(len(commands)), wrong)
        for command in commands:
            self._ask(command, wrong=command is wrong)
        try:
            outcomes: Sequence[Outcome | CouponClockError] = self._app.execute_many(commands)
        except CouponClockError as error:
            outcomes = [error] * len(commands)
        for command, outcome in zip(commands, outcomes, strict=True):
            self._answer(command, outcome)
        again = [c for c, o in zip(commands, outcomes, strict=True) if isinstance(o, OutcomeUnknown)]
        for command in again:
            self.execute(command)

    def _transaction(self, random: Random) -> None:
        """Some commands and rows of the caller's own: committed together, or rolled back."""
        commands = sorted((self._chosen(random) for _ in range(random.randint(1, 3))), key=lambda c: c.template_id)
        hold = random.uniform(0, LONGEST_HOLD_S) if random.random() < 0.1 else 0.0
        give_up = random.random() < 0.2
        deadline = monotonic() + GIVE_UP_AFTER_S
        while not self.execute_together(commands, hold, give_up) and not give_up and monotonic() < deadline:
            sleep(0.2)

    def execute_together(self, commands: Sequence[Any], hold: float = 0.0, give_up: bool = False) -> bool:
        """In one transaction of the caller. False where it must be repeated to know. Notes what is locked meanwhile."""
        asked: list[Any] = []
        outcomes: list[Outcome | CouponClockError] = []
        committing = False
        try:
            with self._holding(commands), psycopg.connect(self._url, connect_timeout=5) as connection:
                for command in commands:
                    asked.append(command)
                    outcomes.append(self._in_transaction(connection, command))
                sleep(hold)
                if give_up or any(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes):
                    connection.rollback()
                    self._note_each("rolled back", asked)
                    return give_up
                committing = True
                connection.commit()
        except psycopg.Error as error:
            refused = not committing or isinstance(error, psycopg.errors.SerializationFailure)
            self._note_each("rolled back" if refused else "unknown", asked)
            return False
        for command, outcome in zip(commands, outcomes, strict=True):
            self._answer(command, outcome)
        return True

    def _note_each(self, what: str, commands: Sequence[Any]) -> None:
        for command in commands:
            self._journal.note(what, command=command.command_id)

    def _in_transaction(self, connection: psycopg.Connection[Any], command: Any) -> Outcome | CouponClockError:
        self._ask(command, transaction=True)
        try:
            outcome = self._app.execute(command, connection=connection)
        except CouponClockError as error:
            return error
        if outcome.events:
            connection.execute(CALLERS_ROW, (self._app.settings.database_schema, command.command_id))
        return outcome

    @contextmanager
    def _holding(self, commands: Sequence[Any]) -> Iterator[None]:
        templates = [command.template_id for command in commands]
        number = str(uuid4())
        self._journal.note("locks", number=number, templates=templates)
        try:
            yield
        finally:
            self._journal.note("unlocks", number=number)

    def execute(self, command: Any) -> None:
        """The same command again and again, for as long as its outcome is unknown."""
        deadline = monotonic() + GIVE_UP_AFTER_S
        while True:
            self._ask(command)
            try:
                outcome: Outcome | CouponClockError = self._app.execute(command)
            except CouponClockError as error:
                outcome = error
            self._answer(command, outcome)
            if not isinstance(outcome, OutcomeUnknown) or monotonic() > deadline:
                return
            sleep(0.1)

    def _ask(self, command: Any, wrong: bool = False, transaction: bool = False) -> None:
        kind = type(command).__name__
        self._journal.note("asked", command=command.command_id, kind=kind, wrong=wrong, transaction=transaction)

    def _answer(self, command: Any, outcome: Outcome | CouponClockError) -> None:
        match outcome:
            case Outcome():
                self._journal.note(
                    "acknowledged",
                    command=command.command_id,
                    template=outcome.template_id,
                    version=outcome.version,
                    position=outcome.position,
                    events=len(outcome.events),
                )
                self._answered.append(command)
                self._remember(command)
            case OutcomeUnknown():
                self._journal.note("unknown", command=command.command_id, error=str(outcome))
            case DatabaseUnavailable():
                self._journal.note("unavailable", command=command.command_id, error=repr(outcome), says=str(outcome))
            case _:
                self._journal.note("refused", command=command.command_id, error=type(outcome).__name__)

    # ── which ────────────────────────────────────────────────────────────────────────────────────

    def _chosen(self, random: Random) -> Any:
        if not self._known or random.random() < 0.45:
            return self._creation(random, self._soon(random))
        known = random.choice(self._known)
        given = {"command_id": uuid4(), "template_id": known.template_id, "shop_number": known.shop_number}
        match random.random():
            case choice if choice < 0.4:
                return IncreaseStock(**given, by=random.randint(1, 9))
            case choice if choice < 0.5:
                return TerminateCouponTemplate(**given)
            case choice if choice < 0.75:
                # On the edge: as the end comes, it is moved.
                self._wait_until(known.valid_until - timedelta(milliseconds=random.uniform(5, 60)))
                return ChangeValidity(**given, valid_from=LONG_AGO, valid_until=self._soon(random))
            case _:
                return ChangeValidity(**given, valid_from=LONG_AGO, valid_until=self._soon(random))

    def _creation(self, random: Random, valid_until: datetime) -> CreateCouponTemplate:
        return a_template(
            shop_number=random.choice(SHOPS), valid_from=LONG_AGO, valid_until=valid_until, stock=random.randint(1, 99)
        )

    def _soon(self, random: Random) -> datetime:
        if random.random() < 0.05:
            return self._now() + FAR_AHEAD
        return self._now() + timedelta(seconds=random.choice((0.05, 0.5, 3.0, 10.0)) * random.uniform(0.5, 1.5))

    def _next_burst(self) -> datetime:
        seconds = (self._now().timestamp() // BURST_EVERY_S + 1) * BURST_EVERY_S
        return datetime.fromtimestamp(seconds, UTC)

    def _now(self) -> datetime:
        """About PostgreSQL's time."""
        return datetime.now(UTC) + self._ahead

    def _wait_until(self, then: datetime) -> None:
        """If that is soon."""
        seconds = (then - self._now()).total_seconds()
        if 0 < seconds < 1:
            sleep(seconds)

    def _remember(self, command: Any) -> None:
        if isinstance(command, CreateCouponTemplate | ChangeValidity):
            self._known.append(Known(command.template_id, command.shop_number, command.valid_until))

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    def _question(self, random: Random) -> None:
        """Mostly around the end of something."""
        if not self._known:
            return
        known = min(random.sample(self._known, min(10, len(self._known))), key=self._from_its_end)
        began = time()
        with suppress(DatabaseUnavailable, CouponTemplateNotFound):
            usable = self._app.is_usable(known.shop_number, known.template_id)
            self._journal.note("saw", template=known.template_id, began=began, usable=usable)

    def _from_its_end(self, known: Known) -> timedelta:
        return abs(known.valid_until - self._now())

    def _learn(self, random: Random) -> None:
        """What time it is there, and what other processes have made."""
        with suppress(CouponClockError):
            moment = datetime.now(UTC)
            page = self._app.page(
                random.choice(SHOPS), Filters(state="active", ends_before=self._now() + timedelta(seconds=10)), limit=50
            )
            for view in page.views:
                self._ahead = max(view.as_of - moment, timedelta())
                self._known.append(Known(view.template_id, view.shop_number, view.valid_until))
