"""Proves P0 to P8 of a run, from what is in PostgreSQL and what the run noted: python checker.py URL FOLDER

It shares no code with the product: plain SQL, and a fold of its own over the stored JSON. Which lateness is a fault's
is read from the notes of what was done when.
"""

import json
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

CREATED, INCREASED, CHANGED, ENDED = (
    f"CouponTemplate.{name}" for name in ("Created", "StockIncreased", "ValidityChanged", "Ended")
)

IN_TIME_S = 0.1
"""So late is not looked into."""
LATEST_S = 2.0
"""P3: grace and interval of the reconciler."""
BACKLOG_S = 1.0
"""P3: what waits at once, and a machine that tests, servers and faults share."""
SILENT_S = 20.0
"""P3: of a connection that goes silent."""
RECONNECT_S = 6.0
"""From PostgreSQL's return until every process has found it: the longest pause of a pool, and some."""
BEGIN_S = 4.0
"""From the start of a process until its loops run."""
VISIBLE_S = 1.0
"""From the time that a commit has until all see it, on a busy machine; what was seen to take longer is added."""
SLOW_COMMIT_S = 0.5
"""P3: while any commit takes longer, endings do too."""
STEP_S = 0.5
"""Around a step of the clock, nothing is known of what time it was elsewhere."""

EVENTS = """
SELECT originator_id::text, originator_version, topic, state, notification_id, recorded_at, command_id::text, cause,
       pg_xact_commit_timestamp(xmin) AS committed_at
  FROM {schema}.event
 ORDER BY originator_id, originator_version
"""


class StoredEvent(NamedTuple):
    stream: str
    version: int
    topic: str
    state: dict[str, Any]
    position: int
    recorded_at: datetime
    command_id: str | None
    cause: str
    committed_at: datetime


class Ended(NamedTuple):
    reason: str
    at: datetime
    event: StoredEvent


@dataclass
class Template:
    """The fold of one stream. `ends`: each end that it has had, and the event that set it."""

    fields: dict[str, Any]
    valid_from: datetime
    stock: int
    ends: list[tuple[datetime, StoredEvent]]
    last: StoredEvent
    ended: Ended | None = None

    @property
    def valid_until(self) -> datetime:
        return self.ends[-1][0]


@dataclass
class Log:
    """One schema: its events by stream and by command, and the fold."""

    schema: str
    events: dict[str, list[StoredEvent]]
    templates: dict[str, Template] = field(default_factory=dict)
    by_command: dict[str, list[StoredEvent]] = field(default_factory=dict)


class Window(NamedTuple):
    """In which lateness is a fault's, in seconds of the host."""

    began: float
    ended: float


class Notes:
    """What all processes noted, by what it is."""

    def __init__(self, folder: Path) -> None:
        self._by_log: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for file in sorted(folder.glob("*.jsonl")):
            for line in file.read_text().splitlines():
                note = json.loads(line)
                self._by_log[file.name[0], note["what"]].append(note)

    def of(self, what: str, log: str = "") -> list[dict[str, Any]]:
        """Of the processes of one log, or of all."""
        kinds = [kind for kind in self._by_log if kind[1] == what and kind[0].startswith(log)]
        return [note for kind in kinds for note in self._by_log[kind]]


class Result(NamedTuple):
    """`violations`: by invariant, in words. `figures`: what was seen."""

    violations: list[str]
    figures: dict[str, Any]


# ── the run as a whole ───────────────────────────────────────────────────────────────────────────────


def check(url: str, folder: Path, schemas: dict[str, str]) -> Result:
    """`schemas`: by the letter with which the names of their processes begin."""
    notes, violations = Notes(folder), []
    figures: dict[str, Any] = dict(counted(notes))
    with psycopg.connect(url, autocommit=True) as connection:
        clock = Clock.read(connection)
        commits = Commits(slow_commits(notes))
        for letter, schema in schemas.items():
            log = read(connection, schema)
            faults = FaultTimes(notes, letter, clock)
            found = [
                *streams_are_whole(log),
                *readers_were_told_the_truth(log, notes, letter, clock, commits, figures),
                *ends_are_right(log),
                *lateness_is_bounded(log, faults, figures),
                *answers_hold(log, notes, letter, figures),
                *callers_rows_went_along(connection, log, notes, letter),
                *followers_are_complete(connection, log, figures),
                *alarms_are_the_fold(connection, log),
                *rows_are_the_fold(connection, log),
                *months_are_the_fold(connection, log),
            ]
            violations += [f"{letter}: {each}" for each in found]
            count(figures, "messages rejected", number_of(connection, schema, "rejected_message"))
            count(figures, f"templates of {letter}", len(log.templates))
            count(figures, f"events of {letter}", sum(map(len, log.events.values())))
    violations += [f"run: P8: {note['by']}: {note['error']}" for note in notes.of("unexpected")]
    return Result(violations, figures)


