"""Laws of the timer: parts add up to the whole, a part inside another is its own, and so is its peak."""

from triptych.rl.metrics import Timer


def test_parts_add_up_and_an_inner_part_is_taken_out_of_the_outer():
    ticks = iter([0, 1, 11, 14, 20, 25])  # rollout from 0 to 14, judge in it from 1 to 11; update from 20 to 25
    timer = Timer(read=lambda: next(ticks))
    with timer.part("rollout"), timer.part("judge"):
        pass
    with timer.part("update"):
        pass
    assert timer.seconds == {"rollout": 4, "judge": 10, "update": 5}
    assert timer.total == 19 and timer.peaks == {}


def test_a_part_that_fails_is_timed_too():
    ticks = iter([3, 5])
    timer = Timer(read=lambda: next(ticks))
    try:
        with timer.part("judge"):
            raise ValueError
    except ValueError:
        assert timer.seconds == {"judge": 2}


def test_each_part_has_its_own_peak():
    """What an inner part needs is not counted for the outer one, nor what was needed before it began."""
    most = iter([99, 5, 40, 7, 98, 20, 6])  # before; rollout; judge; rollout; before; rollout; judge
    timer = Timer(memory=lambda: next(most))
    with timer.part("rollout"), timer.part("judge"):
        pass
    with timer.part("rollout"):
        pass
    assert timer.peaks == {"rollout": 20, "judge": 40}
