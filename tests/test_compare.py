"""Two values are told apart by what differs, and by nothing that does not."""

import math

import pytest
import torch

from utils.compare import difference, equal

GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.randn(4, 4, generator=GENERATOR)
WIDE = torch.randn(3, 5, generator=GENERATOR)
DEEP = torch.randn(2, 3, 4, generator=GENERATOR)
UNITS = torch.nn.functional.normalize(WIDE, dim=1)
MASK = torch.full((3, 3), -math.inf).triu(1)
ONE_ROW = torch.cat([WIDE[:2], WIDE[2:] + 1])

TOLD = [
    (None, WIDE, "nothing comes back; is a `return` missing?"),
    (WIDE.tolist(), WIDE, "a list comes back; it is a tensor of shape (3, 5)"),
    (WIDE.T, WIDE, "the shape is (5, 3), not (3, 5): two axes are swapped"),
    (DEEP.permute(2, 0, 1), DEEP, "the axes stand in another order"),
    (WIDE[None], WIDE, "an axis of length 1 is too many"),
    (WIDE[:, 0], WIDE[:, :1], "an axis of length 1 is missing"),
    (WIDE, WIDE.mean(1), "the shape is (3, 5), not (3,): a mean over axis 1 is missing"),
    (WIDE, WIDE.sum(0), "a sum over axis 0 is missing"),
    (WIDE.mean(0), WIDE, "a mean over axis 0 is one too many"),
    (WIDE, WIDE.mean(), "a mean over all of them is missing"),
    (WIDE[:2], WIDE, "the shape is (2, 5), not (3, 5)"),
    (WIDE.double(), WIDE, "the dtype is float64, not float32"),
    (WIDE > 0, WIDE, "the dtype is bool, not float32"),
    (WIDE / 0, WIDE, "15 of 15 numbers are nan or infinite"),
    (torch.zeros(3, 5), WIDE, "every number is 0"),
    (-WIDE, WIDE, "the sign is turned"),
    (WIDE * 3**0.5, WIDE, "every number is 1.73 times what it should be"),
    (WIDE + 0.5, WIDE, "every number is 0.5 too large"),
    (torch.arange(3), torch.arange(1, 4), "every number is 1 too small"),
    (TABLE.T, TABLE, "axes 0 and 1 are swapped"),
    (DEEP.flip(2), DEEP, "axis 2 runs backwards"),
    (WIDE.roll(1, 1), WIDE, "the numbers are shifted by one along axis 1"),
    (WIDE, UNITS, "the vectors point the right way, but their length is not 1"),
    (WIDE * torch.tensor([[1.0], [2], [3]]), WIDE, "but their lengths differ"),
    (TABLE[[1, 0, 3, 2]], TABLE, "the rows are right, but in another order"),
    (ONE_ROW, WIDE, "row 2 is wrong, at ["),
    (torch.cat([DEEP[:1], -DEEP[1:]]), DEEP, "row 1 is wrong, at ["),
    (MASK.nan_to_num(neginf=-1e9), MASK, "2 of 3 rows are wrong (the first is row 0), at ["),
    (TABLE.square(), TABLE, "stands"),
    (torch.tensor(3.0), torch.tensor(1.5), "3 comes back; it is 1.5: 2 times too large"),
    (torch.tensor(0.25), torch.tensor(2.0), "8 times too small"),
    (-0.5, 0.5, "-0.5 comes back; it is 0.5: the sign is turned"),
    (torch.tensor(0.5), 0.5, "a Tensor comes back; it is a float, `.item()` makes it one"),
    ("0.5", 0.5, "a str comes back; it is a float"),
    (True, 1, "a bool comes back; it is an int"),
    ("fox", "cat", "'fox' comes back; it is 'cat'"),
    ([1, 2], (1, 2), "a list comes back; it is a tuple"),
    ((1, 2), (1, 2, 3), "2 items come back; it is 3"),
    ((1, 3), (1, 2), "at place 1 3 comes back; it is 2"),
    ((WIDE, -WIDE), (WIDE, WIDE), "at place 1 the sign is turned"),
]


@pytest.mark.parametrize("seen, right, text", TOLD, ids=[text for *_, text in TOLD])
def test_a_difference_is_named(seen, right, text):
    assert not equal(seen, right)
    assert text in difference(seen, right)


SAME = [
    (WIDE * (1 + 1e-6), WIDE),
    (MASK, MASK.clone()),
    (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0])),
    (torch.zeros(0, 3), torch.zeros(0, 3)),
    (torch.zeros(4), torch.full((4,), 1e-8)),
    (1, 1.0),
    (0.1 + 0.2, 0.3),
    ((WIDE, "a", [None]), (WIDE.clone(), "a", [None])),
    ({"a": WIDE}, {"a": WIDE.clone()}),
]


@pytest.mark.parametrize("seen, right", SAME)
def test_equal_values_do_not_differ(seen, right):
    assert equal(seen, right) and difference(seen, right) is None


@pytest.mark.parametrize("seed", range(20))
def test_no_cause_is_named_that_would_not_mend_it(seed):
    """Random numbers are neither turned nor scaled nor moved: only their place is told."""
    generator = torch.Generator().manual_seed(seed)
    seen, right = torch.randn(2, 3, 3, generator=generator)
    assert difference(seen, right).startswith("at [")


def test_whole_numbers_must_agree_exactly():
    many = torch.full((3,), 10_000_000)
    assert not equal(many + 1, many)
