"""Any order of commands, faults and time, on the real code and a real PostgreSQL; after each step, P0 to P8.

docs/proof.md says what is checked under which of these names, and which bugs this has been seen to find.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from psycopg.errors import SerializationFailure

from coupon_clock.app import COUPON_TEMPLATES, Application, CouponClockError, Envelope, Outcome, Settings
from coupon_clock.deadlines import Parts
from coupon_clock.domain.events import StoredEvent
from coupon_clock.infrastructure.event_store.checkpoint import CheckpointLost
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.store import UnreadableEvent
from coupon_clock.infrastructure.event_store.subscription import Batch, Subscription
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from coupon_clock.infrastructure.postgres.errors import AnswerLost
from coupon_clock.projections.engine import projector
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, rebuild
from coupon_clock.projections.registry import PROJECTIONS
from coupon_clock.runtime import Runtime
from coupon_clock.testing import ManualClock
from examples import MICROSECOND, SHOP, a_template, change, increase, terminate
from state_machine.interrupted import Killed, When, at, killed
from state_machine.model import MOST_STOCK, Answer, Fields, LogEntry, Model, Template
from state_machine.stored import Stored
from state_machine.unreliable_broker import UnreliableBroker
from waiting import eventually

NEW_MONTH = datetime(2026, 4, 1, tzinfo=UTC)
BEGIN = NEW_MONTH - timedelta(seconds=20)
GRACE = timedelta(seconds=1)
FOLLOWER = "tells others"
MOST_TEMPLATES = 6

SECONDS_AHEAD = st.sampled_from([5, 10, 20, 40, 80, 3 * 60 * 60]).map(lambda seconds: timedelta(seconds=seconds))
UNTIL = st.integers(0, 9).flatmap(lambda n: SECONDS_AHEAD if n else st.sampled_from([MICROSECOND, timedelta(0)]))
FROM = st.sampled_from([timedelta(seconds=-5), timedelta(seconds=-5), timedelta(0), timedelta(seconds=3)])
INCREASES = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 0, MOST_STOCK])
VERSIONS = st.sampled_from([None] * 8 + [0, 0, -1])
"""Relative to the one that the template has: expected, or none."""
NUMBERS = st.integers(0, 30)
SEEDS = st.integers(0, 99)
REBUILT = st.sampled_from(PROJECTIONS)
REBUILD_STEPS = st.sampled_from(["plan", "claim", "note", "chunk", "replay", "index", "batch", "catch up", "swap"])

# Of one append: what happens between its decision and its commit, or before its answer comes.
MEANWHILE = st.sampled_from(
    [
        *["nothing"] * 6,
        "killed before",
        "killed after",
        "answer lost",
        "the end comes",
        "it is ended",
        "another command",
    ]
)


class Transaction:
    """Of a caller, open. `streams`: what it holds; `moved`: from when to when it moves ends."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url)
        self.commands: list[tuple[Fields, datetime]] = []
        self.streams: set[UUID] = set()
        self.moved: list[datetime] = []


class World:
    """What all examples share: a throw-away database, its connections, its clock."""

    def __init__(self, url: str, open_until: ExitStack) -> None:
        self.settings = Settings.load(database_url=url, reconcile_grace=GRACE.total_seconds())
        self.stored = Stored(open_until.enter_context(psycopg.connect(url, autocommit=True)))
        self.database = open_until.enter_context(open_database(self.settings))
        self.clock = ManualClock(self.settings, BEGIN)
        self.seen: Counter[str] = Counter()

    def begin_anew(self) -> None:
        self.seen["examples"] += 1
        self.stored.empty()
        self.clock.set(BEGIN)

    def open_application(self) -> Application:
        """As another process would have it: it remembers nothing."""
        return Application(Runtime(self.database, COUPON_TEMPLATES, StoredEvent, PROJECTIONS))


