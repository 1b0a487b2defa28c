"""A command that is sent again has no second effect, whatever happened in between: random histories.

Most run the real execution on a log in memory, for speed; one runs the whole application on PostgreSQL.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from coupon_clock.app import COUPON_TEMPLATES, Outcome, outcome_of
from coupon_clock.domain.commands import Command
from coupon_clock.domain.errors import CommandConflict, CouponClockError, CouponTemplateNotFound, OutcomeUnknown
from coupon_clock.domain.events import Ended, Event
from coupon_clock.infrastructure.command_handling.handler import CommandHandler
from coupon_clock.infrastructure.event_store.store import Append, Appended, Conflict, Envelope, Loaded
from coupon_clock.infrastructure.postgres.errors import AnswerLost
from coupon_clock.testing import TestApplication
from event_store_contract import EventStoreContract
from examples import (
    EVENING,
    MICROSECOND,
    MORNING,
    NOON,
    OTHER_SHOP,
    SHOP,
    TEMPLATE,
    a_template,
    change,
    ending_in,
    expire,
    increase,
    terminate,
)

# ── random commands and histories ────────────────────────────────────────────────────────────────

NEXT_DAY = MORNING + timedelta(days=1)
TIMES = st.sampled_from([MORNING] * 8 + [MORNING + MICROSECOND, NOON - MICROSECOND, NOON, EVENING])
ENDS = st.sampled_from([NEXT_DAY, EVENING, NOON, MORNING])
VERSIONS = st.sampled_from([None] * 8 + [1, 2, 3])

CREATE = a_template(template_id=TEMPLATE, valid_until=NOON)
INCREASES = st.builds(increase, st.just(TEMPLATE), st.integers(0, 3), expected_version=VERSIONS)
CHANGES = st.builds(change, st.just(TEMPLATE), ENDS, expected_version=VERSIONS)
TERMINATIONS = st.builds(terminate, st.just(TEMPLATE), expected_version=VERSIONS)
CREATIONS = st.builds(a_template, template_id=st.just(TEMPLATE), name=st.sampled_from(["Spring sale", "Another"]))
OTHERS_TRY = st.builds(increase, st.just(TEMPLATE), shop_number=st.just(OTHER_SHOP))
EXPIRIES = st.builds(expire, st.just(TEMPLATE))

# Mostly what changes something; an end ends the history too, so it is rare.
SHOP_KINDS = [INCREASES] * 10 + [CHANGES] * 10 + [TERMINATIONS, CREATIONS, OTHERS_TRY]
SHOP_COMMANDS = st.sampled_from(SHOP_KINDS).flatmap(lambda kind: kind)
COMMANDS = st.sampled_from([*SHOP_KINDS, EXPIRIES]).flatmap(lambda kind: kind)

HISTORIES = st.lists(st.tuples(COMMANDS, TIMES), min_size=2, max_size=12)
SHOP_HISTORIES = st.lists(st.tuples(SHOP_COMMANDS, TIMES), min_size=2, max_size=12)

History = list[tuple[Command, datetime]]
Reply = Outcome | CouponClockError


def content(command: Command) -> object:
    """What a command asks for, whoever sends it under whatever id."""
    unimportant = {"command_id", "actor", "expected_version"}
    return type(command), [value for name, value in asdict(command).items() if name not in unimportant]


def changed_something(answer: Reply) -> bool:
    return isinstance(answer, Outcome) and bool(answer.events)


# ── a world to run them in ───────────────────────────────────────────────────────────────────────


class LogInMemory:
    """Stores as PostgreSQL does. Its answers can get lost, and others can come first."""

    def __init__(self) -> None:
        self.now = MORNING
        self.envelopes: list[Envelope[Event]] = []
        self.loses_answers = False
        self.others_come_first: Callable[[], object] | None = None

    def stream(self, stream_id: UUID) -> list[Envelope[Event]]:
        return [envelope for envelope in self.envelopes if envelope.stream_id == stream_id]

    def load_many(self, stream_ids: Sequence[UUID]) -> Loaded[Event]:
        return Loaded({stream_id: self.stream(stream_id) for stream_id in stream_ids}, self.now)

    def append(
        self, appends: Sequence[Append[Event]], decided_at: datetime, longest_wait: timedelta | None = None
    ) -> list[Appended | Conflict]:
        if others := self.others_come_first:
            self.others_come_first = None
            others()
        answers = [self._append(append) for append in appends]
        if self.loses_answers and appends:
            raise AnswerLost("the connection broke after the commit")
        return answers

    def _append(self, append: Append[Event]) -> Appended | Conflict:
        version = len(self.stream(append.stream_id))
        if version != append.expected_version:
            return Conflict(append.stream_id, append.expected_version, version)
        first = len(self.envelopes) + 1
        for number, new in enumerate(append.events):
            place = {"stream_id": append.stream_id, "version": version + number + 1, "position": first + number}
            self.envelopes.append(Envelope(**asdict(new), **place, recorded_at=self.now))
        return Appended(list(range(first, len(self.envelopes) + 1)))


class TestLogInMemory(EventStoreContract):
    @pytest.fixture
    def store(self) -> LogInMemory:
        return LogInMemory()


class World:
    """One template, created in the MORNING."""

    def __init__(self) -> None:
        self.log = LogInMemory()
        self.handler = CommandHandler(self.log, COUPON_TEMPLATES, notify=lambda _: None)
        self.does(CREATE)

    def does(self, command: Command) -> Reply:
        return self.does_all([command])[0]

    def does_all(self, commands: Sequence[Command]) -> list[Reply]:
        return [outcome_of(each) for each in self.handler.handle_many(commands)]

    def lives(self, history: History) -> list[tuple[Command, Reply]]:
        """One command after the other, each at its time, though time never goes back."""
        return [(command, self.does_at(at, command)) for command, at in history]

    def does_at(self, at: datetime, command: Command) -> Reply:
        self.log.now = max(self.log.now, at)
        return self.does(command)

    def what_happened(self) -> list[Envelope[Event]]:
        return list(self.log.envelopes)


# ── repeats ──────────────────────────────────────────────────────────────────────────────────────


@given(HISTORIES)
def test_a_command_sent_again_after_any_others_changes_nothing_and_has_its_first_outcome(history):
    world = World()
    effective = [(command, answer) for command, answer in world.lives(history) if changed_something(answer)]
    happened = world.what_happened()

    for command, first in effective:
        assert world.does(command) == first
    assert world.what_happened() == happened


@given(SHOP_HISTORIES)
def test_what_was_already_so_stays_so(history):
    world = World()
    ignored = [command for command, answer in world.lives(history) if isinstance(answer, Outcome) and not answer.events]
    happened = world.what_happened()

    for command in ignored:
        assert world.does(command).events == ()
    assert world.what_happened() == happened


@given(HISTORIES)
def test_creating_again_has_its_first_outcome_whatever_became_of_the_template(history):
    world = World()
    first = world.does(CREATE)
    world.lives(history)

    assert world.does(CREATE) == first


@given(HISTORIES)
def test_commands_whose_answers_got_lost_have_them_when_they_are_sent_again(history):
    undisturbed, world = World(), World()
    effective = [(command, answer) for command, answer in undisturbed.lives(history) if changed_something(answer)]
    world.log.loses_answers = True
    unknown = [command for command, answer in world.lives(history) if isinstance(answer, OutcomeUnknown)]
    world.log.loses_answers = False

    assert unknown == [command for command, _ in effective]
    assert [world.does(command) for command in unknown] == [answer for _, answer in effective]
    assert world.what_happened() == undisturbed.what_happened()


@given(HISTORIES)
def test_a_chunk_that_holds_every_command_twice_has_the_effect_of_each_once(history):
    once, twice = World(), World()
    commands = [command for command, _ in history]
    outcomes = once.does_all(commands)
    first, again = halves(twice.does_all([*commands, *commands]))

    assert effects(first) == effects(outcomes)
    assert effects(first) == [two for one, two in zip(first, again, strict=True) if changed_something(one)]


def halves(answers: list[Reply]) -> tuple[list[Reply], list[Reply]]:
    return answers[: len(answers) // 2], answers[len(answers) // 2 :]


def effects(answers: list[Reply]) -> list[Reply]:
    return [answer for answer in answers if changed_something(answer)]


@given(HISTORIES)
def test_two_copies_of_a_command_at_the_same_time_have_one_effect_and_one_outcome(history):
    world = World()
    for command, at in history:
        world.log.now = max(world.log.now, at)
        version = len(world.what_happened())
        first, second = at_the_same_time(world, command)

        if changed_something(first):
            assert first == second
            assert len(world.what_happened()) == version + 1


def at_the_same_time(world: World, command: Command) -> tuple[Reply, Reply]:
    """A copy is loaded, decided and stored between the other's decision and its append."""
    copies: list[Reply] = []
    world.log.others_come_first = lambda: copies.append(world.does(command))
    copies.append(world.does(command))
    world.log.others_come_first = None
    return copies[0], copies[-1]


