"""What a store of events does, wherever it keeps them: PostgreSQL, or the memory of the property tests."""

from datetime import UTC, datetime
from uuid import uuid4

from coupon_clock.domain.events import StockIncreased
from coupon_clock.infrastructure.event_store.store import Append, Appended, Conflict, NewEvent
from examples import SHOP, TEMPLATE, created

DECIDED_AT = datetime.now(UTC)


def increased(by: int) -> NewEvent:
    return NewEvent(StockIncreased(SHOP, by), uuid4(), "command", "anna")


class EventStoreContract:
    """Subclasses have a fixture `store`, an empty one."""

    def test_an_unknown_stream_is_empty(self, store):
        assert store.load_many([TEMPLATE]).streams == {TEMPLATE: []}

    def test_what_went_in_comes_out_in_order_with_all_that_was_given(self, store):
        first, *more = new = [NewEvent(created(), uuid4()), increased(1), increased(2)]
        (one,) = store.append([Append(TEMPLATE, 0, [first])], DECIDED_AT)
        (two,) = store.append([Append(TEMPLATE, 1, more)], DECIDED_AT)

        stream = store.load_many([TEMPLATE]).streams[TEMPLATE]
        assert [NewEvent(e.event, e.command_id, e.cause, e.actor) for e in stream] == new
        assert [e.version for e in stream] == [1, 2, 3]
        assert [e.position for e in stream] == [*one.positions, *two.positions]
        assert all(e.stream_id == TEMPLATE for e in stream)

    def test_positions_grow_over_all_streams(self, store):
        outcomes = store.append([Append(uuid4(), 0, [increased(1)]) for _ in range(5)], DECIDED_AT)
        positions = sorted(position for outcome in outcomes for position in outcome.positions)
        (later,) = store.append([Append(uuid4(), 0, [increased(1)])], DECIDED_AT)
        assert later.positions[0] > positions[-1]

    def test_an_append_at_another_version_is_a_conflict_and_spoils_no_other(self, store):
        other = uuid4()
        store.append([Append(TEMPLATE, 0, [NewEvent(created(), uuid4())])], DECIDED_AT)
        outcomes = store.append([Append(TEMPLATE, 0, [increased(1)]), Append(other, 0, [increased(2)])], DECIDED_AT)
        assert outcomes[0] == Conflict(TEMPLATE, 0, 1)
        assert isinstance(outcomes[1], Appended)
        loaded = store.load_many([TEMPLATE, other]).streams
        assert [len(loaded[TEMPLATE]), len(loaded[other])] == [1, 1]

    def test_an_append_beyond_the_end_is_a_conflict(self, store):
        store.append([Append(TEMPLATE, 0, [NewEvent(created(), uuid4())])], DECIDED_AT)
        assert store.append([Append(TEMPLATE, 5, [increased(1)])], DECIDED_AT) == [Conflict(TEMPLATE, 5, 1)]
