"""Aggregates of the eventsourcing library are handled when they are due: examples/trial.py, and what could go wrong."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import ClassVar
from uuid import UUID, uuid4

import pytest
from eventsourcing.application import ProcessingEvent
from eventsourcing.domain import Aggregate, datetime_now_with_tzinfo, event
from eventsourcing.persistence import IntegrityError
from eventsourcing.system import ProcessApplication

from coupon_clock.aggregates import AggregateFailed, DeadlineApplication, NoDeadlinesThere
from coupon_clock.domain.errors import InvalidArgument
from coupon_clock.infrastructure.command_handling.due import NothingDecided
from coupon_clock.infrastructure.messaging.memory_broker import MemoryBroker
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from coupon_clock.testing import ManualClock, TestDeadlines
from examples import MORNING, NOON
from programs import example
from waiting import eventually

HOUR = timedelta(hours=1)
A_MOMENT = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def shop() -> ModuleType:
    return example("trial")


@pytest.fixture
def trials(shop: ModuleType, database_url: str) -> Iterator[DeadlineApplication]:
    with shop.Trials({"COUPON_CLOCK_DATABASE_URL": database_url, "COUPON_CLOCK_RECONCILE_GRACE": "0"}) as trials:
        yield trials


@pytest.fixture
def deadlines(trials: DeadlineApplication) -> TestDeadlines:
    return TestDeadlines(trials, MORNING)


def topics(application: DeadlineApplication, aggregate_id: UUID) -> list[str]:
    return [type(event).__qualname__.split(".")[-1] for event in application.events.get(aggregate_id)]


def alarms(application: DeadlineApplication) -> dict[UUID, datetime]:
    database = application.deadlines.database
    with database.connection() as connection:
        return dict(connection.execute(database.sql("SELECT stream_id, due_at FROM {schema}.alarm")))


# ── in time ──────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_reminds_and_then_ends_each_once_and_never_before(trials, deadlines):
    trial_id = trials.start("Ada", 10 * HOUR, MORNING)

    seen = []
    for now in (8 * HOUR - A_MOMENT, 8 * HOUR, 10 * HOUR - A_MOMENT, 10 * HOUR, 20 * HOUR):
        deadlines.clock.set(MORNING + now)
        deadlines.run_due()
        seen.append(topics(trials, trial_id)[-1])

    assert seen == ["Started", "Reminded", "Reminded", "Ended", "Ended"]
    assert topics(trials, trial_id) == ["Started", "Reminded", "Ended"]
    assert alarms(trials) == {}


def test_what_nothing_is_due_for_any_more_is_left_alone(trials, deadlines):
    trial_id = trials.start("Ada", 10 * HOUR, MORNING)
    assert trials.subscribe(trial_id, MORNING)
    assert alarms(trials) == {}

    deadlines.clock.set(MORNING + 20 * HOUR)
    deadlines.run_due()

    assert topics(trials, trial_id) == ["Started", "Subscribed"]


def test_after_an_outage_all_is_caught_up_with_by_several_processes_each_once(shop, trials, deadlines, database_url):
    ids = [trials.start("Ada", 10 * HOUR, MORNING) for _ in range(50)]
    deadlines.clock.set(MORNING + 20 * HOUR)

    with shop.Trials({"COUPON_CLOCK_DATABASE_URL": database_url}) as others, ThreadPoolExecutor(2) as threads:
        both = [application.deadlines.parts(MemoryBroker()) for application in (trials, others)]
        eventually(lambda: list(threads.map(lambda parts: parts.run_once(), both)) and not alarms(trials))

    assert [topics(trials, trial_id) for trial_id in ids] == [["Started", "Reminded", "Ended"]] * 50
    report = trials.verify_promise()
    assert (report.streams, report.found_something) == (50, False)
    assert report.ended == {"Trial.Reminded": 50, "Trial.Ended": 50}


def test_in_real_time_with_the_broker_in_the_process(trials):
    with trials.running():
        trial_id = trials.start("Ada", timedelta(seconds=1), datetime.now(UTC))
        eventually(lambda: topics(trials, trial_id)[-1] == "Ended")

    report = trials.verify_promise()
    assert not report.found_something
    assert max(distribution.worst for distribution in report.lateness.values()) < timedelta(seconds=2)


@pytest.mark.rocketmq
def test_in_real_time_with_rocketmq(shop, database_url, rocketmq: LocalRocketMQ):
    rocketmq.provision("trials", "trials")
    env = {
        "COUPON_CLOCK_DATABASE_URL": database_url,
        "TRIALS_COUPON_CLOCK_ROCKETMQ_ENDPOINTS": rocketmq.endpoints,
        "TRIALS_COUPON_CLOCK_ROCKETMQ_TOPIC": "trials",
        "TRIALS_COUPON_CLOCK_ROCKETMQ_GROUP": "trials",
        "COUPON_CLOCK_RECONCILE_GRACE": "60",
    }
    with shop.Trials(env) as trials, trials.running():
        trial_id = trials.start("Ada", timedelta(seconds=20), datetime.now(UTC))
        eventually(lambda: topics(trials, trial_id)[-1] == "Ended", within=40)

        report = trials.verify_promise()
    assert set(report.lateness) == {"message"}
    assert not report.found_something


# ── other styles of the library ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rented:
    originator_id: UUID
    originator_version: int
    timestamp: datetime
    due_at: datetime


@dataclass(frozen=True)
class Returned:
    originator_id: UUID
    originator_version: int
    timestamp: datetime


@dataclass(frozen=True)
class Rental:
    """An aggregate without the library's base classes: functions return events."""

    id: UUID
    version: int
    due_at: datetime | None

    def handle_due(self) -> list[Returned]:
        return [Returned(self.id, self.version + 1, datetime_now_with_tzinfo())]