def counted(notes: Notes) -> Iterator[tuple[str, int]]:
    for kind, number in sorted(Counter(note["kind"] for note in notes.of("fault")).items()):
        yield f"fault: {kind}", number
    for what in "asked", "acknowledged", "refused", "unavailable", "unknown", "rolled back", "saw", "snapshot":
        yield f"notes: {what}", len(notes.of(what))


def count(figures: dict[str, Any], name: str, number: int) -> None:
    figures[name] = figures.get(name, 0) + number


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────


def read(connection: psycopg.Connection[Any], schema: str) -> Log:
    log = Log(schema, defaultdict(list))
    for row in connection.execute(in_schema(EVENTS, schema)):
        event = StoredEvent(*row)._replace(state=json.loads(row[3]))
        log.events[event.stream].append(event)
        if event.command_id is not None and event.cause == "command":
            log.by_command.setdefault(event.command_id, []).append(event)
    log.templates = {stream: fold(events) for stream, events in log.events.items()}
    return log


def in_schema(statement: str, schema: str) -> sql.Composed:
    return sql.SQL(statement).format(schema=sql.Identifier(schema))


def number_of(connection: psycopg.Connection[Any], schema: str, table: str) -> int:
    statement = sql.SQL("SELECT count(*) FROM {}.{}").format(sql.Identifier(schema), sql.Identifier(table))
    return int(connection.execute(statement).fetchall()[0][0])


def fold(events: Sequence[StoredEvent]) -> Template:
    first, *rest = events
    template = Template(
        first.state, instant(first.state["valid_from"]), first.state["stock"],
        [(instant(first.state["valid_until"]), first)], first,
    )  # fmt: skip
    for event in rest:
        if event.topic == INCREASED:
            template.stock += event.state["by"]
        elif event.topic == CHANGED:
            template.valid_from = instant(event.state["valid_from"])
            template.ends.append((instant(event.state["valid_until"]), event))
        elif event.topic == ENDED:
            template.ended = Ended(event.state["reason"], instant(event.state["ended_at"]), event)
        template.last = event
    return template


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


class Commits:
    """When each event was committed, and from when on surely all saw it: commits that took long were noted."""

    def __init__(self, slow: Iterable[Window]) -> None:
        self._slow = merged(slow)

    def seen_by_all(self, event: "StoredEvent") -> float:
        at = committed(event) + VISIBLE_S
        for window in self._slow:
            if window.began - VISIBLE_S <= at and committed(event) <= window.ended:
                at = max(at, window.ended + VISIBLE_S)
        return at


class Clock:
    """What PostgreSQL's time was when the host's was that, by the steps that were made."""

    def __init__(self, steps: Sequence[tuple[float, float]]) -> None:
        self._at = [at for at, _ in steps]
        self._ahead = [0.0]
        for _, by in steps:
            self._ahead.append(self._ahead[-1] + by)

    @classmethod
    def read(cls, connection: psycopg.Connection[Any]) -> "Clock":
        steps = connection.execute("SELECT extract(epoch FROM at)::float8, by_seconds FROM chaos.step ORDER BY at")
        return cls(steps.fetchall())

    @property
    def ahead(self) -> float:
        """In the end."""
        return self._ahead[-1]

    def postgresql(self, host: float) -> float:
        return host + self._ahead[bisect_right(self._at, host)]

    def stepped_over(self, began: float, ended: float) -> float:
        """What of PostgreSQL's time between these never was."""
        steps = zip(self._at, self._ahead, self._ahead[1:], strict=False)
        return sum(max(0.0, min(ended, at + after) - max(began, at + before)) for at, before, after in steps)

    def is_stepping(self, began: float, ended: float) -> bool:
        return any(began - STEP_S <= at <= ended + STEP_S for at in self._at)


