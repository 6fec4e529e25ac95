"""The blanks of lesson 02."""

import itertools
from collections import Counter

import torch

from utils.bricks import text_encoders as bricks
from utils.bricks.text_encoders import END, START, byte_alphabet, causal_mask
from utils.bricks.text_encoders import end_positions as ends_of
from utils.compare import difference
from utils.costs import speedup
from utils.device import pick
from utils.exercises import NotTried, expect
from utils.practice import Checks, attempt

check = Checks(bricks)

# ---------------------------------------------------------------- byte-pair encoding

TEXTS = [
    "a red fox and a red panda",
    "the reddest of red foxes, ready to read",
    "panda, panda, panda: a hand and a band",
    "微笑的猫 微笑的狐狸",
    "funny sunny sun, sunset and bunny",
]


def merge_cases(generator):
    yield ("s", "u", "n", "n", "y</w>"), ("n", "n")
    yield ("a", "a", "a"), ("a", "a")  # from the left: aa + a
    yield ("b", "a", "a", "a", "a", "b"), ("a", "a")
    yield ("n", "u", "n"), ("u", "n")
    yield ("ab", "c", "a", "bc"), ("ab", "c")  # the same letters, cut in another way
    yield ("xab", "c"), ("ab", "c")
    yield ("x",), ("x", "y")
    for _ in range(20):
        letters = torch.randint(0, 3, (9,), generator=generator).tolist()
        symbols = tuple("abc"[i] for i in letters)
        yield symbols, symbols[2:4]


def merge_first(symbols, pair):
    for i in range(len(symbols) - 1):
        if symbols[i : i + 2] == pair:
            return (*symbols[:i], "".join(pair), *symbols[i + 2 :])
    return symbols


def merge_each_pair(symbols, pair):
    merged = [
        "".join(pair) if symbols[i : i + 2] == pair else symbols[i] for i in range(len(symbols))
    ]
    return tuple(merged)


def merge_last(symbols, pair):
    turned = bricks.merge(tuple(x[::-1] for x in symbols[::-1]), tuple(x[::-1] for x in pair[::-1]))
    return tuple(x[::-1] for x in turned[::-1])


check.function(
    "merge",
    "Walk with an index. If the symbols at i and i + 1 are the pair, append them joined and go on "
    "by two; if not, append one symbol and go on by one. A slice beyond the end is no error.",
    merge_cases,
    {
        "only the first occurrence is merged; go on to the end": merge_first,
        "after a merge the second symbol of the pair comes again: go on by two": merge_each_pair,
        "pairs overlap here: merge from the left": merge_last,
    },
)


@check.blank(
    "learn_merges",
    "Count once: how often each pair occurs, and which words hold it. Then, for each merge, only "
    "the words that hold the best pair change: take their old pairs off the counts, merge, add "
    "their new pairs.",
)
def judge_learn_merges(answer, shipped):
    for texts, count in (TEXTS[:1], 3), (TEXTS, 12), (TEXTS, 200), (["a"], 5), ([], 5):
        # texts may be read but once, like the lines of a file
        seen, right = attempt(answer, iter(texts), count), shipped(texts, count)
        if seen is Ellipsis:
            raise NotTried
        if not isinstance(seen, list) or not all(isinstance(pair, tuple) for pair in seen):
            expect(not difference(seen, right), difference(seen, right))
        expect(
            len(seen) == len(right),
            f"{count} merges of {len(texts)} texts: you found {len(seen)}, it is {len(right)}: "
            "as many as asked for, or all there are",
        )
        words = sorted({word for text in texts for word in bricks.split_words(text)})
        expect(
            seen == right or seen != shipped(words, count),
            "a word that occurs 3 times counts each of its pairs 3 times",
        )
        for place, (mine, best) in enumerate(zip(seen, right, strict=True)):
            expect(mine == best, why_not(mine, best, texts, right[:place]))
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 109, (1500, 6), generator=generator, dtype=torch.uint8)
    texts = [bytes(word.tolist()).decode() for word in letters]
    slower = speedup(lambda: answer(texts, 150), lambda: shipped(texts, 150), turns=2)
    expect(
        slower < 4,
        f"the merges are right, but take {slower:.0f} times as long as with the shipped brick: "
        "after a merge count again only the words that it changed",
    )


def why_not(mine, best, texts, merges) -> str:
    """Why this merge should not come next after the first ones."""
    words, found = [word for text in texts for word in bricks.split_words(text)], Counter()
    for symbols in map(bricks.word_symbols, words):
        for pair in merges:
            symbols = bricks.merge(symbols, pair)
        found.update(itertools.pairwise(symbols))
    said = f"merge {len(merges)} is {mine}, not {best}"
    if found[mine] == found[best]:
        return f"{said}: both occur {found[best]} times, and of these the one that sorts last wins"
    return (
        f"{said}: by now the one occurs {found[mine]} times and the other {found[best]}; are the "
        "counts of changed words kept up to date?"
    )