def project_rental(rental: Rental | None, events: Iterable[Rented | Returned]) -> Rental | None:
    for each in events:
        match each:
            case Rented():
                rental = Rental(each.originator_id, each.originator_version, each.due_at)
            case Returned():
                rental = replace(rental, version=each.originator_version, due_at=None)
    return rental


class Rentals(DeadlineApplication):
    projector = staticmethod(project_rental)

    def rent(self, due_at: datetime) -> UUID:
        rented = Rented(uuid4(), 1, datetime_now_with_tzinfo(), due_at)
        self.save(rented)
        return rented.originator_id


def test_immutable_aggregates_are_saved_and_handled_by_their_events_alone(database_url):
    with Rentals({"COUPON_CLOCK_DATABASE_URL": database_url}) as rentals:
        deadlines = TestDeadlines(rentals, MORNING)
        rental_id = rentals.rent(NOON)
        assert alarms(rentals) == {rental_id: NOON}

        deadlines.clock.set(NOON)
        deadlines.run_due()

        assert topics(rentals, rental_id) == ["Rented", "Returned"]
        assert alarms(rentals) == {}
        assert not rentals.verify_promise().found_something


class Note(Aggregate):
    """Has no deadline."""

    @event("Written")
    def __init__(self, text: str) -> None:
        self.text = text


class Task(Aggregate):
    INITIAL_VERSION = 0

    @event("Opened")
    def __init__(self, due_at: datetime | None) -> None:
        self.due_at = due_at
        self.mistake = ""

    @event("Moved")
    def move(self, due_at: datetime | None) -> None:
        self.due_at = due_at

    @event("Botched")
    def botch(self, mistake: str) -> None:
        self.mistake = mistake

    def handle_due(self) -> None:
        match self.mistake:
            case "raises":
                raise ValueError("a mistake")
            case "does nothing":
                return
            case "changes nothing":
                self.botch("changes nothing")
                return
        self.move(None)


class Tasks(DeadlineApplication):
    is_snapshotting_enabled = True
    snapshotting_intervals: ClassVar = {Task: 2}


@pytest.fixture
def tasks(database_url: str) -> Iterator[Tasks]:
    env = {"COUPON_CLOCK_DATABASE_URL": database_url, "AGGREGATE_CACHE_MAXSIZE": "100"}
    with Tasks(env) as tasks:
        yield tasks


@pytest.fixture
def clock(tasks: Tasks) -> ManualClock:
    return ManualClock(tasks.deadlines.settings, MORNING)


def opened(tasks: Tasks, due_at: datetime | None = NOON, mistake: str = "") -> Task:
    task = Task(due_at)
    if mistake:
        task.botch(mistake)
    tasks.save(task)
    return task


def test_several_aggregates_are_saved_with_their_alarms_in_one_transaction(tasks, clock):
    first, second, note = Task(NOON), Task(None), Note("no deadline")
    tasks.save(first, second, note)
    assert alarms(tasks) == {first.id: NOON}

    first.move(None)
    second.move(NOON)
    tasks.save(second, first)
    assert alarms(tasks) == {second.id: NOON}


def test_snapshots_and_the_cache_keep_working(tasks):
    deadlines = TestDeadlines(tasks, MORNING)
    task = opened(tasks)
    for hour in range(5):
        task.move(NOON + hour * HOUR)
        tasks.save(task)
    deadlines.clock.set(NOON)
    deadlines.run_due()
    assert tasks.repository.get(task.id).due_at == NOON + 4 * HOUR

    deadlines.clock.set(NOON + 4 * HOUR)
    deadlines.run_due()

    assert tasks.repository.get(task.id).due_at is None
    assert tasks.snapshots is not None
    assert len(list(tasks.snapshots.get(task.id))) == 4


