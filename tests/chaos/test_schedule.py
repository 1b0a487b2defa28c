"""The schedule of a run is decided by its seed and its seconds."""

from itertools import pairwise

from chaos.schedule import BROKER, MESSAGES, PROCESSES, SERVERS, by_lane, schedule

NAMES = ["a1", "a2", "b1"]


def test_the_same_seed_gives_the_same_schedule():
    assert schedule(7, 60, NAMES, broker=True) == schedule(7, 60, NAMES, broker=True)
    assert schedule(7, 60, NAMES, broker=True) != schedule(8, 60, NAMES, broker=True)


def test_every_kind_of_fault_comes_in_some_minutes():
    kinds = {fault.kind for fault in schedule(1, 300, NAMES, broker=True, promotion=True)}
    assert kinds == {kind.name for kind in SERVERS + BROKER + PROCESSES + MESSAGES} | {"promote the standby"}


def test_without_a_broker_and_a_standby_none_is_killed_or_promoted():
    kinds = {fault.kind for fault in schedule(1, 300, NAMES)}
    assert kinds & {"kill the broker", "wipe the broker", "stop the broker", "promote the standby"} == set()


def test_faults_of_one_sort_never_overlap_and_all_are_over_before_the_end():
    for seed in range(50):
        for lane in by_lane(schedule(seed, 40, NAMES, broker=True)):
            for fault, following in pairwise(lane):
                assert fault.at + fault.lasts < following.at
            assert all(fault.at + fault.lasts < 40 for fault in lane)


def test_targets_are_processes_or_the_messages_of_one_log():
    servers, processes, messages = by_lane(schedule(1, 300, NAMES, broker=True))
    assert {fault.target for fault in servers} == {""}
    assert {fault.target for fault in processes} == set(NAMES)
    assert {fault.target for fault in messages} == {"a", "b"}


def test_shortly_around_a_promotion_nothing_else_happens_to_the_servers():
    faults = schedule(3, 100, NAMES, promotion=True)
    (promotion,) = (fault for fault in faults if fault.kind == "promote the standby")
    servers, *_ = by_lane(faults)
    assert [fault for fault in servers if abs(fault.at - promotion.at) <= 10] == [promotion]
