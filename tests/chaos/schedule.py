"""What is broken, when and for how long: decided by the seed and the seconds alone, so that a run can be repeated."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple


class Fault(NamedTuple):
    """`at` and `lasts` are in seconds, `at` from the beginning of the run. `target`: a process, or a schema's messages.
    `amount`: what the kind makes of it, in [0, 1)."""

    at: float
    lasts: float
    kind: str
    target: str
    amount: float


class Kind(NamedTuple):
    """How long such a fault lasts, at least and at most; 0 for what is done at once."""

    name: str
    shortest: float
    longest: float


SERVERS = (
    Kind("kill PostgreSQL", 0.2, 3.0),
    Kind("end sessions", 0.0, 0.0),
    Kind("fill connections", 1.0, 4.0),
    Kind("hold a snapshot", 3.0, 10.0),
    Kind("step the clock", 0.0, 0.0),
    Kind("other settings", 3.0, 8.0),
)
BROKER = (
    Kind("kill the broker", 0.5, 4.0),
    Kind("wipe the broker", 0.5, 2.0),
    Kind("stop the broker", 1.0, 6.0),
)
PROCESSES = (
    Kind("kill a process", 0.0, 2.0),
    Kind("kill a process", 0.0, 2.0),
    Kind("stop a process", 0.5, 4.0),
    Kind("stop a process", 4.0, 20.0),
    Kind("freeze connections", 0.0, 0.0),
    Kind("lose answers", 0.5, 3.0),
    Kind("rebuild", 0.0, 0.0),
    Kind("kill a rebuild", 0.05, 1.5),
)
MESSAGES = (
    Kind("lose messages", 1.0, 5.0),
    Kind("repeat messages", 1.0, 5.0),
    Kind("delay messages", 1.0, 5.0),
    Kind("foreign messages", 1.0, 5.0),
    Kind("early messages", 1.0, 5.0),
)
PROMOTION = Kind("promote the standby", 0.0, 0.0)

FIRST_AT_S = 2.0
LONGEST_PAUSE_S = 2.5
LONGEST_SHARE = 0.2
"""Of all seconds, that one fault lasts."""
UNDISTURBED_AT_THE_END_S = 1.0
PROMOTED_AFTER = 0.6
"""Of all seconds."""


def schedule(
    seed: int, seconds: float, processes: Sequence[str], *, broker: bool = False, promotion: bool = False
) -> list[Fault]:
    """In order of their times. Faults of servers, of processes and of messages meet; two of the same sort do not.

    `broker`: whether there is one to be killed; `promotion`: whether there is a standby.
    """
    servers = SERVERS + BROKER if broker else SERVERS
    lanes = [(servers, [""]), (PROCESSES, processes), (MESSAGES, sorted({name[0] for name in processes}))]
    faults = [
        fault
        for number, (kinds, targets) in enumerate(lanes)
        for fault in lane(Random(f"{seed}-{number}"), seconds, kinds, targets)
    ]
    if promotion:
        faults = promoted(faults, seconds)
    return sorted(faults)


def lane(random: Random, seconds: float, kinds: Sequence[Kind], targets: Sequence[str]) -> Iterator[Fault]:
    """One after the other, each kind once before any comes again."""
    at = FIRST_AT_S + random.uniform(0, LONGEST_PAUSE_S)
    while True:
        for kind in random.sample(kinds, len(kinds)):
            lasts = random.uniform(kind.shortest, max(kind.shortest, min(kind.longest, LONGEST_SHARE * seconds)))
            if at + lasts > seconds - UNDISTURBED_AT_THE_END_S:
                return
            yield Fault(round(at, 3), round(lasts, 3), kind.name, random.choice(targets), random.random())
            at += lasts + random.uniform(0.2, LONGEST_PAUSE_S)


def by_lane(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Those of servers, of processes, of messages."""
    of_processes, of_messages = ({kind.name for kind in kinds} for kinds in (PROCESSES, MESSAGES))
    lanes: list[list[Fault]] = [[], [], []]
    for fault in faults:
        lanes[(fault.kind in of_processes) + 2 * (fault.kind in of_messages)].append(fault)
    return lanes


def promoted(faults: Sequence[Fault], seconds: float) -> list[Fault]:
    """With the promotion, once, in the place of what the servers suffered around it."""
    at = round(seconds * PROMOTED_AFTER, 3)
    of_servers = {kind.name for kind in SERVERS}
    kept = [each for each in faults if each.kind not in of_servers or not at - 10 <= each.at <= at + 10]
    return [*kept, Fault(at, PROMOTION.shortest, PROMOTION.name, "", 0.0)]