# ---------------------------------------------------------------- the tokenizer

MERGES = bricks.learn_merges(TEXTS, 60)


def letters(length: int, generator) -> str:
    """A random word of few letters, in which many pairs overlap."""
    return "".join("abc"[i] for i in torch.randint(0, 3, (length,), generator=generator))


def word_cases(generator):
    merges = bricks.learn_merges([letters(5, generator) for _ in range(60)], 40)
    for word in ("a", "bee", "猫", "é", START, END, *(letters(9, generator) for _ in range(9))):
        yield {"merges": merges}, (word,)


def encode_word(choose, symbols_of=bricks.word_symbols, special=True):
    """`encode_word` that chooses the next merge, or spells a word, in a way of its own."""

    def encode_word(self, word):
        if special and word in (START, END):
            return self.cache[word]
        symbols = symbols_of(word)
        while known := [p for p in itertools.pairwise(symbols) if p in self.ranks]:
            symbols = bricks.merge(symbols, choose(self, known))
        return [self.ids[symbol] for symbol in symbols]

    return encode_word


def earliest(self, known):
    return min(known, key=self.ranks.get)


def spelt(word):
    return tuple(byte_alphabet()[byte] for byte in word.encode())


check.method(
    "Tokenizer.encode_word",
    "Start from `word_symbols(word)`. Of the neighbours that are a learnt pair (`self.ranks`), "
    "`merge` the one with the smallest rank; repeat until none is left. `self.cache` remembers "
    "words that were encoded before, and knows START and END from the beginning.",
    word_cases,
    {
        "this takes the latest merge first; the earliest learnt one has the smallest rank": (
            encode_word(lambda self, known: max(known, key=self.ranks.get))
        ),
        "this merges from left to right; the earliest learnt pair comes first, wherever it is": (
            encode_word(lambda self, known: known[0])
        ),
        "START and END are no words to spell: their ids are in `self.cache`": (
            encode_word(earliest, special=False)
        ),
        "the last symbol of a word carries `WORD_END`: spell it with `word_symbols`": (
            encode_word(earliest, spelt)
        ),
    },
)


def prompt_cases(generator):
    for context in (32, 8):
        settings = {"merges": MERGES, "context": context}
        yield settings, (["a red fox"],)
        yield settings, (["a panda", "猫", "the reddest of red foxes, ready to read", ""],)


def table(start=True, end=True, room=2, late=False, pad=None, full=False):
    """`Tokenizer.__call__` with a part left out or done in another way."""

    def call(self, prompts):
        first, last = [self.start][: int(start)], [self.end][: int(end)]
        rows = []
        for prompt in prompts:
            ids = self.encode(prompt)
            cut = (first + ids + last)[: self.context]
            rows.append(cut if late else first + ids[: self.context - room] + last)
        length = self.context if full else max(map(len, rows))
        filler = self.end if pad is None else pad
        return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

    return call


check.method(
    "Tokenizer.__call__",
    "One list a prompt: `self.start`, at most context − 2 ids of `self.encode(prompt)`, "
    "`self.end`. Then fill each list with `self.end` up to the longest.",
    prompt_cases,
    {
        "a prompt is cut before END is put behind it, or a long one has no END": table(late=True),
        "START and END need two places: at most context − 2 ids of a text fit between": table(
            room=1
        ),
        "the padding is END, not 0": table(pad=0),
        "the rows are as long as the longest of this batch, not as the whole context": table(
            full=True
        ),
        "START is missing in front": table(start=False),
        "END is missing behind the text": table(end=False),
    },
)

# ---------------------------------------------------------------- from ids to vectors

VOCAB = 20
END_ID = VOCAB - 1


def token_ids(rows: int, length: int, generator) -> torch.Tensor:
    """Random ids with a first END at a random place; after it stand END or other ids."""
    ids = torch.randint(0, END_ID, (rows, length), generator=generator)
    first = torch.randint(1, length, (rows, 1), generator=generator)
    places = torch.arange(length)
    padding = torch.where(torch.arange(rows)[:, None] % 2 == 0, END_ID, 0)
    ids = torch.where(places > first, padding, ids)
    return torch.where(places == first, END_ID, ids)


def end_cases(generator):
    for rows, length in (1, 3), (2, 5), (6, 9):
        yield token_ids(rows, length, generator), END_ID


check.function(
    "end_positions",
    "`ids == end` is True at every END. Which place does `argmax` give when several are equally "
    "large? (It wants numbers, not truth values.)",
    end_cases,
    {
        "this is the last END; padding repeats it, so the caption ends at the first": (
            lambda ids, end: ids.shape[1] - 1 - (ids == end).int().flip(1).argmax(1)
        ),
        "this is the last place of the table, not the first END of a row": (
            lambda ids, end: torch.full((len(ids),), ids.shape[1] - 1)
        ),
        "this counts what is not END; after the first END something else may stand, such as the "
        "0 with which OpenAI pads": lambda ids, end: (ids != end).sum(-1),
        "this is the place after END": lambda ids, end: (ids == end).int().argmax(-1) + 1,
        "this is how many END there are, not where the first one is": (
            lambda ids, end: (ids == end).sum(-1)
        ),
    },
)