# ── P1, P2: streams ──────────────────────────────────────────────────────────────────────────────────


def streams_are_whole(log: Log) -> Iterator[str]:
    for stream, events in log.events.items():
        if [event.version for event in events] != list(range(1, len(events) + 1)):
            yield f"P1: the versions of {stream} have a gap"
        if events[0].topic != CREATED or any(event.topic == CREATED for event in events[1:]):
            yield f"P1: {stream} was not created once, and first"
        ends = [event for event in events if event.topic == ENDED]
        if len(ends) > 1:
            yield f"P1: {stream} ended {len(ends)} times"
        if ends and ends[0] is not events[-1]:
            yield f"P1: {stream} has events after its Ended"
        positions = [event.position for event in events]
        if positions != sorted(set(positions)):
            yield f"P6: the positions of {stream} do not grow"


def ends_are_right(log: Log) -> Iterator[str]:
    for stream, template in log.templates.items():
        if template.ended is None:
            continue
        reason, at, event = template.ended
        if reason == "expired" and event.recorded_at < template.valid_until:
            yield f"P2: {stream} ended at {event.recorded_at}, before its end {template.valid_until}"
        if reason == "expired" and at != template.valid_until:
            yield f"P2: {stream} says that it ended at {at}, and its end is {template.valid_until}"
        if reason == "terminated" and (at > event.recorded_at or at >= template.valid_until):
            yield f"P2: {stream} was terminated at {at}, which is not before its end and its record"
        if event.cause != "command" and reason != "expired":
            yield f"P2: {stream} was {reason} by a {event.cause}"


# ── P0: readers ──────────────────────────────────────────────────────────────────────────────────────


def readers_were_told_the_truth(
    log: Log, notes: Notes, letter: str, clock: Clock, commits: Commits, figures: dict[str, Any]
) -> Iterator[str]:
    yield from moves_came_in_time(log, clock)
    by_template: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for note in notes.of("saw", letter):
        by_template[note["template"]].append(note)
    for stream, seen in by_template.items():
        if (template := log.templates.get(stream)) is None:
            yield f"P0: {stream} was seen, and is not in the log"
            continue
        over_since = None
        for note in sorted(seen, key=lambda note: note["began"]):
            if clock.is_stepping(note["began"], note["at"]):
                continue
            yield from answer_was_right(template, note, clock, commits)
            if not note["usable"]:
                over_since = min(over_since or note["at"], note["at"])
            elif over_since is not None and note["began"] > over_since:
                if came_to_life_by_a_long_commit(template, over_since, note["at"], clock, commits):
                    count(figures, "came back to life by a commit longer than 20 ms", 1)
                else:
                    later = note["began"] - over_since
                    yield f"P0: {stream} was over for a reader, and usable for another {later:.6f} s later"
                over_since = None


def answer_was_right(template: Template, note: dict[str, Any], clock: Clock, commits: Commits) -> Iterator[str]:
    """Judged by the ends that it may have had from the question to the answer."""
    began, ended = clock.postgresql(note["began"]), clock.postgresql(note["at"])
    ends = [end.timestamp() for end in possible_ends(template, note["began"], note["at"], commits)]
    over = template.ended is not None and commits.seen_by_all(template.ended.event) < note["began"]
    if note["usable"] and (over or began >= max(ends)):
        yield f"P0: {template.last.stream} was called usable {began - max(ends):.6f} s after its end"
    never_ended = template.ended is None or committed(template.ended.event) > note["at"] + VISIBLE_S
    if not note["usable"] and never_ended and ended < min(ends):
        yield f"P0: {template.last.stream} was called over {min(ends) - ended:.6f} s before its end"


def possible_ends(template: Template, began: float, ended: float, commits: Commits) -> list[datetime]:
    """Each that was not surely replaced before, nor surely set after."""
    ends = []
    for (end, event), (_, following) in zip(template.ends, [*template.ends[1:], (None, None)], strict=True):
        replaced = following is not None and commits.seen_by_all(following) < began
        if not replaced and committed(event) <= ended + VISIBLE_S:
            ends.append(end)
    return ends


