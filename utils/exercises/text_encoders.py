"""Checks of the exercises in lesson 02."""

import random

import torch

from utils.bricks.text_encoders import Tokenizer, learn_merges
from utils.exercises import draws, exercise, expect, several, tensor, whole

TEXTS = ("red fox", "red foxes", "the red cat", "猫", "红色的猫", "a fox and a cat")


@exercise("both ways, without the padding")
def check_padding_mask(padding_mask):
    rng = random.Random(0)
    for seed in range(8):
        b, length, end = rng.randint(2, 6), rng.randint(4, 9), rng.randint(3, 9)
        dice = torch.Generator().manual_seed(seed)
        ends = torch.randint(1, length, (b,), generator=dice)
        ends[:2] = torch.tensor([length - 1, 1])
        ids = torch.randint(12, (b, length), generator=dice)
        ids[ids == end] = end + 1
        places = torch.arange(length)
        if seed % 2 == 0:
            ids[places > ends[:, None]] = end  # padded with END
        ids[torch.arange(b), ends] = end
        answer = tensor(padding_mask(ids, end))
        expect(
            tuple(answer.shape) == (b, 1, length),
            f"one row for each prompt, the same for every token that asks: {(b, 1, length)}, "
            f"not {tuple(answer.shape)}",
        )
        expect(
            answer.is_floating_point(),
            f"the mask is added to scores: it holds 0.0 and -inf, yours is {answer.dtype}",
        )
        expect(not answer.isnan().any(), "there is a NaN: 0 · inf is not a number")
        seen = (answer == 0)[:, 0]
        expect(
            (answer[:, 0][~seen] == -torch.inf).all(),
            "where a token may not look stands −inf; anything else leaks through",
        )
        at_end = seen[torch.arange(b), ends]
        expect(at_end.all(), "the first END belongs to the prompt: it may be looked at")
        expect(
            not (seen & (places > ends[:, None])).any(),
            "a token after the first END may still be looked at; what follows END is padding",
        )
        expect(
            torch.equal(seen, places <= ends[:, None]),
            "both ways: every token up to END may be looked at, by all",
        )
    return "nobody looks at padding, and everybody at the rest"


@exercise("whose neighbour is it")
def check_neighbours(neighbours):
    rng = random.Random(0)
    for seed in range(8):
        tokens, width = rng.randint(8, 30), rng.randint(2, 6)
        k, i = rng.randint(2, 6), rng.randrange(tokens)
        lengths = torch.rand(tokens, 1, generator=torch.Generator().manual_seed(seed)) * 4 + 0.2
        table = draws(tokens, width, seed=seed) * lengths
        units = table / table.norm(dim=1, keepdim=True)
        cosines = units @ units[i]

        def best(scores, count=k, without=i):
            scores = scores.clone()
            if without is not None:
                scores[without] = -torch.inf
            return scores.topk(count).indices.tolist()

        what = f"return {k} ids, the nearest first"
        answer = several(neighbours(table, i, k), k, what, whole)
        right = best(cosines)
        hints = {
            "token i is nearest to itself: leave it out": best(cosines, without=None),
            "these are products, which favour long vectors; a cosine is of unit vectors": (
                best(table @ table[i])
            ),
            "these are the nearest by distance; the lengths count there, too": (
                best(-(table - table[i]).norm(dim=1))
            ),
            "these are the farthest": best(-cosines),
        }
        for hint, ids in hints.items():
            expect(answer == right or answer != ids, hint)
        expect(
            answer == right or sorted(answer) != sorted(right),
            "these are the right ones, but the nearest comes first",
        )
        expect(answer == right, f"of {tokens} tokens {right} are nearest to {i}; yours: {answer}")
    return "alike is what training made alike"