class CouponTemplates(RuleBasedStateMachine):
    """One example: what happens to a few templates, in a database that was empty before."""

    world: ClassVar[World]

    # ── a process ────────────────────────────────────────────────────────────────────────────────

    def __init__(self) -> None:
        super().__init__()
        self.world.begin_anew()
        self.stored, self.clock, self.seen = self.world.stored, self.world.clock, self.world.seen
        self.model = Model()
        self.commands: list[Fields] = []
        self.transaction: Transaction | None = None
        self.called_over: set[UUID] = set()
        self.asked: dict[UUID, tuple[int, datetime | None]] = {}
        self.told: list[int] = []
        self.ids = 0
        self.unreadable_at: int | None = None
        self.is_skipped = False

    @initialize(forgets=st.booleans(), untils=st.lists(SECONDS_AHEAD, min_size=1, max_size=3))
    def start(self, forgets: bool, untils: list[timedelta]) -> None:
        self.broker = UnreliableBroker(forgets)
        self.start_process()
        for until in untils:
            self.execute(self.creation(until, timedelta(seconds=-5), SHOP), "nothing")

    def start_process(self) -> None:
        self.app = self.world.open_application()
        self.app.store.learn_time()
        self.parts: Parts = self.app.runtime.deadlines.parts(self.broker)
        self.follower = Subscription(self.app.store, FOLLOWER, "follower", self.tell, batch=3)

    def stop_process(self) -> None:
        """As a kill does: nothing is finished, freed or acknowledged. Of its leases alone nobody waits for the end."""
        for follower in (*self.parts.projectors, self.follower):
            follower.release()

    def tell(self, batch: Batch[Any]) -> None:
        """At least once: the handler, then the checkpoint."""
        self.hand_over(batch.envelopes)
        with self.app.database.connection() as connection:
            batch.advance(connection)

    def hand_over(self, envelopes: list[Envelope[Any]]) -> None:
        self.told += [envelope.position for envelope in envelopes]

    @property
    def now(self) -> datetime:
        return self.clock.now

    @property
    def templates(self) -> list[Template]:
        return list(self.model.templates.values())

    def free(self) -> list[Template]:
        """Those that no open transaction has under way: a command on one of these need not wait."""
        held = self.transaction.streams if self.transaction else set()
        return [template for template in self.readable() if template.template_id not in held]

    def readable(self) -> list[Template]:
        return [template for template in self.templates if template.template_id != self.model.unreadable]

    def chosen(self, number: int) -> Template:
        """Mostly one that is not over: of what is, nothing more can come."""
        free = self.free()
        lively = [template for template in free if not template.is_over(self.now)]
        among = lively if lively and number % 4 else free
        return among[number % len(among)]

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from([0.5, 1, 1, 2, 2, 30]))
    def time_passes(self, seconds: float) -> None:
        self.set_clock(self.now + timedelta(seconds=seconds))

    @precondition(lambda self: self.next_ends())
    @rule(around=st.sampled_from([-MICROSECOND, timedelta(0), MICROSECOND, GRACE - MICROSECOND, GRACE]))
    def an_end_comes(self, around: timedelta) -> None:
        self.set_clock(max(self.now, min(self.next_ends()) + around))

    def next_ends(self) -> list[datetime]:
        """Those to come, and those that were to come before they were moved: messages may still be about them."""
        happened = [each.event for template in self.templates for each in template.happened]
        return [event["valid_until"] for event in happened if event.get("valid_until", self.now) > self.now]

    def set_clock(self, now: datetime) -> None:
        self.clock.set(now)
        self.app.store.learn_time()  # as every load does: its estimate runs on by itself while this clock stands

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.commands) < 100 and len(self.model.templates) < MOST_TEMPLATES)
    @rule(until=UNTIL, begins=FROM, shop=st.sampled_from([SHOP, SHOP, 2]), meanwhile=MEANWHILE)
    def create(self, until: timedelta, begins: timedelta, shop: int, meanwhile: str) -> None:
        self.execute(self.creation(until, begins, shop), meanwhile)

    @precondition(lambda self: self.free())
    @rule(number=NUMBERS, by=INCREASES, version=VERSIONS, meanwhile=MEANWHILE)
    def increase_stock(self, number: int, by: int, version: int | None, meanwhile: str) -> None:
        self.execute(self.increase(self.chosen(number), by, version), meanwhile)

    @precondition(lambda self: self.free())
    @rule(number=NUMBERS, until=UNTIL, begins=FROM, version=VERSIONS, meanwhile=MEANWHILE)
    def change_validity(
        self, number: int, until: timedelta, begins: timedelta, version: int | None, meanwhile: str
    ) -> None:
        self.execute(self.change(self.chosen(number), until, begins, version), meanwhile)

    @precondition(lambda self: self.free())
    @rule(number=NUMBERS, by=st.sampled_from([-40, -4, -1, 1, 2, 4, 40]), meanwhile=MEANWHILE)
    def move_the_end(self, number: int, by: int, meanwhile: str) -> None:
        """By some seconds, so that messages are about that are no longer right."""
        template = self.chosen(number)
        until = template.valid_until + timedelta(seconds=by) - self.now
        self.execute(self.change(template, until, timedelta(seconds=-5), None), meanwhile)

    @precondition(lambda self: self.free())
    @rule(number=NUMBERS, version=VERSIONS, meanwhile=MEANWHILE)
    def terminate(self, number: int, version: int | None, meanwhile: str) -> None:
        self.execute(self.termination(self.chosen(number), version), meanwhile)

    @precondition(lambda self: self.repeatable())
    @rule(number=NUMBERS, same=st.sampled_from([True, True, False]), meanwhile=MEANWHILE)
    def repeat(self, number: int, same: bool, meanwhile: str) -> None:
        """Whatever came of it, and whatever was in between; or its id, for something else."""
        repeatable = self.repeatable()
        command = repeatable[number % len(repeatable)]
        self.execute(command if same else self.other(command), meanwhile, keep=False)

    def other(self, command: Fields) -> Fields:
        """Under the same id."""
        if command["type"] == "Create":
            return command | {"stock": 7}
        increase = self.increase(self.model.templates[command["template_id"]], 777, None)
        return increase | {"command_id": command["command_id"]}

    @precondition(lambda self: self.free())
    @rule(numbers=st.lists(NUMBERS, min_size=2, max_size=5), by=INCREASES, until=UNTIL)
    def execute_many(self, numbers: list[int], by: int, until: timedelta) -> None:
        """Of one stream or of several, in order, some twice."""
        commands: list[Fields] = []
        for number in numbers:
            template = self.chosen(number)
            kinds = (
                lambda template=template: self.increase(template, by, None),
                lambda template=template: self.change(template, until, timedelta(0), None),
                lambda: commands[0] if commands else self.creation(until, timedelta(0), SHOP),
                lambda: self.creation(until, timedelta(0), SHOP),
                lambda template=template: self.termination(template, None),
            )
            commands.append(kinds[number % 5 if number > 4 else 0]())
        self.commands += commands
        expected = [self.model.execute(command, self.now) for command in commands]
        answers = self.app.execute_many([as_product_takes(command) for command in commands])
        for answer, one in zip(answers, expected, strict=True):
            agree_on(answer, one)

    def repeatable(self) -> list[Fields]:
        free = {template.template_id for template in self.free()}
        return [command for command in self.commands if command["template_id"] in free]

    def execute(self, command: Fields, meanwhile: str, keep: bool = True) -> None:
        """Alone. `meanwhile`: what happens in the middle of its append, if it comes to one."""
        if keep:
            self.commands.append(command)
        interruption = Interruption(self, command, meanwhile)
        recorder = self.app.store.recorder
        try:
            with at(recorder, "append", interruption.when, interruption.happens):
                answer: object = self.app.execute(as_product_takes(command))
        except CouponClockError as error:
            answer = error
        except Killed:
            self.crash()
            answer = None
        expected = interruption.expected(self.now)
        if expected is not None:
            agree_on(answer, expected)
        came_to = expected.refusal or f"{len(expected.events)} events" if expected else "nobody knows"
        self.seen[f"{command['type']}: {came_to}"] += 1

    def creation(self, until: timedelta, begins: timedelta, shop: int) -> Fields:
        template_id = self.new_id()
        fields = {"name": f"Sale {template_id.int}", "stock": 10, "shop_number": shop}
        fields |= {"valid_from": self.now + begins, "valid_until": self.now + until}
        return {"type": "Create", "command_id": self.new_id(), "template_id": template_id, **fields}

    def increase(self, template: Template, by: int, version: int | None) -> Fields:
        return self.command("Increase", template, version) | {"by": by}

    def change(self, template: Template, until: timedelta, begins: timedelta, version: int | None) -> Fields:
        window = {"valid_from": self.now + begins, "valid_until": self.now + until}
        return self.command("Change", template, version) | window

    def termination(self, template: Template, version: int | None) -> Fields:
        return self.command("Terminate", template, version)

    def command(self, kind: str, template: Template, version: int | None) -> Fields:
        addressed = {"template_id": template.template_id, "shop_number": template.created["shop_number"]}
        expected = None if version is None else template.version + version
        return {"type": kind, "command_id": self.new_id(), **addressed, "expected_version": expected}

    def new_id(self) -> UUID:
        self.ids += 1
        return UUID(int=self.ids)

    # ── in a caller's transaction ────────────────────────────────────────────────────────────────

    @rule(
        number=NUMBERS, kind=st.sampled_from(["create", "increase", "move", "move", "terminate"]), until=SECONDS_AHEAD
    )
    def execute_in_transaction(self, number: int, kind: str, until: timedelta) -> None:
        """In the one that is open, or a new one. On what it sees: all that is committed, and its own."""
        if self.transaction is None:
            self.transaction = Transaction(self.world.settings.database())
        seen = self.in_transaction()
        templates = [each for key, each in seen.templates.items() if key != seen.unreadable]
        if kind == "create" or not templates:
            command = self.creation(until, timedelta(0), SHOP)
        else:
            template = templates[number % len(templates)]
            kinds = {
                "increase": lambda: self.increase(template, 3, None),
                "move": lambda: self.change(template, until, timedelta(0), None),
                "terminate": lambda: self.termination(template, None),
            }
            command = kinds[kind]()
        before = seen.templates[command["template_id"]].valid_until if kind == "move" and templates else None
        expected = seen.execute(command, self.now)
        try:
            answer: object = self.app.execute(as_product_takes(command), connection=self.transaction.connection)
        except CouponClockError as error:
            answer = error
        agree_on(answer, expected)
        self.transaction.commands.append((command, self.now))
        if expected.events:
            self.transaction.streams.add(command["template_id"])
            if before not in (None, command.get("valid_until")):
                self.transaction.moved += [before, command["valid_until"]]

    def in_transaction(self) -> Model:
        assert self.transaction is not None
        model = self.model.copy()
        for command, decided_at in self.transaction.commands:
            model.execute(command, decided_at)
        return model

    @precondition(lambda self: self.transaction is not None)
    @rule(how=st.sampled_from(["commit", "commit", "commit", "rollback", "abandon"]))
    def finish_transaction(self, how: str) -> None:
        assert self.transaction is not None
        if how == "commit":
            self.commit(self.transaction)
        if how == "rollback":
            self.transaction.connection.rollback()
        self.transaction.connection.close()
        self.transaction = None
        # What was abandoned is over once its server process has noticed.
        eventually(lambda: not self.app.store.recorder.writers())

    def commit(self, transaction: Transaction) -> None:
        """Refused where it moves an end that has come meanwhile, or would move one to what is over."""
        committed = self.in_transaction()
        refused = any(moved <= self.now for moved in transaction.moved)
        try:
            transaction.connection.commit()
        except SerializationFailure:
            assert refused, "P4: a commit was refused for no reason"
            self.seen["commits refused"] += 1
        else:
            assert not refused, "P0: an end was moved that had come"
            self.model = committed
            self.seen["commits"] += 1
        self.commands += [command for command, _ in transaction.commands]

    # ── loops ────────────────────────────────────────────────────────────────────────────────────

    @rule(dies=st.sampled_from([None] * 15 + [("alarms", "after"), ("broker", "before"), ("broker", "after")]))
    def relay(self, dies: tuple[str, When] | None) -> None:
        claim = "lease" if self.broker.forgets else "claim"
        points = {"alarms": (self.app.runtime.deadlines.alarms, claim), "broker": (self.broker, "publish")}
        self.run(self.parts.relay.run_once, points, dies)

    @rule(
        dies=st.sampled_from(
            [None] * 20
            + [("broker", "after"), ("log", "before"), ("log", "after"), ("done", "before"), ("done", "after")]
        )
    )
    def consume(self, dies: tuple[str, When] | None) -> None:
        consumer = self.parts.consumer
        points = {
            "broker": (self.broker, "receive"),
            "log": (self.app.store.recorder, "end_due"),
            "done": (self.broker, "acknowledge"),
        }

        def all_steps() -> None:
            consumer.act(0.0)
            consumer.run_once()

        self.run(all_steps, points, dies)

    @rule(messages=st.booleans(), followers=st.booleans())
    def run_loops(self, messages: bool, followers: bool) -> None:
        """Several, undisturbed."""
        if messages:
            self.relay(None)
            self.consume(None)
        if followers:
            for follower in (*self.parts.projectors, self.follower):
                self.run(follower.run_once, {}, None)

    @rule(dies=st.sampled_from([None] * 10 + [("log", "before"), ("log", "after")]))
    def reconcile(self, dies: tuple[str, When] | None) -> None:
        """P3: what was due for longer than the grace is ended then, whatever became of its message."""
        if self.run(self.parts.reconciler.run_once, {"log": (self.app.store.recorder, "end_due")}, dies):
            self.agree_with_log()
            late = [
                each.template_id for each in self.free() if each.end is None and each.valid_until + GRACE <= self.now
            ]
            assert not late, f"P3: {late} not ended"

    @rule(number=st.integers(0, 1), dies=st.sampled_from([None] * 10 + [("rows", "before"), ("rows", "after")]))
    def project(self, number: int, dies: tuple[str, When] | None) -> None:
        self.run(self.parts.projectors[number].run_once, {"rows": (projector, "save")}, dies)

    @rule(dies=st.sampled_from([None] * 6 + [("handler", "after")]))
    def follow(self, dies: tuple[str, When] | None) -> None:
        self.run(self.follower.run_once, {"handler": (self, "hand_over")}, dies)

    def run(
        self, step: Callable[[], object], points: dict[str, tuple[Any, str]], dies: tuple[str, When] | None
    ) -> bool:
        """Returns whether it came to its end."""
        try:
            with dying(points, dies):
                step()
        except BrokerUnavailable:
            pass
        except UnreadableEvent:
            assert self.unreadable_at is not None, "P8: all events can be read"
            return False
        except CheckpointLost:  # a rebuild came between: the next time it goes on from there
            return False
        except Killed:
            self.crash()
            return False
        return True

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    @rule(trouble=st.sampled_from(["lost", "repeated", "reordered", "strange", "down", "half", "none"]), seed=SEEDS)
    def trouble_with_messages(self, trouble: str, seed: int) -> None:
        """Some are lost, come again, or are of a template that is not there; the rest is so until it is otherwise."""
        match trouble:
            case "lost":
                self.broker.lose()
            case "repeated":
                self.broker.repeat(seed)
            case "reordered":
                self.broker.reorder(seed)
            case "strange":
                self.broker.add_strange(ExpiryDue(UUID(int=seed << 100), self.now + timedelta(seconds=seed - 50)))
            case _:
                self.broker.is_down, self.broker.takes_half = trouble == "down", trouble == "half"

    # ── an operator ──────────────────────────────────────────────────────────────────────────────

    @rule()
    def crash(self) -> None:
        """Nothing is finished, freed or acknowledged, and another process goes on."""
        self.seen["crashes"] += 1
        self.stop_process()
        self.broker.after_crash()
        self.start_process()

    @precondition(lambda self: self.unreadable_at is None and self.free())
    @rule(number=NUMBERS)
    def another_writer_spoils_a_stream(self, number: int) -> None:
        """P8: with an event that nobody can read. All other templates go on."""
        template = self.chosen(number)
        self.unreadable_at = self.stored.add_unreadable(template.template_id, template.version + 1)
        self.model.unreadable = template.template_id
        self.seen["streams spoilt"] += 1

    @precondition(lambda self: self.unreadable_at is not None and not self.is_skipped)
    @rule()
    def skip(self) -> None:
        """A follower must stop there, and a projection must not."""
        assert self.unreadable_at is not None
        if FOLLOWER in self.stored.checkpoints():
            self.app.maintenance.skip_event(FOLLOWER, self.unreadable_at, "an operator", "nobody can read it")
            self.is_skipped = True

    @precondition(lambda self: self.transaction is None and self.unreadable_at is None)
    @rule(what=st.sampled_from(["rearm", "rearm", "repair alarms", "verify"]))
    def maintain(self, what: str) -> None:
        """None of it finds anything to correct: the product's own checks raise no false alarm."""
        maintenance = self.app.maintenance
        match what:
            case "rearm":
                maintenance.rearm()
            case "repair alarms":
                assert maintenance.repair_alarms() == 0, "P7: an alarm was wrong"
            case _:
                assert list(maintenance.verify()) == []
                assert not maintenance.verify_promise().violations

    @precondition(lambda self: self.transaction is None and self.templates)
    @rule(projection=REBUILT, resume=st.booleans(), dies=st.none() | REBUILD_STEPS)
    def rebuild(self, projection: Any, resume: bool, dies: str | None) -> None:
        """It would wait for a transaction that is open."""
        options = RebuildOptions(resume=resume, events_a_chunk=3, jobs=1)
        try:
            rebuild(self.app.store, projection, options, after_step=lambda step: step == dies and killed())
            self.seen["rebuilds"] += 1
        except Killed:
            self.crash()

    # ── P0 to P8 ─────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def promises_hold(self) -> None:
        self.seen["steps"] += 1
        log = self.agree_with_log()
        self.nothing_over_is_usable()
        self.followers_have_everything({happened.position for _, _, happened in log} - {self.unreadable_at})
        self.rows_equal_the_fold()
        self.alarms_equal_the_fold()

    def agree_with_log(self) -> list[LogEntry]:
        """P1, P2, P4, P5."""
        log = self.stored.log()
        self.model.agree(log, self.now)
        return log

    def nothing_over_is_usable(self) -> None:
        """P0."""
        for template in self.readable():
            version, asked_at = self.asked.get(template.template_id, (0, None))
            if (version, asked_at) == (template.version, self.now):
                continue
            self.asked[template.template_id] = template.version, self.now
            begins, until = template.window
            if version != template.version:
                for moment in (begins - MICROSECOND, begins, until - MICROSECOND, until):
                    self.agree_on_use(template, moment)
            usable = self.agree_on_use(template, None)
            assert not (usable and template.template_id in self.called_over), f"P0: {template} came back to life"
            if template.is_over(self.now):
                self.called_over.add(template.template_id)

    def agree_on_use(self, template: Template, moment: datetime | None) -> bool:
        usable = self.app.is_usable(template.created["shop_number"], template.template_id, at=moment)
        assert usable == template.is_usable(moment or self.now), f"P0: {template}, usable at {moment}: {usable}"
        return usable

    def followers_have_everything(self, positions: set[int]) -> None:
        """P6."""
        reached = self.stored.checkpoints().get(FOLLOWER, 0)
        first_told = list(dict.fromkeys(self.told))
        assert first_told == sorted(first_told), f"P6: told in another order: {first_told}"
        missed = {each for each in positions if each <= reached} - set(first_told)
        assert not missed, f"P6: a follower at {reached} has missed {missed}"
        if self.unreadable_at is not None and not self.is_skipped:
            assert reached < self.unreadable_at, f"P6: a follower passed {self.unreadable_at}, which it could not read"

    def rows_equal_the_fold(self) -> None:
        """P7."""
        reached = self.stored.checkpoints()
        for name, found, expected in (
            ("coupon_template", self.stored.rows(), self.model.rows(reached["coupon_template"])),
            ("shop_month", self.stored.months(), self.model.months(reached["shop_month"])),
        ):
            assert found == expected, f"P7: {name} has {found}, not {expected}"
        self.agree_on_quarantine(reached)

    def agree_on_quarantine(self, reached: dict[str, int]) -> None:
        """P8: the one stream, of those that have come to it. What an interrupted rebuild found is nobody's yet."""
        came_to_it = {
            (name, self.model.unreadable)
            for name in ("coupon_template", "shop_month")
            if self.unreadable_at is not None and self.unreadable_at <= reached[name]
        }
        found = {each for each in self.stored.quarantine() if not each[0].endswith("_shadow")}
        assert found == came_to_it, f"P8: in quarantine is {found}, not {came_to_it}"

    def alarms_equal_the_fold(self) -> None:
        """P7: each is due at the end, and carries what the end leads to."""
        alarms = self.stored.alarms()
        found = {stream_id: due_at for stream_id, (due_at, _, _) in alarms.items()}
        assert found == self.model.alarms(), f"P7: the alarms are {found}, not {self.model.alarms()}"
        for stream_id, (due_at, version, ending) in alarms.items():
            template = self.model.templates[stream_id]
            shop = template.created["shop_number"]
            expected = {"type": "Ended", "shop_number": shop, "reason": "expired", "ended_at": due_at}
            assert (version, ending) == (template.version, expected), f"P7: {stream_id} carries {version}, {ending}"

    # ── at last ──────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        if not hasattr(self, "app"):
            return
        try:
            self.run_out()
        finally:
            if self.transaction is not None:
                self.transaction.connection.close()
            self.stop_process()

    def run_out(self) -> None:
        """P3, P6, P7, P8: all is over in the end, followed and shown."""
        if self.transaction is not None:
            self.finish_transaction("abandon")
        self.crash()
        self.set_clock(max([self.now, *(template.valid_until for template in self.templates)]) + GRACE)
        self.reconcile(None)
        for template in self.readable():
            assert template.end, f"P3: {template} not ended"
            self.seen[f"{template.end['reason']} by {template.happened[-1].cause}"] += 1
        for each in self.parts.projectors:
            self.run_to_the_end(each.run_once)
        if self.unreadable_at is not None and not self.is_skipped:
            self.run_to_the_end(self.follower.run_once)  # so far, and its checkpoint is there
            self.skip()
        self.run_to_the_end(self.follower.run_once)
        self.promises_hold()
        positions = {happened.position for _, _, happened in self.stored.log()} - {self.unreadable_at}
        assert set(self.told) == positions, "P6: not all was told"
        assert len(self.stored.rows()) == len(self.templates), "P7: not all rows are there"

    def run_to_the_end(self, step: Callable[[], object]) -> None:
        try:
            while step():
                pass
        except UnreadableEvent:
            assert self.unreadable_at is not None