def test_a_process_application_may_have_deadlines_too(database_url):
    class Processes(DeadlineApplication, ProcessApplication):
        def policy(self, domain_event: object, processing_event: ProcessingEvent) -> None:
            pass

    with Processes({"COUPON_CLOCK_DATABASE_URL": database_url}) as processes:
        deadlines = TestDeadlines(processes, MORNING)
        task = Task(NOON)
        processes.save(task)
        deadlines.clock.set(NOON)
        deadlines.run_due()
        assert topics(processes, task.id) == ["Opened", "Moved"]


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mistake", "error"),
    [("raises", AggregateFailed), ("does nothing", NothingDecided), ("changes nothing", NothingDecided)],
)
def test_an_aggregate_that_cannot_be_handled_is_named_and_makes_no_other_late(tasks, clock, mistake, error):
    good, bad = opened(tasks), opened(tasks, mistake=mistake)
    clock.set(NOON)

    failed, handled = tasks.deadlines.handle_due([bad.id, good.id], "message").results

    assert isinstance(failed.error, error)
    assert handled.ended_now
    assert topics(tasks, good.id) == ["Opened", "Moved"]
    assert topics(tasks, bad.id) == ["Opened", "Botched"]
    assert tasks.deadlines.alarms.stuck().streams == 1


@pytest.mark.parametrize("due_at", [datetime(2026, 1, 1), "tomorrow", 5])  # noqa: DTZ001 - naive, as users give it
def test_a_due_time_that_is_none_is_refused_and_nothing_is_saved(tasks, due_at):
    task = Task(NOON)
    task.due_at = due_at
    with pytest.raises(InvalidArgument, match="due_at"):
        tasks.save(task)
    assert list(tasks.events.get(task.id)) == []


def test_who_comes_second_saves_neither_event_nor_alarm(tasks, clock):
    task = opened(tasks)
    first, second = (tasks.repository.get(task.id) for _ in range(2))
    first.move(NOON + HOUR)
    second.move(NOON + 2 * HOUR)
    tasks.save(first)
    with pytest.raises(IntegrityError):
        tasks.save(second)
    assert alarms(tasks) == {task.id: NOON + HOUR}


def test_what_is_due_is_not_moved_any_more_by_who_did_not_see_it(tasks, clock):
    task = opened(tasks)
    task.move(NOON + HOUR)
    clock.set(NOON)
    with pytest.raises(IntegrityError, match="too late"):
        tasks.save(task)

    tasks.deadlines.handle_due([task.id], "message")
    assert topics(tasks, task.id) == ["Opened", "Moved"]
    assert tasks.repository.get(task.id).due_at is None


def test_who_saves_while_it_is_handled_is_not_lost(tasks, clock, monkeypatch):
    """The look is repeated on what the other has saved."""
    task = opened(tasks)
    clock.set(NOON)
    original = Task.handle_due

    def overtaken(aggregate: Task) -> None:
        monkeypatch.setattr(Task, "handle_due", original)
        other = tasks.repository.get(task.id)
        other.botch("")
        tasks.save(other)
        aggregate.handle_due()

    monkeypatch.setattr(Task, "handle_due", overtaken)
    tasks.deadlines.handle_due([task.id], "message")
    tasks.deadlines.handle_due([task.id], "message")

    assert topics(tasks, task.id) == ["Opened", "Botched", "Moved"]


def test_only_our_log_keeps_deadlines():
    with pytest.raises(NoDeadlinesThere, match="PERSISTENCE_MODULE"):
        Tasks({"PERSISTENCE_MODULE": "eventsourcing.popo"})


def test_an_aggregate_is_explained(tasks, clock):
    task, stuck = opened(tasks), opened(tasks, mistake="raises")
    assert "it is due at 2026-03-01T12:00:00.000Z" in tasks.explain(task.id).why

    clock.set(NOON + timedelta(milliseconds=20))
    tasks.deadlines.handle_due([task.id, stuck.id], "message")

    assert tasks.explain(task.id).why.endswith("by the consumer, 20.0 ms after it was due")
    explained = tasks.explain(stuck.id)
    assert ("a mistake" in explained.why, explained.do) == (True, "correct what it names")
    with pytest.raises(InvalidArgument):
        tasks.explain("task")


# ── the promise ──────────────────────────────────────────────────────────────────────────────────


def test_what_was_handled_early_or_not_at_all_is_found_in_the_log(tasks, clock):
    early, overdue = opened(tasks), opened(tasks)
    early.move(None)
    tasks.save(early, cause="message", command_id=uuid4())
    nothing_due = opened(tasks, None)
    nothing_due.move(None)
    tasks.save(nothing_due, cause="message", command_id=uuid4())

    clock.set(NOON + HOUR)
    report = tasks.verify_promise()

    assert report.overdue == [overdue.id]
    assert {violation.stream_id for violation in report.violations} == {early.id, nothing_due.id}
    assert any("early" in violation.what for violation in report.violations)