def committed(event: StoredEvent) -> float:
    return event.committed_at.timestamp()


def moves_came_in_time(log: Log, clock: Clock) -> Iterator[str]:
    """A change of validity commits before the end that it moves, and before the one that it sets."""
    for stream, template in log.templates.items():
        for (before, _), (after, event) in zip(template.ends, template.ends[1:], strict=False):
            at = committed(event)
            if clock.postgresql(at) >= min(before, after).timestamp() and not clock.is_stepping(at, at):
                late = clock.postgresql(at) - min(before, after).timestamp()
                yield f"P0: the end of {stream} was moved {late:.6f} s after it came (version {event.version})"


def came_to_life_by_a_long_commit(
    template: Template, over_at: float, usable_at: float, clock: Clock, commits: Commits
) -> bool:
    """Its commit began in time, and others saw it late: the promise is for commits that take less."""
    return any(
        committed(event) <= over_at <= commits.seen_by_all(event)
        and clock.postgresql(committed(event)) < end.timestamp()
        and clock.postgresql(usable_at) >= end.timestamp()
        for (end, _), (_, event) in zip(template.ends, template.ends[1:], strict=False)
    )


# ── P3: lateness ─────────────────────────────────────────────────────────────────────────────────────


class FaultTimes:
    """When lateness is not the product's: what the broker or one process suffers is no excuse."""

    def __init__(self, notes: Notes, letter: str, clock: Clock) -> None:
        self._clock = clock
        windows = [window for note in notes.of("fault") if (window := of_fault(note, letter))]
        windows += all_down(notes, letter)
        windows += [Window(note["began"], note["at"]) for note in notes.of("machine stood still")]
        windows += [w for w in slow_commits(notes) if w.ended - w.began > SLOW_COMMIT_S]
        self._windows = merged(windows)
        self._locks = lock_windows(notes, letter)

    def lateness(self, template: Template, recorded_at: datetime) -> tuple[float, float]:
        """In seconds: as it was, and less the faults' times in it. It begins with the commit that set the end, if that
        came first."""
        (valid_until, setting), stream = template.ends[-1], template.last.stream
        began = max(valid_until.timestamp(), self._clock.postgresql(committed(setting)))
        ended = recorded_at.timestamp()
        if ended - began < IN_TIME_S:
            return ended - began, ended - began
        windows = merged([*self._around(began, ended), *self._locks.get(stream, ())])
        excused = sum(
            max(0.0, min(ended, self._clock.postgresql(w.ended)) - max(began, self._clock.postgresql(w.began)))
            for w in windows
        )
        return ended - began, ended - began - excused - self._clock.stepped_over(began, ended)

    def _around(self, began: float, ended: float) -> list[Window]:
        """Those that may meet it; the host's time is never ahead of PostgreSQL's."""
        first = bisect_left(self._windows, began - self._clock.ahead, key=lambda window: window.ended)
        return self._windows[first : bisect_right(self._windows, ended, key=lambda window: window.began)]


def of_fault(note: dict[str, Any], letter: str) -> Window | None:
    began, ended = note["began"], note["ended"]
    match note["kind"]:
        case "kill PostgreSQL" | "promote the standby":
            return Window(began, ended + RECONNECT_S)
        case "freeze connections" if note["target"].startswith(letter):
            return Window(began, began + SILENT_S)
    return None


def slow_commits(notes: Notes) -> list[Window]:
    return [Window(note["began"], note["at"]) for note in notes.of("slow commit")]


def all_down(notes: Notes, letter: str) -> list[Window]:
    """While no process of that log runs."""
    changes = [note for note in notes.of("process") if note["name"].startswith(letter)]
    down: dict[str, bool] = {note["name"]: True for note in changes}
    began: float | None = min((note["time"] for note in changes), default=0.0)
    windows = []
    for note in sorted(changes, key=lambda note: note["time"]):
        down[note["name"]] = note["event"] == "ended"
        if all(down.values()):
            began = note["time"] if began is None else began
        elif began is not None:
            windows.append(Window(began, note["time"] + BEGIN_S))
            began = None
    return windows if began is None else [*windows, Window(began, float("inf"))]