# ── what the rules use ───────────────────────────────────────────────────────────────────────────────


class Interruption:
    """Of a command's append. `happens`, and then `expected` says what the command must have come to."""

    def __init__(self, machine: CouponTemplates, command: Fields, meanwhile: str) -> None:
        self.when: When = "after" if meanwhile in ("killed after", "answer lost") else "before"
        self._machine = machine
        self._command = command
        self._meanwhile = meanwhile
        self._answered: Answer | None = None
        self._lost = False

    def happens(self) -> None:
        machine = self._machine
        machine.seen[f"in an append: {self._meanwhile}"] += 1
        template = machine.model.templates.get(self._command["template_id"])
        if self._meanwhile == "killed before":
            self._lost = True
            killed()
        if self._meanwhile == "killed after":
            self._answered = machine.model.execute(self._command, machine.now)
            self._lost = True
            killed()
        if self._meanwhile == "answer lost":
            machine.model.execute(self._command, machine.now)
            self._answered = Answer(refusal="OutcomeUnknown")
            raise AnswerLost("cut off")
        if template is None or template.end is not None:
            return
        if self._meanwhile in ("the end comes", "it is ended"):
            machine.set_clock(max(machine.now, template.valid_until))
        if self._meanwhile == "it is ended":
            machine.app.runtime.deadlines.handle_due([], "reconciler")
            machine.agree_with_log()
        if self._meanwhile == "another command":
            other = machine.increase(template, 2, None)
            machine.commands.append(other)
            (answer,) = machine.app.execute_many([as_product_takes(other)])
            agree_on(answer, machine.model.execute(other, machine.now))

    def expected(self, now: datetime) -> Answer | None:
        """None where nobody is left to be answered."""
        if self._lost:
            return None
        return self._answered or self._machine.model.execute(self._command, now)


@contextmanager
def dying(points: dict[str, tuple[Any, str]], dies: tuple[str, When] | None) -> Iterator[None]:
    if dies is None:
        yield
        return
    point, when = dies
    with at(*points[point], when, killed):
        yield


def as_product_takes(command: Fields) -> Any:
    fields = {key: value for key, value in command.items() if key not in ("type", "template_id")}
    template_id = command["template_id"]
    match command["type"]:
        case "Create":
            return a_template(template_id=template_id, **fields)
        case "Increase":
            return increase(template_id, **fields)
        case "Change":
            return change(template_id, fields.pop("valid_until"), **fields)
        case _:
            return terminate(template_id, **fields)


def agree_on(answer: object, expected: Answer) -> None:
    """What a command came to."""
    if isinstance(answer, Outcome):
        found = Answer(None, answer.version, [{"type": type(event).__name__} for event in answer.events])
    else:
        found = Answer(refusal=type(answer).__name__)
    kinds = Answer(expected.refusal, expected.version, [{"type": event["type"]} for event in expected.events])
    if found.refusal == "Overtaken":
        found.refusal = "CommandConflict"
    assert found == kinds, f"P5: a command came to {answer}, not {expected}"
