"""What should be so, worked out a second time: plain Python, with no line of the product in it.

A command is a dictionary, as is an event: "type" is its kind, and the rest are its fields.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

Fields = dict[str, Any]

MOST_STOCK = 20_000_000
CONTENT = ("shop_number", "name", "stock", "valid_from", "valid_until")
UNREADABLE = {"type": "Unreadable"}
MONTH_COUNTS = ("created", "expired", "terminated", "stock_issued", "lateness_sum", "lateness_max", "position")


class Unexpected(AssertionError):
    """What the log, a row or an answer says is not what should be so."""


@dataclass
class Happened:
    """One event of a stream. `position`: once it was read from the log."""

    event: Fields
    command_id: UUID | None
    cause: str
    recorded_at: datetime
    position: int = 0


LogEntry = tuple[UUID, int, Happened]
"""Stream, version, event."""


@dataclass
class Answer:
    """`refusal`: the name of the error, if any. `events`: of this command, `version` after them."""

    refusal: str | None = None
    version: int = 0
    events: list[Fields] = field(default_factory=list)


@dataclass
class Template:
    """A stream, and what it comes to."""

    template_id: UUID
    happened: list[Happened] = field(default_factory=list)

    @property
    def version(self) -> int:
        return len(self.happened)

    @property
    def created(self) -> Fields:
        return self.happened[0].event

    @property
    def window(self) -> tuple[datetime, datetime]:
        *_, last = [each.event for each in self.happened if "valid_until" in each.event]
        return last["valid_from"], last["valid_until"]

    @property
    def valid_until(self) -> datetime:
        return self.window[1]

    @property
    def stock(self) -> int:
        return self.created["stock"] + sum(each.event.get("by", 0) for each in self.happened)

    @property
    def end(self) -> Fields | None:
        last = self.happened[-1].event
        return last if last["type"] == "Ended" else None

    def is_over(self, now: datetime) -> bool:
        return self.end is not None or now >= self.valid_until

    def is_usable(self, at: datetime) -> bool:
        return self.window[0] <= at and not self.is_over(at)

    def up_to(self, position: int) -> "Template":
        return Template(self.template_id, [each for each in self.happened if each.position <= position])

    def row(self) -> Fields:
        """Of the read model."""
        end = self.end or {"reason": None, "ended_at": None}
        valid_from, valid_until = self.window
        return {
            "shop_number": self.created["shop_number"],
            "name": self.created["name"],
            "stock": self.stock,
            "valid_from": valid_from,
            "valid_until": valid_until,
            "reason": end["reason"],
            "ended_at": end["ended_at"],
            "version": self.version,
            "position": self.happened[-1].position,
        }


class Model:
    """All templates. `unreadable`: the one whose last event nobody can read, so that it stays as it was before.

    `copy` is for a transaction, of which nobody knows yet whether it commits.
    """

    def __init__(self) -> None:
        self.templates: dict[UUID, Template] = {}
        self.unreadable: UUID | None = None

    def copy(self) -> "Model":
        return deepcopy(self)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def execute(self, command: Fields, now: datetime) -> Answer:
        """Keeps what it leads to."""
        template = self.templates.get(command["template_id"])
        earlier = self._under(template, command["command_id"])
        if earlier:
            return self._repeated(earlier, command)
        try:
            events = list(self._events(template, command, now))
        except Refused as refused:
            return Answer(refusal=str(refused))
        version = template.version if template else 0
        if command.get("expected_version") not in (None, version):
            return Answer(refusal="CommandConflict")
        for event in events:
            self.append(command["template_id"], Happened(event, command["command_id"], "command", now))
        return Answer(None, version + len(events), events)

    def append(self, template_id: UUID, happened: Happened) -> None:
        self.templates.setdefault(template_id, Template(template_id)).happened.append(happened)

    def _under(self, template: Template | None, command_id: UUID) -> list[tuple[int, Fields]]:
        happened = template.happened if template else []
        return [(n, each.event) for n, each in enumerate(happened, 1) if each.command_id == command_id]

    def _repeated(self, earlier: list[tuple[int, Fields]], command: Fields) -> Answer:
        version, event = earlier[-1]
        wanted = {key: value for key, value in command.items() if key in event and key != "type"}
        same_kind = LEADS_TO[command["type"]] == event["type"]
        if not same_kind or any(event[key] != value for key, value in wanted.items()):
            return Answer(refusal="CommandConflict")
        return Answer(None, version, [event for _, event in earlier])

    def _events(self, template: Template | None, command: Fields, now: datetime) -> Iterator[Fields]:
        shop = {"shop_number": command["shop_number"]}
        if command["type"] == "Create":
            yield from self._creation(template, command, now)
            return
        if template is None or template.created["shop_number"] != command["shop_number"]:
            raise Refused("CouponTemplateNotFound")
        if command["type"] == "Terminate":
            if template.end is None:
                expired = now >= template.valid_until
                reason, at = ("expired", template.valid_until) if expired else ("terminated", now)
                yield {"type": "Ended", **shop, "reason": reason, "ended_at": at}
            return
        if template.is_over(now):
            raise Refused("CouponTemplateOver")
        if command["type"] == "Increase":
            if command["by"] < 1 or template.stock + command["by"] > MOST_STOCK:
                raise Refused("InvalidCommand")
            yield {"type": "StockIncreased", **shop, "by": command["by"]}
        else:
            window = {"valid_from": command["valid_from"], "valid_until": command["valid_until"]}
            if window["valid_until"] <= max(now, window["valid_from"]):
                raise Refused("InvalidCommand")
            yield {"type": "ValidityChanged", **shop, **window}

    def _creation(self, template: Template | None, command: Fields, now: datetime) -> Iterator[Fields]:
        content = {key: command[key] for key in CONTENT}
        if template is not None:
            if any(template.created[key] != value for key, value in content.items()):
                raise Refused("CommandConflict")
            return
        if command["valid_until"] <= max(now, command["valid_from"]):
            raise Refused("InvalidCommand")
        yield {"type": "Created", **content}

    # ── what the log says ────────────────────────────────────────────────────────────────────────

    def agree(self, stored: Sequence[LogEntry], now: datetime) -> None:
        """Compares the whole log, and takes over what the clock may have ended since. Raises Unexpected."""
        streams: dict[UUID, list[Happened]] = {}
        for template_id, version, happened in stored:
            stream = streams.setdefault(template_id, [])
            stream.append(happened)
            if version != len(stream):
                raise Unexpected(f"P1: {template_id}: version {version} is the {len(stream)}. of its stream")
        if self.unreadable is not None:
            last = streams[self.unreadable].pop()
            if last.event != UNREADABLE:
                raise Unexpected(f"P8: {self.unreadable} cannot be read, and then there was {last}")
        for template_id in streams.keys() | self.templates.keys():
            self._agree(template_id, streams.get(template_id, []), now)

    def _agree(self, template_id: UUID, found: list[Happened], now: datetime) -> None:
        template = self.templates.get(template_id) or Template(template_id)
        if len(found) < template.version:
            raise Unexpected(f"P4: {template_id}: {template.version} events were stored, {len(found)} are there")
        for mine, theirs in zip(template.happened, found, strict=False):
            if not says(theirs, mine):
                raise Unexpected(f"P4, P5: {template_id}: {theirs}, not {mine}")
            mine.position = theirs.position
        if len(found) > template.version:
            self._ended_by_clock(template, found[template.version :], now)

    def _ended_by_clock(self, template: Template, more: list[Happened], now: datetime) -> None:
        ending, *rest = more
        if rest or template.version == 0 or ending.cause == "command":
            raise Unexpected(f"P5: {template.template_id}: nobody asked for {more}")
        if template.end is not None:
            raise Unexpected(f"P1: {template.template_id} ended, and then there was {ending}")
        shop, until = template.created["shop_number"], template.valid_until
        if ending.event != {"type": "Ended", "shop_number": shop, "reason": "expired", "ended_at": until}:
            raise Unexpected(f"P2: {template.template_id}, valid until {until}: {ending}")
        if not until <= ending.recorded_at <= now:
            raise Unexpected(f"P2: {template.template_id}, valid until {until}: stored at {ending.recorded_at}")
        template.happened.append(ending)

    # ── what derives from it ─────────────────────────────────────────────────────────────────────

    def rows(self, position: int) -> dict[UUID, Fields]:
        """The read model of the log up to there."""
        reached = [template.up_to(position) for template in self.templates.values()]
        return {template.template_id: template.row() for template in reached if template.happened}

    def months(self, position: int) -> dict[tuple[int, date], Fields]:
        found: dict[tuple[int, date], Fields] = {}
        for each in sorted(self._everything(), key=lambda each: each.position):
            if each.position <= position:
                month = each.recorded_at.date().replace(day=1)
                counts = found.setdefault((each.event["shop_number"], month), dict.fromkeys(MONTH_COUNTS, 0))
                count(counts, each)
        return found

    def alarms(self) -> dict[UUID, datetime]:
        return {template_id: each.valid_until for template_id, each in self.templates.items() if each.end is None}

    def _everything(self) -> Iterator[Happened]:
        for template in self.templates.values():
            yield from template.happened


class Refused(Exception):
    """By this rule: the name of the error."""


LEADS_TO = {
    "Create": "Created",
    "Increase": "StockIncreased",
    "Change": "ValidityChanged",
    "Terminate": "Ended",
}


def says(stored: Happened, expected: Happened) -> bool:
    """An event holds more fields than the model cares for."""
    of_interest = {key: stored.event.get(key) for key in expected.event}
    same_event = of_interest == expected.event
    return same_event and (stored.command_id, stored.cause, stored.recorded_at) == (
        expected.command_id,
        expected.cause,
        expected.recorded_at,
    )


def count(counts: Fields, happened: Happened) -> None:
    event = happened.event
    counts["position"] = happened.position
    counts["stock_issued"] += event.get("stock", 0) + event.get("by", 0)
    counts["created"] += event["type"] == "Created"
    if event["type"] == "Ended":
        counts[event["reason"]] += 1
        if event["reason"] == "expired":
            late = happened.recorded_at - event["ended_at"]
            microseconds = late.days * 86_400_000_000 + late.seconds * 1_000_000 + late.microseconds
            counts["lateness_sum"] += microseconds
            counts["lateness_max"] = max(counts["lateness_max"], microseconds)