# ── the same id, other content ───────────────────────────────────────────────────────────────────


@given(SHOP_HISTORIES, SHOP_COMMANDS)
def test_the_same_id_with_other_content_is_refused(history, other):
    """Of shop commands: nobody can take the id of an internal one."""
    world = World()
    effective = [command for command, answer in world.lives(history) if changed_something(answer)]
    happened = world.what_happened()

    for command in effective:
        if content(command) != content(other):
            refused = world.does(replace(other, command_id=command.command_id))
            assert isinstance(refused, CommandConflict | CouponTemplateNotFound)
    assert world.what_happened() == happened


# ── what holds of every history ──────────────────────────────────────────────────────────────────


@given(HISTORIES)
def test_a_template_ends_at_most_once_and_nothing_follows(history):
    world = World()
    world.lives(history)

    ends = [n for n, envelope in enumerate(world.what_happened(), 1) if isinstance(envelope.event, Ended)]
    assert ends in ([], [len(world.what_happened())])


@given(HISTORIES)
def test_a_chunk_comes_to_the_same_as_one_command_after_the_other(history):
    at_once, in_turn = World(), World()
    commands = [command for command, _ in history]

    at_once.does_all(commands)
    for command in commands:
        in_turn.does(command)
    assert at_once.what_happened() == in_turn.what_happened()


