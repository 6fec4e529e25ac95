"""The check of the exercise in lesson 00."""

import random

from utils.exercises import exercise, expect, number


@exercise("luck")
def check_chance(chance):
    share = number(chance(2))
    expect(share != 50, "for 2 names you returned 50: that is in percent; give a share up to 1")
    expect(share != 2, "for 2 names you returned 2: a share is never above 1; turn it over")
    expect(
        share == 0.5,
        f"for 2 names you returned {share:g}; a coin is right half of the time, so 0.5",
    )
    one = number(chance(1))
    expect(one == 1, f"with 1 name a guess is always right, so 1; you returned {one:g}")
    many = number(chance(150))
    expect(many != 0, "for 150 names you returned 0: `//` drops the fraction, `/` keeps it")
    expect(
        abs(many - 1 / 150) < 1e-4,
        f"for 150 names you returned {many:.4f}; one guess in 150 is right, which is 0.0067",
    )
    for names in random.Random(0).sample(range(3, 1000), 5):
        share = number(chance(names))
        expect(
            abs(share * names - 1) < 1e-2,
            f"for {names} names you returned {share:.4f}; one guess in {names} is right",
        )
    return f"among 150 names luck scores {many:.1%}"