def lock_windows(notes: Notes, letter: str) -> dict[str, list[Window]]:
    """Of each template that a caller's transaction held. One that died let go at once; one frozen, when it was cut."""
    released = {note["number"]: note["at"] for note in notes.of("unlocks", letter)}
    ends = sorted(n["time"] for n in notes.of("process") if n["name"].startswith(letter) and n["event"] == "ended")
    windows: dict[str, list[Window]] = defaultdict(list)
    for note in notes.of("locks", letter):
        died = next((at for at in ends if at > note["at"]), note["at"])
        ended = released.get(note["number"], max(died, note["at"] + SILENT_S))
        for template in note["templates"]:
            windows[template].append(Window(note["at"], ended))
    return windows


def merged(windows: Iterable[Window]) -> list[Window]:
    """Without overlaps."""
    result: list[Window] = []
    for window in sorted(windows):
        if result and window.began <= result[-1].ended:
            result[-1] = Window(result[-1].began, max(result[-1].ended, window.ended))
        else:
            result.append(window)
    return result


def lateness_is_bounded(log: Log, faults: FaultTimes, figures: dict[str, Any]) -> Iterator[str]:
    all_late, undisturbed = figures.setdefault("lateness", []), figures.setdefault("lateness less faults", [])
    for stream, template in log.templates.items():
        if template.ended is None or template.ended.reason != "expired":
            continue
        recorded_at = template.ended.event.recorded_at
        late, own = faults.lateness(template, recorded_at)
        all_late.append(late)
        undisturbed.append(max(0.0, own))
        if own > LATEST_S + BACKLOG_S:
            yield f"P3: {stream} ended {late:.3f} s late, at {recorded_at}, {own:.3f} s of it without a fault"


# ── P4, P5: answers ──────────────────────────────────────────────────────────────────────────────────

ALWAYS_MAY_BE = {"Overtaken"}
REFUSALS = {
    "CreateCouponTemplate": {"InvalidCommand"},
    "IncreaseStock": {"CouponTemplateOver"},
    "ChangeValidity": {"CouponTemplateOver", "InvalidCommand"},
    "TerminateCouponTemplate": set(),
}
"""What comes too late; nothing else is wrong, unless it is meant to be."""
NOTHING_CHANGED = "refused", "unavailable", "rolled back"
MAY_HAVE_CHANGED = "acknowledged", "unknown"


def answers_hold(log: Log, notes: Notes, letter: str, figures: dict[str, Any]) -> Iterator[str]:
    asked = {note["command"]: note for note in notes.of("asked", letter)}
    yield from effects_were_asked_for(log, asked)
    outcomes: dict[str, tuple[int, int]] = {}
    for note in notes.of("acknowledged", letter):
        yield from acknowledgement_holds(log, note)
        outcome = note["version"], note["position"]
        if note["events"] and outcomes.setdefault(note["command"], outcome) != outcome:
            yield f"P5: command {note['command']} was answered {outcomes[note['command']]} and then {outcome}"
    for note in notes.of("refused", letter):
        asking = asked[note["command"]]
        may_be = {"InvalidCommand"} if asking["wrong"] else REFUSALS[asking["kind"]] | ALWAYS_MAY_BE
        if note["error"] not in may_be:
            yield f"P8: a {asking['kind']} was refused with {note['error']}"
    yield from what_failed_changed_nothing(log, notes, letter, figures)


def effects_were_asked_for(log: Log, asked: dict[str, dict[str, Any]]) -> Iterator[str]:
    for command, events in log.by_command.items():
        if len(events) > 1:
            yield f"P5: command {command} had {len(events)} effects"
        if command not in asked:
            yield f"P5: command {command} is in the log, and nobody asked for it"
        elif asked[command]["wrong"]:
            yield f"P8: command {command} is wrong, and is in the log"


def what_failed_changed_nothing(log: Log, notes: Notes, letter: str, figures: dict[str, Any]) -> Iterator[str]:
    """Where each time that it was asked for was answered, and each time with a failure."""
    answers: dict[str, list[str]] = defaultdict(list)
    for what in (*NOTHING_CHANGED, *MAY_HAVE_CHANGED):
        for note in notes.of(what, letter):
            answers[note["command"]].append(what)
    for command, times in Counter(note["command"] for note in notes.of("asked", letter)).items():
        if len(answers[command]) < times:
            count(figures, "commands that lost an answer by kill -9", 1)
        elif command in log.by_command and not set(answers[command]) & set(MAY_HAVE_CHANGED):
            yield f"P4: command {command} was {answers[command][-1]}, and is in the log"