@exercise("longer than the context")
def check_in_parts(in_parts):
    def rows_of(ids, context):
        rows = in_parts(ids, context, 98, 99)
        held = isinstance(rows, list | tuple) and all(isinstance(r, list | tuple) for r in rows)
        expect(held, "return a list of rows, each a list of ids")
        return [list(map(int, row)) for row in rows]

    rng = random.Random(0)
    sizes = [(0, 8), (12, 8), (13, 8), (5, 8), (6, 8)]
    sizes += [(rng.randint(1, 60), rng.randint(3, 12)) for _ in range(10)]
    for count, context in sizes:
        ids = [rng.randrange(90) for _ in range(count)]
        rows = rows_of(ids, context)
        expect(rows, "without tokens there is one row still: START and END")
        wrong = next((r for r in rows if not r or r[0] != 98 or r[-1] != 99), None)
        expect(wrong is None, f"each row begins with START and closes with END; one is {wrong}")
        longest = max(map(len, rows))
        expect(
            longest <= context,
            f"START and END count, too: a row of {longest} does not fit a context of {context}",
        )
        inside = [i for row in rows for i in row[1:-1]]
        expect(
            len(inside) >= count,
            f"of {count} tokens {count - len(inside)} fell away; the last part may be short",
        )
        expect(inside == ids, "each token comes once, in the order given")
        expect(
            count == 0 or [98, 99] not in rows,
            f"{count} tokens in a context of {context}: the last row is empty",
        )
        fewest = max(1, -(-count // (context - 2)))
        expect(
            len(rows) == fewest,
            f"{count} tokens fit into {fewest} rows of {context}; yours are {len(rows)}",
        )
    return "no word of a long prompt is lost"


@exercise("a window")
def check_window_mask(window_mask):
    rng = random.Random(0)
    sizes = [(5, 2), (4, 9), (6, 3), (1, 1)]
    sizes += [(rng.randint(2, 20), rng.randint(1, 12)) for _ in range(8)]
    for length, width in sizes:
        answer = tensor(window_mask(length, width), (length, length))
        expect(
            answer.is_floating_point(),
            f"the mask is added to scores: it holds 0.0 and -inf, yours is {answer.dtype}",
        )
        expect(not answer.isnan().any(), "there is a NaN: 0 · inf is not a number")
        expect(
            (answer.diagonal() == 0).all(),
            "a token may always look at itself: 0 on the diagonal",
        )
        seen = answer == 0
        expect(
            (answer[~seen] == -torch.inf).all(),
            "where a token may not look stands −inf; anything else leaks through",
        )
        place = torch.arange(length)
        back = place[:, None] - place
        expect(
            not (seen & (back < 0)).any(),
            "a token sees one that comes after it; is the mask the wrong way round?",
        )
        right = (back >= 0) & (back < width)
        expect(
            width < length or torch.equal(seen, right),
            "a window wider than the text is the plain causal mask",
        )
        expect(
            torch.equal(seen, right),
            f"with width {width} the last of {length} tokens sees {int(right[-1].sum())} tokens, "
            f"itself included; yours sees {int(seen[-1].sum())}",
        )
    return "each token sees itself and a little of the past"


@exercise("how large a vocabulary")
def check_merges_needed(merges_needed):
    merges = learn_merges(TEXTS, 25)

    def mean(n: int) -> float:
        tokenizer = Tokenizer(merges[:n])
        return sum(len(tokenizer.encode(text)) for text in TEXTS) / len(TEXTS)

    means = [mean(n) for n in range(len(merges) + 1)]
    answer = merges_needed(list(TEXTS), merges, 1000)
    expect(answer == 0, f"bytes alone are shorter than 1000: 0 merges, not {answer}")
    rng = random.Random(0)
    for target in (means[0] / 2, means[7], means[-1], *(rng.choice(means) for _ in range(3))):
        right = next(n for n, value in enumerate(means) if value <= target)
        answer = merges_needed.__wrapped__(list(TEXTS), merges, target)
        expect(
            answer is not None,
            f"{right} merges give {target:.2f} tokens a text; you returned None. Count "
            "encode(text), without START and END, and take the mean over texts",
        )
        expect(not isinstance(answer, float), "the number of merges is an int, not a float")
        answer = whole(answer, "the number of merges is an int")
        expect(
            answer != right + 1,
            f"one too many: {right} merges already reach {target:.2f} tokens a text "
            "(at most the target, not less)",
        )
        expect(
            answer != right - 1,
            f"one too few: merges[:{answer}] gives more than {target:.2f} tokens",
        )
        expect(
            answer == right,
            f"for {target:.2f} tokens a text {right} merges are needed, not {answer}; "
            "is it the mean over texts, and the first merges?",
        )
    answer = merges_needed.__wrapped__(list(TEXTS), merges, 0.5)
    expect(answer is None, f"half a token a text cannot be had: None, not {answer}")
    return "now the price of a shorter text is a number"
