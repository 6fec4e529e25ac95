"""Checks of the exercises in lesson 02."""

import itertools
import random
from collections import Counter

import torch

from utils.bricks.text_encoders import END, START, Tokenizer, learn_merges, merge
from utils.exercises import draws, exercise, expect, judge, tensor, whole

TEXTS = ("red fox", "red foxes", "the red cat", "猫", "红色的猫", "a fox and a cat")


ROUND = "return the pair and the new words"


def round_of(words: dict) -> tuple:
    """The answer: the pair that is merged, and the new words."""
    counts = Counter()
    for symbols, count in words.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] += count
    pair = max(counts, key=lambda pair: (counts[pair], pair))
    return pair, {merge(symbols, pair): count for symbols, count in words.items()}


def some_words(seed: int) -> dict:
    """Random words, no two of the same letters; symbols end in one another, pairs come twice."""
    rng, words = random.Random(seed), {}
    for _ in range(rng.randint(1, 5)):
        symbols = [rng.choice(("a", "b", "xa", "bx", "ab")) for _ in range(rng.randint(1, 7))]
        symbols.append(rng.choice(("a</w>", "b</w>", "xa</w>")))
        if "".join(symbols) not in map("".join, words):
            words[tuple(symbols)] = rng.randint(1, 4)
    return words


@exercise("count and merge")
def check_bpe_step(bpe_step):
    def answer(words):
        found = bpe_step(words)
        expect(
            isinstance(found, tuple | list) and len(found) == 2,
            f"you returned a {type(found).__name__}; {ROUND}",
        )
        pair, new = found
        expect(isinstance(pair, tuple | list) and len(pair) == 2, f"you returned {found}; {ROUND}")
        expect(isinstance(new, dict), "the second part is a dict: symbols → count")
        return tuple(pair), dict(new)

    words = {("c", "a", "t</w>"): 1, ("c", "a", "r</w>"): 1, ("c", "a", "p</w>"): 1}
    words |= {("a", "t</w>"): 4}
    pair, new = answer(words)
    expect(
        pair != ("c", "a"),
        "c+a stands in 3 words, which occur once each; a+t</w> occurs 1 + 4 times: "
        "a pair counts as often as its word occurs",
    )
    expect(pair == ("a", "t</w>"), f"a+t</w> occurs 5 times; you chose {pair}")
    right = round_of(words)[1]
    expect(new == right, f"after merging a+t</w> the words are {right}, yours are {new}")

    tie, _ = answer({("a", "b", "c</w>"): 1})
    expect(
        tie == ("b", "c</w>"),
        f"for 'abc' both pairs occur once; the one that sorts last wins, not {tie}",
    )
    pair, new = answer({("a", "a", "a", "b</w>"): 3})
    expect(
        pair == ("a", "a") and list(new) == [("aa", "a", "b</w>")],
        f"'aaab' holds a+a twice, and merged from the left it is aa a b; yours is {pair} and {new}",
    )
    pair, new = answer({("a", "b", "a", "b", "c</w>"): 1})
    expect(
        pair == ("a", "b") and list(new) == [("ab", "ab", "c</w>")],
        f"'ababc' holds a+b twice and becomes ab ab c; yours is {pair} and {new}",
    )
    pair, new = answer({("a", "b</w>"): 9, ("xa", "b</w>"): 1})
    expect(
        ("xa", "b</w>") in new,
        f"symbols are compared whole, and xa is not a: xa+b</w> stays; yours are {new}",
    )
    for seed in range(20):
        words = some_words(seed)
        found, right = answer(words), round_of(words)
        expect(found[0] == right[0], f"{words}: {right[0]} is merged, you chose {found[0]}")
        expect(found[1] == right[1], f"{words} become {right[1]}, yours are {found[1]}")
    return "that is one round of BPE"