def acknowledgement_holds(log: Log, note: dict[str, Any]) -> Iterator[str]:
    events = log.events.get(note["template"], [])
    if len(events) < note["version"]:
        place = f"version {note['version']} of {note['template']}"
        yield f"P4: command {note['command']} was acknowledged as {place}, and is not there"
        return
    event = events[note["version"] - 1]
    if event.position != note["position"]:
        yield f"P4: command {note['command']} was acknowledged at {note['position']}, and is at {event.position}"
    if note["events"] and event.command_id != note["command"]:
        yield f"P4: command {note['command']} was acknowledged, and version {note['version']} is of another"


def callers_rows_went_along(connection: psycopg.Connection[Any], log: Log, notes: Notes, letter: str) -> Iterator[str]:
    statement = "SELECT command_id FROM chaos.callers_row WHERE log = %s"
    with_row = {str(command) for (command,) in connection.execute(statement, (log.schema,))}
    for command in with_row - log.by_command.keys():
        yield f"P4: a caller's row for command {command} was committed, and its event was not"
    in_transactions = {note["command"] for note in notes.of("asked", letter) if note["transaction"]}
    for command in (in_transactions & log.by_command.keys()) - with_row:
        yield f"P4: the event of command {command} was committed, and the caller's row was not"


# ── P6: followers ────────────────────────────────────────────────────────────────────────────────────


def followers_are_complete(connection: psycopg.Connection[Any], log: Log, figures: dict[str, Any]) -> Iterator[str]:
    statement = (
        "SELECT position, template::text, version FROM chaos.followed WHERE log = %s AND follower = %s ORDER BY number"
    )
    stored = sorted((e.position, e.stream, e.version) for events in log.events.values() for e in events)
    for follower in "plain", "transactional":
        given = connection.execute(statement, (log.schema, follower)).fetchall()
        once = list(dict.fromkeys(given))
        count(figures, f"repeated for the {follower} followers", len(given) - len(once))
        if missing := set(stored) - set(once):
            yield f"P6: the {follower} follower missed {len(missing)} events, the first at {min(missing)[0]}"
        if invented := set(once) - set(stored):
            yield f"P6: the {follower} follower was given {len(invented)} events that are not in the log"
        if once != sorted(once):
            yield f"P6: the {follower} follower was given events out of order"
        if follower == "transactional" and len(given) != len(once):
            yield f"P6: the transactional follower's rows hold {len(given) - len(once)} events twice"


# ── P7: what derives from the log ────────────────────────────────────────────────────────────────────


def alarms_are_the_fold(connection: psycopg.Connection[Any], log: Log) -> Iterator[str]:
    statement = in_schema("SELECT stream_id::text, due_at, version, topic, ending FROM {schema}.alarm", log.schema)
    alarms = {stream: rest for stream, *rest in connection.execute(statement)}
    for stream in alarms.keys() - log.templates.keys():
        yield f"P7: there is an alarm for {stream}, which is not in the log"
    for stream, template in log.templates.items():
        expected = None if template.ended else template.valid_until
        due_at, version, topic, ending = alarms.get(stream, (None, None, None, None))
        if due_at != expected:
            yield f"P7: the alarm of {stream} is for {due_at}, its end is {expected}"
        elif ending is not None:
            told = json.loads(ending)
            right = told["reason"] == "expired" and instant(told["ended_at"]) == expected and topic == ENDED
            if not right or version != template.last.version:
                yield f"P7: the ending that is prepared for {stream} is not that of version {template.last.version}"


COPIED = "shop_number", "name", "source", "target", "goods", "discount", "receive_rule", "consume_rule"


