"""Lesson 02: answers that must be refused, each with its hint."""

import math

from utils.bricks import text_encoders

LESSON = "02"
GIVEN = vars(text_encoders) | {"math": math}  # what a learner has at hand at the end of the lesson

STEP = """
def bpe_step(words):
    counts = collections.Counter()
    for symbols, count in words.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] += count
    best = max(counts, key=lambda pair: (counts[pair], pair))
    return best, {merge(symbols, best): count for symbols, count in words.items()}
"""
FIRST_ONLY = """
def bpe_step(words):
    counts = collections.Counter()
    for symbols, count in words.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] += count
    best = max(counts, key=lambda pair: (counts[pair], pair))
    new = {}
    for symbols, count in words.items():
        for i, pair in enumerate(itertools.pairwise(symbols)):
            if pair == best:
                symbols = (*symbols[:i], "".join(best), *symbols[i + 2 :])
                break
        new[symbols] = count
    return best, new
"""
DECODE = """
def decode(ids, tokens):
    byte = {symbol: value for value, symbol in byte_alphabet().items()}
    joined = "".join(tokens[i] for i in ids if tokens[i] not in (START, END))
    words = joined.removesuffix(WORD_END).split(WORD_END)
    return " ".join(bytes(byte[s] for s in word).decode() for word in words)
"""
ONE_BY_ONE = """
def decode(ids, tokens):
    byte = {symbol: value for value, symbol in byte_alphabet().items()}
    text = ""
    for token in (tokens[i] for i in ids if tokens[i] not in (START, END)):
        stem = bytes(byte[s] for s in token.removesuffix(WORD_END))
        text += stem.decode(errors="replace") + " " * token.endswith(WORD_END)
    return text.strip()
"""
WINDOW = """
def window_mask(length, width):
    place = torch.arange(length)
    back = place[:, None] - place
    seen = (back >= 0) & (back < width)
    return torch.zeros(length, length).masked_fill(~seen, -torch.inf)
"""
POOL = """
def pool(states, ids, end):
    places = (ids == end).int().argmax(-1)
    return states[torch.arange(len(ids)), places]
"""
NEEDED = """
def merges_needed(texts, merges, target):
    for n in range(len(merges) + 1):
        t = Tokenizer(merges[:n])
        if sum(len(t.encode(text)) for text in texts) / len(texts) <= target:
            return n
    return None
"""

