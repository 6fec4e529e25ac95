"""What a way to a result costs: measured against what is known beforehand."""

import pytest
import torch

from utils import costs


def work(n: int) -> int:
    return sum(i * i for i in range(n))


def test_a_tenth_of_the_work_is_several_times_faster():
    gain = costs.speedup(lambda: work(200_000), lambda: work(20_000))
    assert gain > 4
    assert costs.speedup(lambda: work(20_000), lambda: work(200_000)) < 0.25


def test_both_run_in_turns_on_one_thread_which_is_undone():
    threads, seen = torch.get_num_threads(), []

    def run(name: str) -> None:
        seen.append((name, torch.get_num_threads()))
        work(1000)

    costs.speedup(lambda: run("slow"), lambda: run("fast"), turns=2)
    assert seen == [("slow", 1), ("fast", 1)] * 2
    with pytest.raises(ZeroDivisionError):
        costs.speedup(lambda: 1 / 0, lambda: run("fast"))
    assert torch.get_num_threads() == threads


def test_what_is_kept_is_counted_once():
    x = torch.ones(3, 5, requires_grad=True)
    assert costs.kept(lambda: x * 2) == 0  # its gradient needs nothing
    assert costs.kept(lambda: x * x) == 15
    assert costs.kept(lambda: x.exp()) == 15
    assert costs.kept(lambda: x.exp().exp()) == 30
