"""What an operator does with an open application: `app.maintenance`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal
from uuid import UUID

from coupon_clock.domain import arguments
from coupon_clock.domain.errors import Problem
from coupon_clock.infrastructure.messaging.rejected import LONGEST_REASON, Rejected
from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.infrastructure.scheduling.due_result import DueResult
from coupon_clock.maintenance import followers, repair
from coupon_clock.maintenance.explain import Explanation, explain, of_runtime
from coupon_clock.maintenance.findings import Finding, findings
from coupon_clock.maintenance.followers import Follower, SkippedEvent
from coupon_clock.maintenance.status import Status, read_status
from coupon_clock.maintenance.verify import promise, rows
from coupon_clock.maintenance.verify.promise import PromiseReport
from coupon_clock.maintenance.verify.rows import Part, part_problems
from coupon_clock.maintenance.verify.stored_rows import Difference
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.engine.quarantine import Quarantined
from coupon_clock.projections.rebuild.dry_run import DryRun, dry_run
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, Rebuilt, rebuild
from coupon_clock.projections.rebuild.run import option_problems
from coupon_clock.projections.registry import PROJECTIONS, projection_named
from coupon_clock.runtime import Runtime

LIVE = PROJECTIONS[0].name
NO_OPTIONS = RebuildOptions()
ALL_STREAMS = Part()
RETRIED_AT_ONCE = 1_000


class Maintenance:
    """Every method raises DatabaseUnavailable; safe on a running system."""

    def __init__(self, runtime: Runtime[Any, Any, Any]) -> None:
        self._runtime = runtime
        self._store = runtime.store

    # ── how it stands ────────────────────────────────────────────────────────────────────────────

    def status(self) -> Status:
        """Returns how processes, alarms, followers, messages and servers stand, in less than a second."""
        return read_status(self._store.database)

    def findings(self, status: Status) -> list[Finding]:
        """Returns what of a status needs a person, the gravest first."""
        return findings(status, self._runtime.settings)

    def explain(self, stream_id: UUID) -> Explanation:
        """Returns what happened to a stream, what comes next and by whom, and what keeps it from ending."""
        arguments.refuse(arguments.of_type("stream_id", stream_id, UUID))
        return explain(of_runtime(self._runtime), stream_id)

    # ── made anew ────────────────────────────────────────────────────────────────────────────────

    def rebuild(
        self, name: str = LIVE, options: RebuildOptions = NO_OPTIONS, progress: Progress = no_progress
    ) -> Rebuilt:
        """Replays the log into new rows of that projection, and makes them live. `progress(step, done, total)`: events.

        Raises UnknownProjection, RebuildRunning, ShadowOfOtherFold, SwapBlocked, ForeignObjects, ForeignTable,
        RowsHidden, MissingRight, UnreadableEvent; the live rows are then as they were.
        """
        arguments.refuse(option_problems(options), arguments.function("progress", progress))
        return rebuild(self._store, projection_named(name), options, progress)

    def dry_run(self, name: str = LIVE, progress: Progress = no_progress) -> DryRun:
        """Reads and folds what a rebuild would, and writes nothing. Raises as `rebuild` does."""
        arguments.refuse(arguments.function("progress", progress))
        return dry_run(self._store, projection_named(name), progress)

    def repair_alarms(self) -> int:
        """Brings the alarm table in place to what the log says, prepared endings included.

        Returns how many alarms were wrong. Raises UnreadableEvent.
        """
        return repair.repair_alarms(self._store)

    # ── compared with the log ────────────────────────────────────────────────────────────────────

    def verify_promise(self, since: int | None = None) -> PromiseReport:
        """Proves from the log alone that what ended did so once, last and not early, and says how late. `since`: only
        of templates with an event after this position. Raises InvalidArgument.
        """
        arguments.refuse(arguments.whole_number("since", since, 0) if since is not None else ())
        grace = self._runtime.settings.reconciled_within
        return promise.verify_promise(self._store, grace, promise.judge_template, since)

    def verify(self, part: Part = ALL_STREAMS) -> Iterator[Difference]:
        """Returns the differences of `verify_rows` and `verify_alarms`, all in one snapshot."""
        arguments.refuse(part_problems(part))
        return rows.verify(self._store, self._projections(part), True, part)

    def verify_rows(self, name: str | None = None, part: Part = ALL_STREAMS) -> Iterator[Difference]:
        """Returns every difference between a projection and a fresh fold of the log, in one snapshot; by default of all
        projections, or of all that can be verified in parts.

        Raises UnknownProjection, NotInParts, ReadModelOutdated, UnreadableEvent.
        """
        arguments.refuse(part_problems(part))
        if name is not None:
            return rows.verify(self._store, [projection_named(name)], False, part)
        return rows.verify(self._store, self._projections(part), False, part)

    def verify_alarms(self, part: Part = ALL_STREAMS) -> Iterator[Difference]:
        """Returns every difference between the alarms, with their endings, and the log. Raises UnreadableEvent."""
        arguments.refuse(part_problems(part))
        return rows.verify(self._store, [], True, part)

    def _projections(self, part: Part) -> list[Projection[Any]]:
        return [projection for projection in PROJECTIONS if part.is_all or projection.one_row_a_stream]

    # ── what follows the log ─────────────────────────────────────────────────────────────────────

    def followers(self) -> list[Follower]:
        """Returns all projections and followers, with how far each is and what stops it."""
        with self._store.database.connection() as connection:
            return followers.all_of(connection, self._store.database.schema)

    def skip_event(self, follower: str, position: int, skipped_by: str, reason: str) -> None:
        """Has a follower pass over the event at this position, which it has not taken in yet; kept with who and why.

        Raises InvalidArgument, UnknownFollower.
        """
        followers.skip(self._store, follower, position, skipped_by, reason)

    def skipped_events(self, follower: str) -> list[SkippedEvent]:
        """Returns what this follower passed over, or will. Raises InvalidArgument."""
        return followers.skipped(self._store, follower)

    def restart_follower(self, follower: str, position: int | Literal["now"]) -> int:
        """Has a follower go on after this position, wherever it is; "now": after all that is stored or under way.

        Returns the position. Raises InvalidArgument, UnknownFollower.
        """
        return followers.restart(self._store, follower, position)

    def forget_follower(self, follower: str) -> None:
        """Drops the checkpoint of a follower that is no longer there. One that is begins anew.

        Raises UnknownFollower.
        """
        followers.forget(self._store, follower)

    # ── streams in quarantine ────────────────────────────────────────────────────────────────────

    def quarantined(self, limit: int = 1_000) -> list[Quarantined]:
        """Returns streams that projections leave alone, with the reason. Raises InvalidArgument."""
        arguments.refuse(arguments.whole_number("limit", limit, 1))
        with self._store.database.connection() as connection:
            return quarantine.listed(connection, self._store.database.schema, limit=limit)

    def retry_quarantined(self, stream_id: UUID | None = None) -> list[Quarantined]:
        """Makes the rows of these streams anew, of one or of all. Returns those that are still left alone; a projection
        without a row for each stream needs a rebuild instead.

        Raises InvalidArgument.
        """
        arguments.refuse(arguments.of_type("stream_id", stream_id, UUID) if stream_id is not None else ())
        schema, after, left = self._store.database.schema, ("", quarantine.FIRST), list[Quarantined]()
        while True:
            with self._store.database.connection() as connection:
                some = quarantine.listed(connection, schema, None, stream_id, after, RETRIED_AT_ONCE)
            left += [each for each in some if not self._is_remade(each)]
            if len(some) < RETRIED_AT_ONCE:
                return left
            after = (some[-1].projection, some[-1].stream_id)

    def rebuild_row(self, name: str, stream_id: UUID) -> None:
        """Makes the row of one stream anew from the log. Raises UnknownProjection, InvalidArgument where the projection
        has no row for each stream, UnreadableEvent."""
        arguments.refuse(arguments.of_type("stream_id", stream_id, UUID))
        projection = projection_named(name)
        if not projection.one_row_a_stream:
            arguments.refuse([Problem("name", name, "gathers many streams in a row: rebuild all of it")])
        if failed := quarantine.remake_row(self._store, projection, stream_id):
            raise failed

    def _is_remade(self, quarantined: Quarantined) -> bool:
        for projection in PROJECTIONS:
            if projection.name == quarantined.projection and projection.one_row_a_stream:
                return quarantine.remake_row(self._store, projection, quarantined.stream_id) is None
        return False

    # ── the messages ─────────────────────────────────────────────────────────────────────────────

    def rearm(self, progress: Progress = no_progress) -> int:
        """Marks all alarms unarmed, for a broker that lost its store; the relays publish them again.

        Returns how many. Stopped in between, it can be run again.
        """
        arguments.refuse(arguments.function("progress", progress))
        return self._runtime.deadlines.rearm(progress)

    def rejected(self, limit: int = 1_000, reason: str = "") -> list[Rejected]:
        """Returns messages that could not be acted on, the oldest first; those whose `reason` contains that text."""
        arguments.refuse(
            arguments.whole_number("limit", limit, 1),
            arguments.text("reason", reason, LONGEST_REASON) if reason != "" else (),
        )
        return self._runtime.deadlines.rejected.oldest(limit, reason)

    def retry_rejected(self, messages: Sequence[Rejected]) -> list[DueResult]:
        """Handles the templates that these messages mean, now. Returns Failed for what is no readable message."""
        arguments.refuse(arguments.list_of("messages", messages, Rejected))
        return self._runtime.deadlines.retry_rejected(messages)

    def drop_rejected(self, ids: Sequence[int] | None = None) -> int:
        """Forgets these, or all. Returns how many there were."""
        arguments.refuse(arguments.list_of("ids", ids, int) if ids is not None else ())
        return self._runtime.deadlines.rejected.drop(ids)