@exercise("from ids back to text")
def check_decode(decode):
    tokenizer = Tokenizer(learn_merges(TEXTS, 12))
    ids = tokenizer.encode("red fox")
    answer = decode(ids, tokenizer.tokens)
    expect(isinstance(answer, str), f"a text is a str, not a {type(answer).__name__}")
    expect("</w>" not in answer, f"{answer!r} still holds </w>: words end there")
    expect(answer != "redfox", "the words run together: put a space between them")
    expect(answer == answer.strip(), f"{answer!r}: spaces stand between words only")
    expect(answer == "red fox", f"'red fox' came back as {answer!r}")

    ids = tokenizer([TEXTS[1]])[0].tolist() + [tokenizer.end] * 2
    answer = decode(ids, tokenizer.tokens)
    expect(START not in answer and END not in answer, "START and END are not text")
    expect(answer == TEXTS[1], f"{TEXTS[1]!r} with START and END gave {answer!r}")

    plain = Tokenizer([])
    try:
        answer = decode(plain.encode("猫 café 🐈"), plain.tokens)
    except UnicodeDecodeError:
        answer = "�"
    expect(
        "�" not in answer,
        "a token may hold a third of a character: join the bytes of a word first",
    )
    expect(
        answer == "猫 café 🐈",
        f"'猫 café 🐈' came back as {answer!r}: turn each symbol into its byte",
    )
    rng = random.Random(0)
    for merges in (0, 3, 9, 20):
        tokenizer = Tokenizer(learn_merges(TEXTS, merges))
        text = " ".join(rng.choices(" ".join(TEXTS).split(), k=rng.randint(1, 6)))
        ids = [tokenizer.start, *tokenizer.encode(text), tokenizer.end]
        answer = decode(ids, tokenizer.tokens)
        expect(answer == text, f"{text!r} with {merges} merges came back as {answer!r}")
    return "every script comes back whole"


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


@exercise("the vector at END")
def check_pool(pool):
    rng = random.Random(0)
    for seed in range(8):
        b, length, width = rng.randint(2, 6), rng.randint(4, 9), rng.randint(1, 5)
        end = 9 if seed < 3 else rng.randint(0, 9)
        dice = torch.Generator().manual_seed(seed)
        places = torch.randint(1, length, (b,), generator=dice)
        places[:2] = torch.tensor([length - 1, 1])
        ids = torch.randint(12, (b, length), generator=dice)
        ids[ids == end] = end + 1
        ids[torch.arange(b), places] = end
        after = torch.arange(length) > places[:, None]
        if seed < 3:  # padded with END, and END is the largest
            ids[ids > end] = 1
            ids[after] = end
        elif seed < 6:  # what follows END may be anything
            ids[after & (torch.rand(b, length, generator=dice) < 0.5)] = end
        states = draws(b, length, width, seed=seed).requires_grad_()
        answer = tensor(pool(states, ids, end))
        expect(
            tuple(answer.shape) == (b, width),
            f"one vector a row: {(b, width)}, not {tuple(answer.shape)}",
        )
        rows = torch.arange(b)
        upto = torch.stack([states[i, : p + 1].mean(0) for i, p in enumerate(places)])
        judge(
            answer,
            states[rows, places],
            {
                "that is the last place of the table; in a short row it is padding": states[:, -1],
                "that is START, which has seen nothing yet": states[:, 0],
                "that is the mean up to END, a bag of words; take the one vector at END": upto,
                "that is the mean over all places, padding too; take the one vector at END": (
                    states.mean(1)
                ),
                "that is the token before END, one too early": states[rows, places - 1],
                "END is the id you are given, not always the largest in the row": (
                    states[rows, ids.argmax(-1)]
                ),
                "what follows END may be anything; look for the first END, count nothing": (
                    states[rows, (ids != end).sum(-1).clamp(max=length - 1)]
                ),
                "that is the last END; those after the first are padding": (
                    states[rows, length - 1 - (ids == end).flip(1).int().argmax(-1)]
                ),
            },
            f"the first END of the rows stands at places {places.tolist()}; yours are others",
        )
        expect(answer.dtype == states.dtype, f"the states are {states.dtype}, not {answer.dtype}")
        expect(answer.requires_grad, "no gradient comes back to the states: do not detach")
    return "the vector that has read the whole caption"


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