WRONG = [
    ("bpe_step", STEP, "+= count", "+= 1", "as often as its word occurs"),
    ("bpe_step", STEP, "return best, {", "return best\n    {", "the pair and the new"),
    ("bpe_step", STEP, "merge(symbols, best)", "symbols", "after merging a+t</w>"),
    (
        "bpe_step",
        STEP,
        "key=lambda pair: (counts[pair], pair)",
        "key=counts.get",
        "sorts last",
    ),
    ("bpe_step", STEP, "max(", "min(", "occurs 5 times"),
    (
        "bpe_step",
        STEP,
        "    return best",
        "    words.clear()\n    return best",
        "changed what you were given",
    ),
    (
        "bpe_step",
        STEP,
        "for pair in itertools.pairwise(symbols)",
        "for pair in set(itertools.pairwise(symbols))",
        "holds a+a twice",
    ),
    ("bpe_step", FIRST_ONLY, "becomes ab ab c"),
    (
        "bpe_step",
        STEP,
        "merge(symbols, best)",
        'tuple(" ".join(symbols).replace(" ".join(best), "".join(best)).split())',
        "xa is not a",
    ),
    ("bpe_step", STEP, "return best, {", "return str(best), {", "the pair and the new words"),
    (
        "bpe_step",
        STEP,
        "for symbols, count in words.items()}",
        "for symbols, count in words.items() if merge(symbols, best) != symbols}",
        "the words are",
    ),
    ("decode", DECODE, " not in (START, END)", "", "are not text"),
    ("decode", DECODE, '" ".join(bytes', '"".join(bytes', "run together"),
    ("decode", DECODE, ".removesuffix(WORD_END)", "", "between words only"),
    ("decode", DECODE, "return ", "return joined or ", "still holds </w>"),
    ("decode", DECODE, 'return " ".join(', "return list(", "not a list"),
    ("decode", DECODE, "in (START, END)", "in (END,)", "are not text"),
    ("decode", ONE_BY_ONE, "a third of a character"),
    (
        "decode",
        DECODE,
        "bytes(byte[s] for s in word).decode()",
        "word",
        "into its byte",
    ),
    ("window_mask", WINDOW, "back < width", "back <= width", "yours sees 3"),
    (
        "window_mask",
        WINDOW,
        "place[:, None] - place",
        "place - place[:, None]",
        "comes after",
    ),
    (
        "window_mask",
        WINDOW,
        "(back >= 0) & (back < width)",
        "back.abs() < width",
        "comes after",
    ),
    ("window_mask", WINDOW, "back >= 0", "back > 0", "0 on the diagonal"),
    ("window_mask", WINDOW, "-torch.inf", "-1.0", "leaks through"),
    ("window_mask", WINDOW, "return ", "return seen\n    ", "0.0 and -inf"),
    ("window_mask", WINDOW, "return ", "return ~seen * -torch.inf\n    ", "NaN"),
    ("window_mask", WINDOW, "(length, length)", "(1, length, length)", "not (5, 5)"),
    ("window_mask", WINDOW, "back < width", "back < 2", "plain causal mask"),
    ("window_mask", WINDOW, "back < width", "back <= width // 2", "yours sees 2"),
    ("window_mask", "def window_mask(n, w):\n    return [[0.0] * n] * n", "not a list"),
    ("window_mask", WINDOW, "-torch.inf)", "-torch.inf).numpy()", "not a ndarray"),
    ("window_mask", WINDOW, "-torch.inf)", "-torch.inf).exp().int()", "0.0 and -inf"),
    ("pool", POOL, "states[torch", "states.detach()[torch", "do not detach"),
    ("pool", POOL, "places]", "places].double()", "not torch.float64"),
    ("pool", POOL, "places]", "places].tolist()", "not a list"),
    (
        "pool",
        POOL,
        "places = (ids == end).int().argmax(-1)",
        "places = ids.shape[1] - 1 - (ids == end).flip(1).int().argmax(-1)",
        "the last",
    ),
    ("pool", POOL, "places]", "-1]", "it is padding"),
    ("pool", POOL, "places]", "0]", "START, which has seen nothing"),
    ("pool", POOL, "places]", "places - 1]", "one too early"),
    ("pool", POOL, "torch.arange(len(ids))", ":", "one vector a row"),
    (
        "pool",
        POOL,
        "states[torch.arange(len(ids)), places]",
        "states.mean(1)",
        "mean over all places",
    ),
    (
        "pool",
        POOL,
        "states[torch.arange(len(ids)), places]",
        "torch.stack([s[: p + 1].mean(0) for s, p in zip(states, places)])",
        "a bag of words",
    ),
    ("pool", POOL, "(ids == end).int()", "ids", "the id you are given"),
    ("pool", POOL, "(ids == end).int().argmax(-1)", "(ids != end).sum(-1)", "count nothing"),
    ("merges_needed", NEEDED, "<= target", "< target", "one too many"),
    ("merges_needed", NEEDED, "return n\n", "return max(0, n - 1)\n", "one too few"),
    ("merges_needed", NEEDED, "/ len(texts)", "", "you returned None"),
    ("merges_needed", NEEDED, "merges[:n]", "merges[-n:]", "the first merges"),
    ("merges_needed", NEEDED, "return None", "return len(merges)", "cannot be had"),
    ("merges_needed", NEEDED, "range(len", "range(1, len", "bytes alone"),
    ("merges_needed", NEEDED, "return n\n", "return float(n)\n", "is an int"),
]
RIGHT = [
    ("merges_needed", NEEDED),
    ("bpe_step", STEP.replace("return best, {", "return list(best), collections.Counter({").replace(
        "words.items()}", "words.items()})")),
    ("window_mask", WINDOW.replace("(length, length)", "(length, length).double()")),
    ("window_mask", "def window_mask(n, w):\n    rows = [[0.0 if 0 <= i - j < w else -math.inf "
     "for j in range(n)] for i in range(n)]\n    return torch.tensor(rows)"),
    ("pool", "def pool(states, ids, end):\n    return torch.stack([s[row.tolist().index(end)] "
     "for s, row in zip(states, ids)])"),
    ("decode", ONE_BY_ONE.replace('text += stem.decode(errors="replace")', "text += stem.decode("
     "'latin1')").replace("text.strip()", "text.strip().encode('latin1').decode()")),
]  # fmt: skip
