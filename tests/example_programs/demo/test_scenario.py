from collections import Counter
from datetime import timedelta

from coupon_clock.domain.rules import creation_problems
from examples import MORNING
from scenario import ARMING_WINDOW, MoveEnd, SendAgain, Terminate, creation, scenario


def test_forty_templates_of_three_shops_end_within_twenty_seconds():
    planned = scenario()

    assert len(planned) == 40
    assert {p.shop_number for p in planned} == {1, 2, 3}
    assert all(0 < p.ends <= 20 for p in planned)


def test_twenty_end_at_one_instant_and_the_others_alone():
    together = Counter(p.ends for p in scenario())

    assert sorted(together.values()) == [1] * 20 + [20]


def test_each_turn_happens_once_and_both_ways_of_moving_an_end():
    turns = [(p.turn, p.ends) for p in scenario() if p.turn]

    assert Counter(type(turn) for turn, _ in turns) == {Terminate: 1, MoveEnd: 2, SendAgain: 1}
    assert sorted(turn.to > ends for turn, ends in turns if isinstance(turn, MoveEnd)) == [False, True]


def test_a_turn_comes_once_its_message_can_be_sent_and_before_the_end():
    window = ARMING_WINDOW.total_seconds()

    assert all(p.ends - window <= p.turn.at < p.ends for p in scenario() if isinstance(p.turn, MoveEnd | SendAgain))


def test_some_end_lies_beyond_the_arming_window_at_first():
    assert max(p.ends for p in scenario()) > ARMING_WINDOW.total_seconds()


def test_what_is_planned_can_be_created():
    commands = [creation(planned, MORNING, number) for number, planned in enumerate(scenario())]

    assert [list(creation_problems(command, MORNING)) for command in commands] == [[]] * 40
    assert len({type(command.discount) for command in commands}) == 3
    assert commands[0].valid_until == MORNING + timedelta(seconds=scenario()[0].ends)
