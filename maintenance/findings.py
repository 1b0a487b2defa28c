"""What of the status needs a person, each with what to do: exit codes, alerts and the runbook go by these."""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from coupon_clock.deadlines import ROLES
from coupon_clock.infrastructure.processes import roles_run
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.maintenance.doctor import OLDEST_SNAPSHOT
from coupon_clock.maintenance.status import Status

FAR_BEHIND_S = 60.0
REJECTED_LATELY = timedelta(hours=1)


class Finding(NamedTuple):
    """`name`: the same for the same kind of trouble, as alerts have it."""

    name: str
    what: str
    do: str


def findings(status: Status, settings: Settings) -> list[Finding]:
    """The gravest first."""
    return [*of_the_server(status), *of_processes(status), *of_alarms(status, settings), *of_followers(status)]


def of_the_server(status: Status) -> Iterator[Finding]:
    if status.server.is_read_only:
        yield Finding("read_only", "PostgreSQL takes no writes here", "connect to a primary: coupon-clock doctor")
    if status.broker:
        do = "start it, or correct COUPON_CLOCK_ROCKETMQ_ENDPOINTS: coupon-clock doctor"
        yield Finding("broker_away", f"RocketMQ cannot be reached ({status.broker})", do)
    if status.snapshot:
        holder, since = status.snapshot
        if since is None or status.alarms.at - since > OLDEST_SNAPSHOT:
            when = "long ago" if since is None else f"{since:%Y-%m-%dT%H:%M:%SZ}"
            what = f"a transaction is open since {when} ({holder}): VACUUM cannot clean up"
            yield Finding("old_snapshot", what, "end that transaction")


def of_processes(status: Status) -> Iterator[Finding]:
    running = roles_run(status.processes)
    for role in ROLES:
        if not running[role]:
            yield Finding(f"no_{role}", f"no process runs the {role}", f"coupon-clock run --role {role}")
    for process in status.processes:
        if process.hung:
            loops = ", ".join(process.hung)
            do = "see its log; restart it"
            yield Finding("hung", f"{loops} of process {process.pid} on {process.host} does not get on", do)


def of_alarms(status: Status, settings: Settings) -> Iterator[Finding]:
    if status.stuck.since:
        what = f"{status.stuck.streams:,} templates are due and cannot be ended: {status.stuck.reason}"
        yield Finding("stuck", what, "coupon-clock explain ID, and correct what it names")
    elif status.alarms.overdue_since:
        what = f"{status.alarms.overdue:,} templates are overdue since {status.alarms.overdue_since:%Y-%m-%dT%H:%M:%SZ}"
        yield Finding("overdue", what, "coupon-clock run --role reconciler; coupon-clock explain ID says why of one")
    if status.alarms.unarmed_late:
        what = (
            f"{status.alarms.unarmed_late:,} templates end within {settings.lead:g} s and no broker has their messages"
        )
        yield Finding("unarmed", what, "coupon-clock run --role relay")


def of_followers(status: Status) -> Iterator[Finding]:
    for follower in (lag.follower for lag in status.lags):
        if follower.is_stopped:
            yield Finding("stopped", f"{follower.name} is stopped", "coupon-clock followers list")
        elif follower.behind_s is not None and follower.behind_s > FAR_BEHIND_S:
            what = f"{follower.name} is {follower.behind:,} events behind since {follower.behind_s:,.0f} s"
            yield Finding("far_behind", what, "coupon-clock followers list; see the log of who holds it")
    if status.quarantined:
        what = f"{sum(status.quarantined.values()):,} streams are in quarantine"
        yield Finding("quarantine", what, "coupon-clock quarantine list")
    if lately := [each for each in status.rejected if status.alarms.at - each.latest < REJECTED_LATELY]:
        what = f"messages were rejected within the hour, most because: {lately[0].reason}"
        yield Finding("rejected", what, "coupon-clock rejected list")