# ── through the whole application ────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the pool's threads do, as time goes by
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES)
def test_a_command_sent_again_to_a_real_log_changes_nothing(app: TestApplication, history):
    template_id = uuid4()
    app.clock.set(MORNING)
    answered = {}
    for command, at in [(CREATE, MORNING), *history]:
        app.clock.set(max(app.clock.now, at))
        command = replace(command, template_id=template_id)
        (answered[command],) = app.execute_many([command])
    app.run_due()
    happened = app.history(SHOP, template_id)

    effective = {command: answer for command, answer in answered.items() if changed_something(answer)}
    assert app.execute_many(list(effective)) == list(effective.values())
    assert [app.execute(command) for command in effective] == list(effective.values())
    assert app.history(SHOP, template_id) == happened


DIES_BEFORE_IT_ANSWERS = """
import os, signal, sys, msgspec
from coupon_clock.app import Application, Settings
from coupon_clock.domain.commands import CreateCouponTemplate

with Application.open(Settings.load(database_url=sys.argv[1])) as app:
    app.execute(msgspec.json.decode(sys.stdin.read(), type=CreateCouponTemplate))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_command_is_sent_again_after_a_crash_between_commit_and_answer(live, database_url):
    command = ending_in(3600)
    crashed = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_IT_ANSWERS, database_url], input=msgspec.json.encode(command), check=False
    )
    assert crashed.returncode == -signal.SIGKILL
    live.execute(increase(command.template_id))

    answer = live.execute(command)
    created, _ = live.history(SHOP, command.template_id)
    assert answer == Outcome(command.template_id, 1, created.position, (created.event,))