def id_cases(generator):
    for rows, length in (1, 4), (5, 7):
        yield {"vocab": VOCAB, "width": 6}, (token_ids(rows, length, generator),)


def bag(upto=0, divide=True, norm=True, bend=True, every=False):
    """`BagOfWords.forward` with a part left out."""

    def forward(self, ids):
        last = ids.shape[1] if every else ends_of(ids, self.end)[:, None] + upto
        real = (torch.arange(ids.shape[1]) <= last).unsqueeze(-1).expand(len(ids), -1, 1)
        mean = (self.tokens(ids) * real).sum(1) / (real.sum(1) if divide else 1)
        hidden = self.fc1(self.norm(mean) if norm else mean)
        return self.fc2(torch.relu(hidden) if bend else hidden)

    return forward


check.method(
    "BagOfWords.forward",
    "Make a mask that is True up to the first END (`torch.arange` against `end_positions`). "
    "Multiply the token vectors by it, add up over the row, divide by how many there are. Then "
    "norm, `fc1`, ReLU, `fc2`.",
    id_cases,
    {
        "the padding behind the first END counts here; the mean stops at END": bag(every=True),
        "END itself belongs to the mean: up to END and with it": bag(upto=-1),
        "this is a sum; divide it by the number of tokens up to END": bag(divide=False),
        "`self.norm` is not used": bag(norm=False),
        "the ReLU between `fc1` and `fc2` is missing": bag(bend=False),
    },
)


def mask_cases(generator):
    yield (1,)
    yield (5,)
    yield 8, pick()


def full(length, value, device=None):
    return torch.full((length, length), value, device=device)


check.function(
    "causal_mask",
    "`torch.full` makes a square of −∞, and `triu(1)` keeps what lies above the diagonal.",
    mask_cases,
    {
        "a token may look at itself, so the diagonal is 0": (
            lambda length, device=None: full(length, -torch.inf, device).triu()
        ),
        "this hides the past and shows the future: row i may look at the columns up to i": (
            lambda length, device=None: full(length, -torch.inf, device).tril(-1)
        ),
        "0 · ∞ is nan; fill with −∞ first, then keep the triangle": (
            lambda length, device=None: full(length, 1.0, device).triu(1) * -torch.inf
        ),
        "these are truth values; the mask is added to the scores: 0 and −∞": (
            lambda length, device=None: full(length, True, device).tril()
        ),
        "these are truth values, True where a token may not look; the mask is added to the "
        "scores: 0 and −∞": lambda length, device=None: full(length, True, device).triu(1),
        "this is 1 where a token may look; the mask is added to the scores, so 0 lets a score "
        "pass and −∞ removes it": lambda length, device=None: full(length, 1.0, device).tril(),
        "a large negative number is not −∞: a weight should be exactly 0": (
            lambda length, device=None: full(length, -1e9, device).triu(1)
        ),
        "the mask lies on the CPU whatever the `device` is": (
            lambda length, device=None: causal_mask(length)
        ),
    },
)


def state_cases(generator):
    settings = {"vocab": VOCAB, "context": 9, "width": 8, "depth": 2, "heads": 2}
    for rows, length in (1, 4), (3, 7):
        ids = token_ids(rows, length, generator)
        yield settings, (ids,)
        yield settings, (ids, torch.zeros(length, length))
        yield settings, (ids, causal_mask(length).T)


def states(positions=True, mask_of=None, norm=True, last_too=True):
    """`TextTransformer.states` with a part left out; mask_of chooses the mask."""

    def states(self, ids, mask=None):
        length = ids.shape[1]
        mask = mask_of(mask, length) if mask_of else causal_mask(length) if mask is None else mask
        x = self.embed(ids) if positions else self.tokens(ids)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask)
        x = last(x, mask if last_too else None)
        return self.norm(x) if norm else x

    return states


check.method(
    "TextTransformer.states",
    "`self.embed`, then block after block with the mask, which is causal if none is given; "
    "`self.norm` at the end.",
    state_cases,
    {
        "no positions: the tower could not tell one order from another": states(positions=False),
        "without a mask given it is causal; yours lets every token see all": states(
            mask_of=lambda mask, length: mask
        ),
        "a mask that is given takes the place of the causal one": states(
            mask_of=lambda mask, length: causal_mask(length)
        ),
        "the mask goes to no block": states(mask_of=lambda mask, length: None),
        "the last block needs the mask as well": states(last_too=False),
        "`self.norm` after the last block is missing": states(norm=False),
    },
)
