"""What there is to see at one moment: a row a template, those that share a name in one."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Literal, NamedTuple, get_args
from uuid import UUID

from actions import OnStage, Twist
from observer import Seen

State = Literal["waiting", "message sent", "terminated", "ended"]
STATES: tuple[State, ...] = get_args(State)


class Row(NamedTuple):
    """`size` templates, `over` of them so far; `state` is that of the last among them.

    `after_end`: until the last `Ended` so far could be read in the log. `planned_end`: as created, where that is not
    `ends_at`.
    """

    shops: tuple[int, ...]
    name: str
    size: int
    over: int
    state: State
    ends_at: datetime
    after_end: timedelta | None
    twist: Twist | None
    planned_end: datetime | None


class Scene(NamedTuple):
    """`rows`: soonest end first. `now` is an aware time."""

    now: datetime
    rows: Sequence[Row]

    @property
    def size(self) -> int:
        return sum(row.size for row in self.rows)

    @property
    def over(self) -> int:
        return sum(row.over for row in self.rows)


def scene(now: datetime, templates: Iterable[OnStage], sent: Mapping[UUID, datetime], seen: Seen) -> Scene:
    ordered = sorted(templates, key=lambda template: (template.ends_at, template.created.name))
    groups = groupby(ordered, key=lambda template: (template.ends_at, template.created.name))
    return Scene(now, [row(list(group), sent, seen) for _, group in groups])


def row(templates: list[OnStage], sent: Mapping[UUID, datetime], seen: Seen) -> Row:
    """`templates`: of one name and one end."""
    one, *_ = templates
    committed = [seen.committed_at[t.template_id] for t in templates if t.template_id in seen.committed_at]
    return Row(
        shops=tuple(sorted({t.created.shop_number for t in templates})),
        name=one.created.name,
        size=len(templates),
        over=len(committed),
        state=min((state(t, sent, seen) for t in templates), key=STATES.index),
        ends_at=one.ends_at,
        after_end=max(committed) - one.ends_at if committed else None,
        twist=one.twist,
        planned_end=None if one.ends_at == one.created.valid_until else one.created.valid_until,
    )


def state(template: OnStage, sent: Mapping[UUID, datetime], seen: Seen) -> State:
    if template.twist == "terminated":
        return "terminated"
    if template.template_id in seen.committed_at:
        return "ended"
    return "message sent" if sent.get(template.template_id) == template.ends_at else "waiting"