def rows_are_the_fold(connection: psycopg.Connection[Any], log: Log) -> Iterator[str]:
    columns = "template_id::text, valid_from, valid_until, stock, reason, ended_at, version, position, " + ", ".join(
        COPIED
    )
    rows = {}
    for template_id, *rest in connection.execute(
        in_schema(f"SELECT {columns} FROM {{schema}}.coupon_template", log.schema)
    ):
        rows[template_id] = tuple(rest)
    for stream in rows.keys() - log.templates.keys():
        yield f"P7: there is a row for {stream}, which is not in the log"
    for stream, template in log.templates.items():
        ended = template.ended
        expected = (
            template.valid_from, template.valid_until, template.stock, ended and ended.reason, ended and ended.at,
            template.last.version, template.last.position, *(template.fields[name] for name in COPIED),
        )  # fmt: skip
        if rows.get(stream) != expected:
            yield f"P7: the row of {stream} is {rows.get(stream)}, the fold {expected}"


def months_are_the_fold(connection: psycopg.Connection[Any], log: Log) -> Iterator[str]:
    months: dict[tuple[int, Any], Counter[str]] = defaultdict(Counter)
    for stream, events in log.events.items():
        shop = log.templates[stream].fields["shop_number"]
        for event in events:
            month = months[shop, event.recorded_at.astimezone(UTC).date().replace(day=1)]
            month["position"] = max(month["position"], event.position)
            month["created"] += event.topic == CREATED
            month["stock_issued"] += event.state.get("stock", 0) + event.state.get("by", 0)
            if event.topic == ENDED:
                month[event.state["reason"]] += 1
            if event.state.get("reason") == "expired":
                late = (event.recorded_at - instant(event.state["ended_at"])) // timedelta(microseconds=1)
                month["lateness_sum"] += late
                month["lateness_max"] = max(month["lateness_max"], late)
    names = "created", "expired", "terminated", "stock_issued", "lateness_sum", "lateness_max", "position"
    statement = in_schema(f"SELECT shop_number, month, {', '.join(names)} FROM {{schema}}.shop_month", log.schema)
    rows = {(shop, month): tuple(rest) for shop, month, *rest in connection.execute(statement)}
    expected = {key: tuple(month[name] for name in names) for key, month in months.items()}
    for key in rows.keys() | expected.keys():
        if rows.get(key) != expected.get(key):
            yield f"P7: the month {key} is {rows.get(key)}, the fold {expected.get(key)}"


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────

ALARMS_AT_ANY_TIME = """
WITH last AS (
    SELECT DISTINCT ON (originator_id) originator_id, topic
      FROM {schema}.event
     ORDER BY originator_id, originator_version DESC
), validity AS (
    SELECT DISTINCT ON (originator_id)
           originator_id, (convert_from(state, 'UTF8')::jsonb ->> 'valid_until')::timestamptz AS valid_until
      FROM {schema}.event
     WHERE topic IN ('CouponTemplate.Created', 'CouponTemplate.ValidityChanged')
     ORDER BY originator_id, originator_version DESC
)
SELECT coalesce(originator_id, stream_id)::text
  FROM last
  JOIN validity USING (originator_id)
  FULL JOIN {schema}.alarm ON stream_id = originator_id
 WHERE due_at IS DISTINCT FROM CASE WHEN last.topic <> 'CouponTemplate.Ended' THEN valid_until END
"""

ROWS_AT_ANY_TIME = """
WITH last AS (
    SELECT DISTINCT ON (originator_id) originator_id, originator_version, notification_id
      FROM {schema}.event
     WHERE notification_id <= (SELECT position FROM {schema}.checkpoint WHERE name = 'coupon_template')
     ORDER BY originator_id, originator_version DESC
)
SELECT coalesce(originator_id, template_id)::text
  FROM last
  FULL JOIN {schema}.coupon_template AS rows ON template_id = originator_id
 WHERE (rows.version, rows.position) IS DISTINCT FROM (originator_version, notification_id)
"""


def check_now(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """In one snapshot, whatever is under way: the alarms are the fold of all, the rows that of their checkpoint."""
    found = []
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for statement, what in (ALARMS_AT_ANY_TIME, "alarm"), (ROWS_AT_ANY_TIME, "row"):
            streams = [stream for (stream,) in connection.execute(in_schema(statement, schema))]
            found += [f"P7: while it ran, the {what} of {stream} was not the fold" for stream in streams]
    return found


if __name__ == "__main__":
    outcome = check(sys.argv[1], Path(sys.argv[2]), {"a": "coupon_clock", "b": "other_clock"})
    print("\n".join(outcome.violations) or "no violation")
