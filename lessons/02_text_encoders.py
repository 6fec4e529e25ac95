# ---
# jupyter:
#   brick: text_encoders
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Text encoders: bytes, bags of words, attention masks
#
# ![A caption becomes tokens, each token a vector, and a tower turns the row of vectors
# into one](../assets/figures/02_text_encoder.svg)
#
# Lesson 01 turned a picture into one vector. This one does the same to a caption.
# **How does a text of any length, in any script, become one vector, and what does each
# word get to see on the way?**

# %%
import html
import random
from html.parser import HTMLParser
from pathlib import Path

from utils import costs, data, device, plots, training, widgets

train, unseen = data.load_emoji("train"), data.load_emoji("unseen")

# %% [markdown]
# ## What a caption is
#
# A picture on a web page often comes with words: `alt` is for people who cannot see it,
# `title` appears under the mouse. Whoever wrote them wrote an image–text pair. Data
# sets have been built this way: Conceptual Captions (Sharma et al. 2018) cleaned 3.3
# million `alt` texts. Here is a small page of our own, `assets/page/index.html`. Read
# tags with a parser, not with a pattern: quotes, capitals, comments and entities such
# as `&amp;` follow rules that a browser knows, and Python's parser knows them too.


# %%
class PairCollector(HTMLParser):
    """Collects (picture, attribute, text) for every picture that has words."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def handle_starttag(self, tag, attributes):
        values = {name: " ".join((value or "").split()) for name, value in attributes}
        if tag == "img":
            found = [(a, values[a]) for a in ("alt", "title") if values.get(a)]
            self.pairs += [(values["src"], *pair) for pair in found]


collector = PairCollector()
collector.feed(Path("../assets/page/index.html").read_text(encoding="utf-8"))
for source, attribute, text in collector.pairs[:5]:
    print(f"{source:16} {attribute:6} {text}")

# %% [markdown]
# A caption may say little about its picture. And some pictures have none: `alt=""` says
# that a picture is decoration, and many authors forget.
#
# Emoji-4, the data of this course, has no page around it. Its captions are drawn from
# labels, keywords and templates, in two languages.

# %%
rng = random.Random(9)
for i in data.draw(train, 5, rng):
    print(train.caption(i, rng))

# %% [markdown]
# ## Text is bytes
#
# A model wants numbers. A vocabulary of whole words has no number for the word it has
# never met. But every text, in every script, is a row of bytes (UTF-8), and there are
# only 256 of them. **With a token for each byte, no text is unknown.**

# %%
for text in ("cat", "café", "猫", "🐈"):
    print(f"{text}\t{len(text)} characters\t{list(text.encode())}")

# %% [markdown]
# Many bytes have no sign to print: a space, a line end, the three parts of 猫. CLIP and
# GPT-2 give each byte a printable character, so that tokens can be read and stored as
# text. Bytes that are printable stay; the others get the characters from number 256 on.

# %% tags=["brick"]
import collections
import functools
import heapq
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from utils.bricks.attention import Block, state_at
from utils.given import takes

# %% tags=["brick"]
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


@functools.cache
def byte_alphabet() -> dict[int, str]:
    """One printable character for each of the 256 bytes, CLIP's and GPT-2's choice."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # already printable
    others = [byte for byte in range(256) if byte not in kept]
    spare = dict(zip(others, map(chr, itertools.count(256)), strict=False))
    return {byte: chr(byte) for byte in kept} | spare


# %%
assert len(set(byte_alphabet().values())) == 256
for text in ("cat", "café", "猫", "🐈"):
    print(text, "→", "".join(byte_alphabet()[byte] for byte in text.encode()))

# %% [markdown]
# ## Words first
#
# Bytes alone make long rows: one Chinese character costs three tokens. Common runs of
# bytes should become one token. Such a run should not cross from one word into the
# next, or `dog.`, `dog!` and `dog,` would each need a token. So the text is cut first:
# letters together, digits one by one, other signs together. Case and spaces fall away.

# %% tags=["brick"]
CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")


def character_class(character: str) -> str:
    """`letter`, `number`, `space` or `other`, by Unicode category."""
    category = unicodedata.category(character)[0]
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return "space"
    return {"L": "letter", "N": "number"}.get(category, "other")


def plain_words(text: str) -> Iterator[str]:
    """`each_word` of a text in which START and END are nothing special."""
    # letter by letter, because str.lower() writes a last Σ in another way
    text = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
    i = 0
    while i < len(text):
        special = (START, END, *CONTRACTIONS)  # a START here was once in capitals
        fixed = next((word for word in special if text.startswith(word, i)), "")
        first, j = character_class(text[i]), i + max(1, len(fixed))
        if not fixed and first in ("letter", "other"):
            while j < len(text) and character_class(text[j]) == first:
                j += 1
        if fixed in (START, END):
            yield from (fixed[:2], fixed[2:-2], fixed[-2:])
        elif first != "space":
            yield text[i:j]
        i = j


# %% [markdown]
# Two strings are not words at all. `START` and `END` will mark where a prompt begins
# and ends; they stay whole when somebody types them just so.


# %% tags=["brick"]
def each_word(text: str) -> Iterator[str]:
    """Text → lower-case words, single digits and runs of other signs; spaces fall away.

    The pattern of CLIP's tokenizer, written out; START and END, spelt so, stay whole.
    Radford et al. 2021, sec. 2.4.
    """
    for part in re.split(f"({re.escape(START)}|{re.escape(END)})", text):
        yield from [part] if part in (START, END) else plain_words(part)


def split_words(text: str) -> list[str]:
    """All of `each_word`."""
    return list(each_word(text))


# %%
print(split_words("A  Fox isn't a DOG!!  It's 12 km to Café 猫头鹰 🦉"))

# %% [markdown]
# ## Byte-pair encoding by hand
#
# Which runs deserve a token? The common ones. **Byte-pair encoding** (BPE, Sennrich et
# al. 2016) starts from single symbols and repeats one step: find the most frequent pair
# of neighbours, make it one symbol. Theirs were characters; GPT-2's, CLIP's and ours
# are bytes. Take four words and how often each occurs.

# %%
toy = {"sun": 4, "sunny": 3, "funny": 3, "set": 2}

# %% [markdown]
# The last symbol of a word carries the mark `</w>`. It tells the `sun` that ends a word
# from the `sun` that begins `sunny`, and later it tells the decoder where words end.

# %% tags=["brick", "blank"]
Pair = tuple[str, str]


def word_symbols(word: str) -> tuple[str, ...]:
    """A word as the symbols of its UTF-8 bytes; the last one carries the word's end."""
    symbols = [byte_alphabet()[byte] for byte in word.encode("utf-8", "replace")]
    return (*symbols[:-1], symbols[-1] + WORD_END)


def merge(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    """Every occurrence of `pair`, from the left, becomes one symbol."""
    merged, i = [], 0
    while i < len(symbols):
        width = 2 if symbols[i : i + 2] == pair else 1
        merged.append("".join(symbols[i : i + width]))
        i += width
    return tuple(merged)


# %%
spelt = {word: word_symbols(word) for word in toy}
for _ in range(4):
    pairs = collections.Counter()
    for word, count in toy.items():
        for pair in itertools.pairwise(spelt[word]):
            pairs[pair] += count
    best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties: the last by name
    print(f"{pairs[best]} times {best[0]} + {best[1]}")
    spelt = {word: merge(symbols, best) for word, symbols in spelt.items()}
print(*(" ".join(symbols) for symbols in spelt.values()), sep="\n")

# %% [markdown]
# Check the first line by hand: `s u` stands in "sun" (4) and "sunny" (3), 7 times.
# After four merges "sun" is one token, and `nny</w>`, an ending, is another: one that
# no dictionary lists.
#
# The same as a function, for texts:


# %%
def learn_merges_naive(texts, count):
    words = collections.Counter(word for text in texts for word in split_words(text))
    spelt = {word: word_symbols(word) for word in words}
    merges = []
    for _ in range(count):
        pairs = collections.Counter()  # counted again from nothing, every time
        for word, symbols in spelt.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        spelt = {word: merge(symbols, merges[-1]) for word, symbols in spelt.items()}
    return merges


# %% [markdown]
# A merge changes few words. The fast version remembers which words hold a pair, and
# updates only their counts.


# %% tags=["brick", "blank"]
def learn_merges(texts: Iterable[str], count: int) -> list[Pair]:
    """The `count` merges of byte-pair encoding, most frequent pair first.

    Counts are kept up to date word by word, so that a merge touches only words that
    hold the pair. Ties go to the pair that sorts last. Sennrich et al. 2016, alg. 1.
    """
    words = collections.Counter(word for text in texts for word in split_words(text))
    spelt = {word: word_symbols(word) for word in words}
    pairs: collections.Counter[Pair] = collections.Counter()
    holders = collections.defaultdict(set)
    for word, symbols in spelt.items():
        for pair in itertools.pairwise(symbols):
            pairs[pair] += words[word]
            holders[pair].add(word)
    merges = []
    while len(merges) < count and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] < 1:
            break
        merges.append(best)
        for word in holders.pop(best):
            for pair in itertools.pairwise(spelt[word]):
                pairs[pair] -= words[word]
            spelt[word] = merge(spelt[word], best)
            for pair in itertools.pairwise(spelt[word]):
                pairs[pair] += words[word]
                holders[pair].add(word)
        del pairs[best]
    return merges


# %% [markdown]
# Both, on the labels and keywords of all training concepts:

# %%
texts = []
for first, *_ in train.concepts:
    row = train.row(first)
    for language in data.LANGUAGES:
        texts += [row[f"label_{language}"], *row[f"keywords_{language}"]]

assert learn_merges(texts, 40) == learn_merges_naive(texts, 40)
gain = costs.speedup(
    lambda: learn_merges_naive(texts, 40), lambda: learn_merges(texts, 40), turns=1
)
print(f"{len(texts):,} texts, the same 40 merges")
print(f"at least twice as fast: {gain > 2}")

# %% [markdown]
# ## Merges of our own captions
#
# The models that this course ships learnt 3,582 merges this way. Here are 1,000, in a
# few seconds. Look at the first ones, then at the longest.

# %%
merges = learn_merges(texts, 1000)


def readable(symbols: str) -> str:
    """A token as text; · marks the end of a word, � part of a character."""
    byte = {symbol: value for value, symbol in byte_alphabet().items()}
    stem = bytes(byte[s] for s in symbols.removesuffix(WORD_END))
    return stem.decode(errors="replace") + "·" * symbols.endswith(WORD_END)


learnt = [readable("".join(pair)) for pair in merges]
print("first:  ", " ".join(learnt[:14]))
print("longest:", " ".join(sorted(learnt, key=len)[-7:]))
print(
    "Chinese:", " ".join(w for w in learnt if w >= "一" and "�" not in w and len(w) > 2)
)

# %% [markdown]
# We cut the text at words. But nobody told it what an ending or a Chinese character is.
# A `�` is a piece of a character: most Chinese characters are three bytes, so even a
# single one needs two merges.
#
# A new word is spelt in bytes. Then the merges are applied in the order in which they
# were learnt: of the pairs in the word the earliest learnt one first, until none is
# left.

# %%
ranks = {pair: rank for rank, pair in enumerate(merges)}


def merge_by_rank_plain(symbols: tuple[str, ...], ranks: dict[Pair, int]):
    while known := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
        symbols = merge(symbols, min(known, key=ranks.get))
    return symbols


print(*map(readable, merge_by_rank_plain(word_symbols("smilingly"), ranks)))

# %% [markdown]
# ### Equal, and faster: a word without an end
#
# Each turn of that loop reads the whole word. A word has a few letters, so who cares?
# Whoever pastes 100,000 letters without a space, and waits. The fast version keeps the
# pairs in a **heap**, a list whose smallest entry is found in about $\log n$ steps. A
# merge changes two pairs, the one before it and the one after it, so only these are
# looked up anew.


# %% tags=["brick"]
def merge_by_rank(symbols: Iterable[str], ranks: dict[Pair, int]) -> list[str]:
    """Merge the pairs of the lowest rank, from the left, until no pair has a rank.

    A heap holds (rank, place); before and after say who is next to whom by now. So n
    symbols take about n·log n steps.
    """
    symbols = [*symbols, ""]  # "" has no rank: it stands for the end and what is gone
    size = len(symbols) - 1
    before, after = [*range(-1, size)], [*range(1, size + 1), size]
    pairs = enumerate(itertools.pairwise(symbols))
    heap = [(ranks[pair], i) for i, pair in pairs if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, changed = heap[0][0], []
        while heap and heap[0][0] == rank:  # all of this rank, the leftmost first
            i = heapq.heappop(heap)[1]
            j = after[i]
            if ranks.get((symbols[i], symbols[j])) == rank:  # not merged meanwhile
                symbols[i], symbols[j] = symbols[i] + symbols[j], ""
                after[i] = after[j]
                before[after[j]] = i
                changed += [before[i], i]
        for i in changed:
            pair = symbols[i], symbols[after[i]]
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], i))
    return [symbol for symbol in symbols if symbol]


LONG = 50  # letters; shorter words are read as often as the plain loop likes
CACHE = 20_000  # words that a tokenizer remembers


# %%
words = sorted({word for text in texts for word in split_words(text)})
for word in [*words, "na" * 40, "m" * 77]:
    plain = merge_by_rank_plain(word_symbols(word), ranks)
    assert merge_by_rank(word_symbols(word), ranks) == list(plain), word
long = word_symbols("".join(words)[:1000])
gain = costs.speedup(
    lambda: merge_by_rank_plain(long, ranks),
    lambda: merge_by_rank(long, ranks),
    turns=2,
)
print(f"the same for {len(words):,} words")
print(f"for a word of 1,000 letters, 5 times faster: {gain > 5}")

# %% [markdown]
# The **tokenizer** applies the merges in the order in which they were learnt. Its ids:
# the 256 bytes, the 256 bytes at a word's end, one id per merge, then two special
# tokens. `START` opens every prompt. `END` closes it, and fills shorter rows up to the
# longest.


# %% tags=["brick", "blank"]
class Tokenizer:
    """Byte-level BPE with CLIP's vocabulary layout: any Unicode text, no unknown token.

    merges: pairs in order of rank; context: most tokens of a prompt, START and END
    included. Ids: 256 bytes, 256 bytes at a word's end, one per merge, START, END.
    """

    def __init__(self, merges: Iterable[Pair], context: int = 32):
        self.merges = [tuple(pair) for pair in merges]
        alphabet = list(byte_alphabet().values())
        self.tokens = alphabet + [symbol + WORD_END for symbol in alphabet]
        self.tokens += ["".join(pair) for pair in self.merges] + [START, END]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.ranks = {pair: i for i, pair in enumerate(self.merges)}
        self.start, self.end = self.ids[START], self.ids[END]
        self.context = context
        self.special = {START: [self.start], END: [self.end]}
        self.cache = dict(self.special)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word: the earliest learnt merge first, until none applies."""
        if word not in self.cache:
            symbols = word_symbols(word)
            while len(symbols) > 1:
                known = [p for p in itertools.pairwise(symbols) if p in self.ranks]
                if not known:
                    break
                symbols = merge(symbols, min(known, key=self.ranks.get))
            self.cache[word] = [self.ids[symbol] for symbol in symbols]
        return self.cache[word]

    def stream(self, text: str) -> Iterator[int]:
        """The ids of a text, word by word, as far as someone asks."""
        if len(self.cache) > CACHE:
            self.cache = dict(self.special)
        for word in each_word(text):
            if len(word) > LONG:
                symbols = merge_by_rank(word_symbols(word), self.ranks)
                yield from (self.ids[symbol] for symbol in symbols)
            else:
                yield from self.encode_word(word)

    @takes(text="text")
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without START and END and without a limit."""
        return list(self.stream(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without special tokens; one space after each word."""
        special = (self.start, self.end)
        symbols = "".join(self.tokens[i] for i in ids if i not in special)
        byte = {symbol: b for b, symbol in byte_alphabet().items()}
        words = [bytes(byte[s] for s in word) for word in symbols.split(WORD_END)]
        return " ".join(word.decode("utf-8", "replace") for word in words).strip(" ")

    def truncated(self, text: str) -> int:
        """How many tokens of a text do not fit the context (0 when all do)."""
        return max(0, len(self.encode(text)) + 2 - self.context)

    def first(self, text: str, count: int) -> list[int]:
        """At most `count` ids of a text; what comes after them costs nothing."""
        return list(itertools.islice(self.stream(text), count))

    @takes(prompts="texts")
    def __call__(self, prompts: list[str]) -> Tensor:
        """Prompts → ids (B, L), L ≤ context: START, text, END, then END as padding."""
        room = self.context - 2
        rows = [[self.start, *self.first(p, room), self.end] for p in prompts]
        length = max(map(len, rows), default=2)
        return torch.tensor(
            [row + [self.end] * (length - len(row)) for row in rows], dtype=torch.long
        ).view(-1, length)


# %%
tokenizer = Tokenizer(merges)
for text in ("a smiling cat", "smilingly", "微笑的猫", "🐈"):
    ids = tokenizer.encode(text)
    print(text, "→", " ".join(readable(tokenizer.tokens[i]) for i in ids), "→", ids)

# %% [markdown]
# "smilingly" is in no caption, and it costs four tokens, not an error. The cat emoji
# costs four: four bytes that were never seen together.
#
# **What comes back.** `decode` gives back the text in lower case, in Unicode's normal
# form NFC (`e` + accent becomes `é`), with one space between the pieces that
# `split_words` made. So case and spacing are lost: `12` comes back as `1 2`, `isn't` as
# `isn 't`. A typed START or END is dropped. Every other character comes back.

# %%
for text in (
    "A smiling  CAT!",
    "re\u0301sume\u0301",
    "👩‍🚀 is 宇航员",
    "ʇxǝʇ \u0000 ﷽",
):
    back = tokenizer.decode(tokenizer.encode(text))
    assert back == " ".join(split_words(text))
    print(ascii(text), "→", back.replace("\0", "␀"))

# %% [markdown]
# **How much do merges save?** Fewer tokens a caption means less work for the encoder:
# its cost grows with the length. The price is a larger table of token vectors.

# %%
sizes = [0, 50, 100, 200, 400, 700, 1000]
mean_tokens = {"en": [], "zh": []}
for size in sizes:
    smaller = Tokenizer(merges[:size])
    for language, means in mean_tokens.items():
        labels = set(train.table[f"label_{language}"])
        means.append(sum(len(smaller.encode(label)) for label in labels) / len(labels))

fig, ax = plots.figure(width=6.5, height=3)
for language, name, line in (("en", "English", "o-"), ("zh", "Chinese", "o--")):
    colour = plots.COLOURS["text"]
    ax.plot(sizes, mean_tokens[language], line, color=colour, label=name)
ax.legend(frameon=False)
ax.set(xlabel="merges", ylabel="tokens per label", ylim=0)
ax.set_title("The first merges save most")
plots.show(fig, "Tokens per label against merges: both curves fall, steeply at first")
for language, means in mean_tokens.items():
    saved = means[0] - means[-1]
    early = (means[0] - means[3]) / saved
    print(
        f"{language}: {means[0]:.1f} → {means[-1]:.1f} tokens, {early:.0%} by merge 200"
    )

# %% [markdown]
# ### Padding, and a limit that speaks
#
# Prompts of one batch become one table. The context is 32 tokens; the rest is cut off.
# Cutting in silence is how prompts lose their end unnoticed, so `truncated` says how
# many tokens fell away.

# %%
prompts = ["cat", "a smiling cat", "a very " + "very " * 40 + "long cat"]
ids = tokenizer(prompts)
print(tuple(ids.shape))
print(ids[:2, :8])
print("do not fit:", [tokenizer.truncated(prompt) for prompt in prompts])
assert (ids[:, 0] == tokenizer.start).all() and (ids[:, -1] == tokenizer.end).all()

# %% [markdown]
# ### Against the reference
#
# `transformers` builds its CLIP tokenizer from our vocabulary and merges. Same ids, on
# every label of the unseen concepts and on texts made to be difficult.

# %%
from transformers import CLIPTokenizer

theirs = CLIPTokenizer(vocab=tokenizer.ids, merges=tokenizer.merges)
hard = "|It's  THE fox's|½ Ⅷ 3²|ΟΔΟΣ İ|👨‍👩‍👧 ❤️|e\u0301\t\u3000 \x1c".split("|") + [END]
labels = set(unseen.table["label_en"]) | set(unseen.table["label_zh"])
hard += sorted(labels)
for text in hard:
    assert theirs(text)["input_ids"][1:-1] == tokenizer.encode(text), text
print(f"same ids for {len(labels)} labels and {len(hard) - len(labels)} hard texts")

# %% [markdown]
# ## A bag of words
#
# Each token id picks a vector from a table. How do the vectors of a caption become one?
# The shortest answer: take their mean. That is the **bag of words**, CBOW in the
# pseudo-code of CLIP (Radford et al. 2021, fig. 3). By hand, with three words in two
# dimensions:

# %%
table = {"cat": [4.0, 0.0], "chases": [1.0, 1.0], "fox": [0.0, 4.0]}


def bag(sentence: str) -> Tensor:
    return torch.tensor([table[word] for word in sentence.split()]).mean(0)


print(bag("cat chases fox"), bag("fox chases cat"))
assert bag("cat chases fox").equal(bag("fox chases cat"))

# %% [markdown]
# The mean does not know who chases whom. Keep that in mind.
#
# A batch has rows of different lengths, so the mean must stop at END. Padding is made
# of END too. **Trap: the caption ends at the *first* END**, not at the last one, which
# is only the edge of the table.
#
# ![Two captions in one table. The vector is taken at the first END of a row; the END
# tokens after it are padding](../assets/figures/02_pooling.svg)


# %% tags=["brick", "blank"]
def end_positions(ids: Tensor, end: int) -> Tensor:
    """Index of the first END in each row: (B, L) → (B,). Padding repeats END later."""
    return (ids == end).int().argmax(-1)


# %%
ids = tokenizer(["cat", "a smiling cat"])
print(ids)
print("first END:", end_positions(ids, tokenizer.end))


# %% tags=["brick", "blank"]
class BagOfWords(nn.Module):
    """The mean of the token vectors up to END, then an MLP: (B, L) → (B, width).

    Order is lost: the CBOW text encoder of CLIP's pseudo-code. It takes texts of any
    length; context is there because other towers need it. Mikolov et al. 2013.
    """

    def __init__(self, vocab: int, context: int = 32, width: int = 192):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.end, self.width = vocab - 1, width

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        real = (places <= end_positions(ids, self.end).unsqueeze(1)).unsqueeze(-1)
        mean = (self.tokens(ids) * real).sum(1) / real.sum(1)  # (B, width)
        return self.fc2(torch.relu(self.fc1(self.norm(mean))))


# %% [markdown]
# The brick against a loop over rows and tokens, and against a shuffled caption:

# %%
device.seed(0)
tower = BagOfWords(len(tokenizer), width=16)
ids = tokenizer(["a cat chases a fox", "a fox chases a cat", "sun"])
with torch.no_grad():
    for row, vector in zip(ids.tolist(), tower(ids), strict=True):
        kept = row[: row.index(tokenizer.end) + 1]
        mean = sum(tower.tokens.weight[i] for i in kept) / len(kept)
        slow = tower.fc2(torch.relu(tower.fc1(tower.norm(mean))))
        assert torch.allclose(slow, vector, atol=1e-6)
    first, second, third = tower(ids)
print("cat chases fox = fox chases cat:", torch.allclose(first, second, atol=1e-6))
print("cat chases fox = sun:", torch.allclose(first, third, atol=1e-3))

# %% [markdown]
# ## A Transformer that reads from left to right
#
# Lesson 01 built attention: every token asks all tokens, and takes a weighted mean of
# what they offer. CLIP's text tower is GPT's: a token may ask **itself and the tokens
# before it**. The plain way to say so is to hand each query only the past.

# %%
from utils.bricks.attention import attend

generator = device.seed(0)
q, k, v = torch.randn(3, 5, 8, generator=generator)  # 5 tokens, 8 numbers each
one_by_one = [attend(q[i : i + 1], k[: i + 1], v[: i + 1]) for i in range(5)]

# %% [markdown]
# All at once: add −∞ to the scores that must not count. The softmax turns −∞ into a
# weight of exactly 0.


# %% tags=["brick", "blank"]
def causal_mask(length: int, device=None) -> Tensor:
    """(L, L): 0 where a token may look (itself and before), −inf where it may not."""
    return torch.full((length, length), -torch.inf, device=device).triu(1)


# %%
print(causal_mask(5))
assert torch.allclose(attend(q, k, v, causal_mask(5)), torch.cat(one_by_one), atol=1e-6)

# %% [markdown]
# Under this mask only the last token of a caption has seen all of it. That token is
# END, so **the vector of a caption is the vector at END**. Positions are learnt and
# added, as in the ViT: without them attention would not know which word came first.


# %% tags=["brick", "blank"]
class TextTransformer(nn.Module):
    """Ids (B, L) → the vector at the first END (B, width), causal.

    Radford et al. 2021, sec. 2.4. Weights start as those of OpenAI's CLIP: narrower for
    the layers that write to the residual path. (Attention's biases start at 0 there.)
    """

    def __init__(
        self,
        vocab: int,
        context: int = 32,
        width: int = 192,
        depth: int = 4,
        heads: int = 3,
        hidden: int = 0,
        activation: str = "quick_gelu",
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.01 * torch.randn(context, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, activation, hidden) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.end, self.width = vocab - 1, width
        nn.init.normal_(self.tokens.weight, std=0.02)
        narrow = width**-0.5 * (2 * depth) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=narrow)
            nn.init.normal_(block.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=narrow)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions[: ids.shape[1]]  # (B, L, width)

    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every token's last hidden state (B, L, width); mask: causal by default."""
        if mask is None:
            mask = causal_mask(ids.shape[1], ids.device)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        mask = causal_mask(ids.shape[1], ids.device)
        ends = end_positions(ids, self.end)
        return self.norm(state_at(self.blocks, self.embed(ids), ends, mask))


# %% [markdown]
# `states` gives every token, `forward` the one at END: `state_at` of lesson 01 spares
# the others the last block.
#
# ### Against the reference
#
# `transformers` has the same tower. Copy our weights into it, give both the same
# prompts.

# %%
from transformers import CLIPTextConfig, CLIPTextModel

device.seed(0)
tower = TextTransformer(len(tokenizer), width=48, depth=2, heads=3).eval()
config = CLIPTextConfig(
    vocab_size=len(tokenizer), max_position_embeddings=32, hidden_size=48,
    num_hidden_layers=2, num_attention_heads=3, intermediate_size=192,
    bos_token_id=tokenizer.start, eos_token_id=tokenizer.end,
)  # fmt: skip
reference = CLIPTextModel(config).eval()


def copy_weights(tower, reference):
    model = getattr(reference, "text_model", reference)
    pairs = [(tower.tokens.weight, model.embeddings.token_embedding.weight)]
    pairs += [(tower.positions, model.embeddings.position_embedding.weight)]
    modules = [(tower.norm, model.final_layer_norm)]
    for ours, other in zip(tower.blocks, model.encoder.layers, strict=True):
        attention = other.self_attn
        modules += [(ours.norm1, other.layer_norm1), (ours.norm2, other.layer_norm2)]
        modules += [(ours.fc1, other.mlp.fc1), (ours.fc2, other.mlp.fc2)]
        modules += [(ours.attention.out, attention.out_proj)]
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            theirs, both = getattr(attention, name), ours.attention.qkv
            pairs += [(both.weight.chunk(3)[part], theirs.weight)]
            pairs += [(both.bias.chunk(3)[part], theirs.bias)]
    for ours, other in modules:
        pairs += [(ours.weight, other.weight), (ours.bias, other.bias)]
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours)


copy_weights(tower, reference)
ids = tokenizer(["a smiling cat", "微笑的猫", "a fox that says good evening"])
with torch.no_grad():
    at_end = tower.states(ids)[torch.arange(3), end_positions(ids, tokenizer.end)]
    assert torch.allclose(tower(ids), at_end, atol=1e-5)
    difference = (tower(ids) - reference(ids).pooler_output).abs().max()
assert difference < 1e-5
print(f"transformers.CLIPTextModel agrees to 1e-5: {bool(difference < 1e-5)}")

# %% [markdown]
# ### Equal, and faster: short captions do not wait
#
# A table is as wide as its longest caption, and the tower works through the padding of
# all the others. Nothing looks at padding, so it may fall away: sort the rows, and
# encode short ones apart from long ones.


# %% tags=["brick"]
GROUP = 512  # rows


def encode_by_length(tower: nn.Module, ids: Tensor) -> Tensor:
    """What `tower(ids)` returns, with less padding: (B, L) → (B, width).

    Rows are sorted by length and encoded in up to four groups, of 16 rows or more:
    smaller ones cost more than their padding. None has more than GROUP rows, so that
    memory does not grow with the number of prompts.
    """
    ends = end_positions(ids, tower.end)
    order = ends.argsort()
    count = max(1, min(4, len(ids) // 16), math.ceil(len(ids) / GROUP))
    groups = order.chunk(count)
    vectors = [tower(ids[rows, : int(ends[rows[-1]]) + 1]) for rows in groups]
    return torch.cat(vectors)[order.argsort()]  # back in the order given


# %%
larger = TextTransformer(len(tokenizer), depth=2)
rng = random.Random(0)
ids = tokenizer([train.caption(i, rng) for i in data.draw(train, 128, rng)])


def there_and_back(encode) -> list[Tensor]:
    """The vectors, and the gradients of their first numbers' sum for all weights."""
    vectors = encode(ids)
    weights = list(larger.parameters())
    return [vectors, *torch.autograd.grad(vectors[:, 0].sum(), weights)]


def grouped():
    return there_and_back(lambda ids: encode_by_length(larger, ids))


for plain, fast in zip(there_and_back(larger), grouped(), strict=True):
    assert (plain - fast).abs().max() <= 1e-4 * plain.abs().max()
gain = costs.speedup(lambda: there_and_back(larger), grouped, turns=3)
print(f"the same for {len(ids)} captions, and more than 1.2 times faster: {gain > 1.2}")

# %% [markdown]
# ## Three masks, one matrix
#
# Row: the token that asks. Column: the token that it may look at. Every famous text
# model is one way to fill this square.
#
# - **BERT** (Devlin et al. 2019) fills all of it: each token sees both sides. Good for
#   understanding; it cannot be asked for the next word, because it has seen it.
# - **GPT** (Radford et al. 2018), and CLIP's text tower, fill the lower triangle.
# - **UniLM** (Dong et al. 2019) trains one model with several masks. The one for
#   rewriting a text has two parts: the source sees all of the source, the target sees
#   the source and its own past. A mask of this kind is also called a prefix mask.

# %%
length, source = 8, 4
both_ways = torch.zeros(length, length)
left_to_right = causal_mask(length)
prefix = causal_mask(length)
prefix[:, :source] = 0  # everybody may look at the source
masks = {"BERT: both ways": both_ways, "GPT: the past": left_to_right}
masks["UniLM: source, then past"] = prefix

# %% [markdown]
# A mask is a claim about who sees whom. **Test it:** change one token and watch which
# outputs move. Row j of the batch below has another token at place j.
#
# **Predict first.** The tower has two blocks, and a token can be reached by way of
# another one. Will more outputs move than the mask allows?


# %%
@torch.no_grad()
def who_sees_whom(tower, ids: Tensor, mask: Tensor) -> Tensor:
    """(L, L): entry (i, j) says whether output i moves when token j is changed."""
    same = ids.expand(len(ids), -1)  # (L, L), a copy of the sentence in each row
    changed = same + torch.eye(len(ids), dtype=torch.long)  # row j: another token at j
    moved = tower.states(changed, mask) != tower.states(same, mask)
    return moved.any(-1).T  # (output, changed token)


generator = device.seed(0)
ids = torch.randint(0, 512, (length,), generator=generator)
fig, axes = plots.figure(columns=3, width=9, height=3.4)
for ax, (name, mask) in zip(axes, masks.items(), strict=True):
    moved = who_sees_whom(tower, ids, mask)
    assert moved.equal(mask == 0), name
    plots.heatmap(moved.float(), ax, name)
    ax.set(xlabel="changed token", ylabel="output that moves")
    ax.set_xticks(range(length), range(1, length + 1))
    ax.set_yticks(range(length), range(1, length + 1))
plots.show(
    fig,
    "Outputs that move, for three masks: a full square; a lower triangle; a lower "
    "triangle whose first four columns are full",
)
print("measured = mask, entry by entry, for all three")

# %% [markdown]
# <details><summary>Answer</summary>
#
# No, for these three. If i sees j, and j sees k, then i sees k already: each of the
# masks is closed under going on. A mask that lets a token see only its left neighbour
# is not: two blocks reach two tokens back. Exercise 3 lets you try.
#
# </details>
#
# The outputs outside the mask do not move *a little*: they do not move at all. The
# comparison above is `!=`, without a tolerance.
#
# One word, two meanings: BERT's training hides words behind a `[MASK]` **token**. That
# is a change of the input. The **attention mask** here is a change of who looks at
# whom.

# %% [markdown]
# ## It learns: topic and order
#
# Two small tasks, each for the bag of words and for the Transformer. First, **topic**:
# given a caption, which of Unicode's ten groups does the picture belong to (food,
# animals, flags, …)? Trained on English captions, tested on the labels of the 150
# unseen concepts.
#
# **Predict first.** Which tower wins, and by how much?

# %%
import torch.nn.functional as F


class Classifier(nn.Module):
    """A text tower and a linear layer on top."""

    def __init__(self, tower: nn.Module, classes: int):
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tower(ids)).float()


def classifiers(classes: int) -> dict[str, Classifier]:
    """One on each tower, seeded."""
    device.seed(0)
    vocab = len(tokenizer)
    towers = {
        "bag of words": BagOfWords(vocab, width=128),
        "Transformer": TextTransformer(vocab, width=128, depth=2, heads=2),
    }
    return {k: Classifier(t, classes).to(device.pick()) for k, t in towers.items()}


@torch.no_grad()
def accuracy(model: Classifier, ids: Tensor, labels: Tensor) -> float:
    best = model(ids.to(device.pick())).argmax(-1).cpu()
    return (best == labels).float().mean().item()


# %%
groups = sorted(set(train.table["group"]))
group = [groups.index(name) for name in train.table["group"]]
concepts = [unseen.row(first) for first, *_ in unseen.concepts]
test_ids = tokenizer([row["label_en"] for row in concepts])
test_groups = torch.tensor([groups.index(row["group"]) for row in concepts])

largest = (test_groups.bincount().max() / len(test_groups)).item()
print(f"always the largest group, flags: {largest:.0%} right")

topic = {}
for name, model in classifiers(len(groups)).items():

    def loss(step, model=model):
        rng = random.Random(step)
        rows = data.draw(train, 128, rng)
        ids = tokenizer([train.caption(i, rng, ("en",)) for i in rows])
        labels = torch.tensor([group[i] for i in rows])
        return F.cross_entropy(model(ids.to(device.pick())), labels.to(device.pick()))

    training.fit(model, loss, 100, lr=2e-3, name=f"topic, {name}")
    topic[name] = accuracy(model, test_ids, test_groups)

# %%
for name, value in topic.items():
    print(f"{name}: right for more than half of the unseen concepts: {value > 0.5}")
gap = abs(topic["bag of words"] - topic["Transformer"])
print(f"less than 15 points between them: {gap < 0.15}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Neither, by much. Both are right more than half of the time, far above the largest
# group, and the bag of words is the cheaper one. For "what is it about?", the words are
# enough. The authors of CLIP saw something like it: the text encoder's size
# mattered little to them (Radford et al. 2021, sec. 2.4).
#
# </details>
#
# Now **order**. *a red heart above a blue star*: which colour is on top? Every sentence
# has a twin with the two things swapped: the same words, another answer.
#
# **Predict first.** What is the best a bag of words can do?

# %%
colours = ["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
things = [f"{c} {t}" for c in colours for t in ("heart", "star", "moon", "book")]


def order_task(pairs):
    sentences, top_colours = [], []
    for a, b in pairs:
        for first, second in ((a, b), (b, a)):  # twins: the same words
            for word, top in (("above", first), ("below", second)):
                sentences.append(f"a {first} {word} a {second}")
                top_colours.append(colours.index(top.split()[0]))
    return tokenizer(sentences), torch.tensor(top_colours)


pairs = [p for p in itertools.combinations(things, 2) if p[0][:3] != p[1][:3]]
random.Random(0).shuffle(pairs)  # a pair of things is in training or in the test
test_ids, test_colours = order_task(pairs[:100])
ids, top_colours = order_task(pairs[100:])

order, readers = {}, classifiers(len(colours))
for name, model in readers.items():

    def loss(step, model=model):
        rows = torch.randint(len(ids), (128,), generator=device.generator(0, step))
        logits = model(ids[rows].to(device.pick()))
        return F.cross_entropy(logits, top_colours[rows].to(device.pick()))

    training.fit(model, loss, 100, lr=2e-3, name=f"order, {name}")
    order[name] = accuracy(model, test_ids, test_colours)

# %%
assert order["bag of words"] < 0.52 < 0.9 < order["Transformer"]

fig, axes = plots.figure(columns=2, width=8, height=1.9)
titles = ("Topic: a bag of words is enough", "Order: only the Transformer reads it")
for ax, title, result in zip(axes, titles, (topic, order), strict=True):
    plots.bars(ax, result, "text", title, "accuracy", "{:.0%}")
    chance = largest if result is topic else 0.5
    ax.axvline(chance, color=plots.COLOURS["noise"], linestyle="--")
    ax.set_xlim(0, 1.15)
plots.show(
    fig,
    "Accuracy of both towers. Topic: equal, far above the largest group. Order: the "
    "bag of words stays at one half, the Transformer is nearly always right",
)
print("bag of words: above one half:", order["bag of words"] > 0.52)
print("Transformer: above nine tenths:", order["Transformer"] > 0.9)

# %% [markdown]
# <details><summary>Answer</summary>
#
# One half. Twins give the same bag, so they get the same answer, and it is wrong for
# one of the two. No training can help. (Dashed: always the largest group; for order,
# what is left to guess once the two colours are known.)
#
# </details>

# %% [markdown]
# ### How does it know?
# The vector is END's. So ask what END looks at: the attention weights of its row, for
# each head of both blocks. Beside the trained tower, the same tower before its
# training. And the same two things, swapped.


# %%
@torch.no_grad()
def attention_weights(tower: TextTransformer, ids: Tensor) -> Tensor:
    """Who looks at whom in one prompt: (blocks, heads, L, L); a row adds up to 1."""
    mask, x, found = causal_mask(ids.shape[1], ids.device), tower.embed(ids), []
    for block in tower.blocks:
        q, k, _ = block.attention.project(block.norm1(x))  # (1, h, L, d)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        found.append((scores + mask).softmax(-1)[0].cpu())
        x = block(x, mask)
    return torch.stack(found)


def words_of(ids: Tensor) -> list[str]:
    return ["START", *(readable(tokenizer.tokens[i]) for i in ids[1:-1]), "END"]


# %%
reader, fresh = readers["Transformer"], classifiers(len(colours))["Transformer"]
sentences = ("a red heart below a blue star", "a blue star below a red heart")
fig, axes = plots.figure(columns=3, width=10.5, height=2.6)
heads = [f"block {b}, head {h}" for b in (1, 2) for h in (1, 2)]
shown = [(fresh, sentences[0], "Before training")]
shown += [(reader, sentence, "Trained") for sentence in sentences]
for ax, (model, sentence, title) in zip(axes, shown, strict=True):
    ids = tokenizer([sentence]).to(device.pick())
    looks = attention_weights(model.tower, ids)[:, :, -1].flatten(0, 1)  # (4, L)
    rows = heads if ax is axes[0] else None
    plots.heatmap(looks, ax, title, rows, words_of(ids[0].tolist()), limit=1.0)
    ax.set_aspect("auto")
plots.show(fig, "What END looks at: many words before; once trained, the colour on top")
untrained, trained = (
    attention_weights(m.tower, ids)[:, :, -1].amax(-1).mean() for m in (fresh, reader)
)
print("trained heads look at fewer words:", bool(trained > 1.5 * untrained))

# %% [markdown]
# Before training the heads look here and there. The trained ones look at the colour
# that is on top, wherever it stands. Try "above" in the widget below: then some heads
# look at the word *above* itself. Block 2 can do so with success, for what it finds at
# a place is already a mixture of what stands before. So weights show where a head
# looks, not all that it gets. What counts is the answer: it must turn when two things
# are swapped, though the bag of words stays the same.


# %%
@torch.no_grad()
def top_colour(model: Classifier, sentences: list[str]) -> list[str]:
    best = model(tokenizer(sentences).to(device.pick())).argmax(-1)
    return [colours[i] for i in best.tolist()]


flipped = {}
for name, model in readers.items():
    twins = [(f"a {a} above a {b}", f"a {b} above a {a}") for a, b in pairs[:100]]
    first, second = (top_colour(model, list(side)) for side in zip(*twins, strict=True))
    turned = [x != y for x, y in zip(first, second, strict=True)]
    flipped[name] = sum(turned) / len(turned)
print("the bag never turns its answer:", flipped["bag of words"] == 0)
print("the Transformer nearly always does:", flipped["Transformer"] > 0.8)

# %% [markdown]
# ## Play: what does it read?
#
# Type a sentence of the kind it was taught, or any other. Boxes of one colour belong to
# one word; the number is the token's id. Below, each head's row: the darker, the more
# END looks there. Then the answer: which colour is on top? **Predict first:** swap the
# two things; say "below"; leave out the articles; take a word it has never met; write
# Chinese, an emoji, forty words.


# %%
TINTS = ("#fde3c8", "#d9e5fb")
CELL = "display:inline-block;margin:2px;padding:2px 5px;border-radius:4px;color:#111"


def token_boxes(ids: list[int]) -> str:
    boxes, word = [], 0
    for i in ids:
        special = i in (tokenizer.start, tokenizer.end)
        symbols = tokenizer.tokens[i]
        tint = "#ddd" if special else TINTS[word % 2]
        label = symbols if special else readable(symbols)
        word += symbols.endswith(WORD_END)
        box = f"{html.escape(label)} <small>{i}</small>"
        boxes.append(f'<span style="{CELL};background:{tint}">{box}</span>')
    return "".join(boxes)


# %%
def looks_table(weights: Tensor) -> str:
    """A row a head, a cell a token: (heads, L) → HTML."""
    style = "width:26px;height:16px;padding:0;border:1px solid #bbb;background:"
    rows = []
    for name, row in zip(heads, weights.tolist(), strict=True):
        tints = [f"{style}rgba(91,42,112,{w:.2f})" for w in row]
        cells = "".join(f'<td style="{tint}"></td>' for tint in tints)
        rows.append(f"<tr><td><small>{name}&nbsp;</small></td>{cells}</tr>")
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'


# %%
def explain(sentence: str) -> str:
    if len(sentence) > widgets.MAX_TEXT:
        size = f"The sentence has {len(sentence)} characters"
        raise ValueError(f"{size}; at most {widgets.MAX_TEXT} are read, shorten it.")
    ids = tokenizer([sentence]).to(device.pick())
    size = len(sentence.encode("utf-8", "replace"))
    line = f"{len(sentence)} characters, {size} bytes, {ids.shape[1]} tokens"
    lost = tokenizer.truncated(sentence)
    cut = f"{lost} more tokens did not fit and were cut off."
    note = widgets.red(cut) if lost else ""
    looks = attention_weights(reader.tower, ids)[:, :, -1].flatten(0, 1)
    with torch.no_grad():
        answer = widgets.bars(colours, reader(ids).softmax(-1)[0].cpu())
    boxes = token_boxes(ids[0].tolist())
    return f"<p>{line}</p>{note}<p>{boxes}</p>{looks_table(looks)}{answer}"


DEFAULT = "a white moon below a green book"
widgets.live(
    [widgets.text("sentence", DEFAULT)], explain, "A sentence, and what END looks at."
)

# %% [markdown]
# The same sentence as a picture:

# %%
ids = tokenizer([DEFAULT]).to(device.pick())
fig, axes = plots.figure(columns=2, width=10, height=2.6)
looks = attention_weights(reader.tower, ids)[:, :, -1].flatten(0, 1)
names = words_of(ids[0].tolist())
plots.heatmap(looks, axes[0], "What END looks at", heads, names, limit=1.0)
axes[0].set_aspect("auto")
with torch.no_grad():
    sure = reader(ids).softmax(-1)[0].cpu()
shares = dict(zip(colours, sure.tolist(), strict=True))
plots.bars(axes[1], shares, "text", "Which colour is on top?", "probability")
plots.show(fig, "What END looks at in the sentence, and the colour that it names")
print(*names)

# %% [markdown]
# ## Break it
#
# Two things hold the tower together: the mask, and the choice of the token that speaks
# for the caption. Take each away from the tower that has learnt to read. A good caption
# vector must **not** change when the batch gets longer (more padding), **must** change
# when the caption does, and must still give the right answer.


# %%
@torch.no_grad()
def caption_vectors(ids: Tensor, pool: str, mask: Tensor) -> Tensor:
    """The state that the wrong, or right, place holds under this mask: (B, width)."""
    length = ids.shape[1]
    states = reader.tower.states(ids, mask[:length, :length].to(ids.device))
    places = {
        "first END": end_positions(ids, tokenizer.end),
        "last place": torch.full((len(ids),), length - 1, device=ids.device),
        "START": torch.zeros(len(ids), dtype=torch.long, device=ids.device),
    }
    return states[torch.arange(len(ids)), places[pool]]


both_ways = torch.zeros(32, 32)
cases = {
    "as it should be": ("first END", causal_mask(32)),
    "pool the last place": ("last place", causal_mask(32)),
    "pool START": ("START", causal_mask(32)),
    "no mask": ("first END", both_ways),
}
short = test_ids.to(device.pick())
long = F.pad(short, (0, 12), value=tokenizer.end)  # as beside a longer caption
padding, meaning, right = {}, {}, {}
for case, (pool, mask) in cases.items():
    alone, in_company = (caption_vectors(ids, pool, mask) for ids in (short, long))
    padding[case] = (alone - in_company).norm(dim=-1).max().item()
    meaning[case] = (alone[0] - alone[2]).norm().item()  # twins: the things swapped
    answers = reader.head(in_company).argmax(-1).cpu()
    right[case] = (answers == test_colours).float().mean().item()

# %%
fig, axes = plots.figure(columns=3, width=10.5, height=2.2)
label = "how far the vector moves"
plots.bars(axes[0], padding, "text", "Padding must move nothing", label)
plots.bars(axes[1], meaning, "text", "A swap must move it", label)
plots.bars(axes[2], right, "text", "Which colour is on top?", "accuracy", "{:.0%}")
axes[2].set_xlim(0, 1.2)
for ax in axes[1:]:
    ax.set_yticks([])
plots.show(
    fig,
    "Padding moves the vector if the last place is pooled or the mask is missing. The "
    "vector at START does not change with the caption, and its answers are guesses",
)
for case in cases:
    moves, differs = padding[case] > 1e-3, meaning[case] > 1e-3
    print(f"{case}: padding moves it: {moves}, a swap: {differs}")
print("as it should be, above nine tenths:", right["as it should be"] > 0.9)
print("START is left with a guess:", right["pool START"] < 0.25)
print("no mask costs accuracy:", right["no mask"] < right["as it should be"])

# %% [markdown]
# - **Pool the last place** (`states[:, -1]`): the vector belongs to a padding token,
#   and depends on the longest prompt in the batch. The same caption gets another vector
#   on another day: padding moves it nearly as far as a swap does. The answers survive
#   here, for the later ENDs have read the same words.
# - **Pool START**, where BERT puts its `[CLS]`: under a causal mask the first token
#   sees only itself. All captions get the same vector.
# - **No mask**: the padding leaks into END. With both-way attention, padding needs a
#   mask of its own.
#
# None of the three raises an error. They make a model worse: here, one that was trained
# well and is read in the wrong place. Trained so from the start, a model adapts in
# part, and the loss is harder to see.

# %% [markdown]
# ## Exercises
#
# > **Exercise 1 · Both ways, without the padding** — difficulty 2 of 3, about 8
# > minutes. Why it matters: BERT looks both ways, so here padding must be masked by
# > hand. Write `padding_mask(ids, end)`: `ids` (B, L) are rows of a batch; return (B,
# > 1, L): 0 for every token up to the first END of its row, −∞ for the padding after
# > it. `attend` takes such a mask for each row.


# %% tags=["exercise"]
def padding_mask(ids: Tensor, end: int) -> Tensor:
    """(B, L) → (B, 1, L): 0 up to the first END of a row, −inf after it."""
    ...


# %%
from utils.exercises import text_encoders as exercises

exercises.check_padding_mask(padding_mask)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `end_positions` says where a row ends; padding lies to the right of it. Compare the
# places 0 … L−1 with it, as in the bag of words.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def padding_mask(ids, end):
#     places = torch.arange(ids.shape[1], device=ids.device)
#     padding = places > end_positions(ids, end)[:, None]  # (B, L)
#     mask = torch.zeros(ids.shape, device=ids.device)
#     return mask.masked_fill(padding, -torch.inf)[:, None]
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · Whose neighbour is it?** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: a table of learnt vectors holds what training found alike. Write
# > `neighbours(table, i, k)`: `table` (V, d) are vectors of tokens. Return a list of
# > the `k` ids whose vectors have the largest cosine with token `i`'s, the nearest
# > first and without `i` itself.


# %% tags=["exercise"]
def neighbours(table: Tensor, i: int, k: int) -> list[int]:
    """The k tokens nearest to token i, by cosine."""
    ...


# %%
exercises.check_neighbours(neighbours)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `F.normalize(table, dim=1)` makes cosines of products. The nearest of all is `i`
# itself: set its cosine to −∞ before `topk`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def neighbours(table, i, k):
#     units = F.normalize(table, dim=1)
#     cosines = units @ units[i]  # (V,)
#     cosines[i] = -torch.inf
#     return cosines.topk(k).indices.tolist()
# ```
#
# Now ask the tower that learnt the order which words it holds to be alike: take
# `tokenizer.encode("red")[0]` and `reader.tower.tokens.weight.detach().cpu()`. Then ask
# `fresh`, which has learnt nothing.
#
# </details>

# %% [markdown]
# > **Exercise 3 · A window** — difficulty 2 of 3, about 8 minutes. Why it matters: long
# > texts and pictures are often read through a window, and depth widens it. Write
# > `window_mask(length, width)`: a token sees itself and the `width − 1` tokens before
# > it. 0 where it may look, −∞ where not.


# %% tags=["exercise"]
def window_mask(length: int, width: int) -> Tensor:
    """(L, L): 0 where a token may look, −inf where not."""
    ...


# %%
exercises.check_window_mask(window_mask)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With `i` and `j` from `torch.arange`, one upright and one flat, `i - j` is how far
# back token j lies: it must be at least 0 and less than `width`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def window_mask(length, width):
#     place = torch.arange(length)
#     back = place[:, None] - place  # (L, L): how far back j lies, seen from i
#     seen = (back >= 0) & (back < width)
#     return torch.zeros(length, length).masked_fill(~seen, -torch.inf)
# ```
#
# Now try `who_sees_whom(tower, torch.arange(8), window_mask(8, 2))`: with two blocks
# each output moves with **two** tokens back, not one.
#
# </details>

# %% [markdown]
# > **Exercise 4 · Longer than the context** — difficulty 2 of 3, about 8 minutes. Why
# > it matters: Stable Diffusion's users write more than fits, and programs read it in
# > parts. Write `in_parts(ids, context, start, end)`: `ids` is a list of tokens without
# > START and END. Return a list of rows, each START, at most `context − 2` of the
# > tokens in their order, END. As few rows as possible; one row, START and END, if
# > there are no tokens.


# %% tags=["exercise"]
def in_parts(ids: list[int], context: int, start: int, end: int) -> list[list[int]]:
    """A long text as rows that fit the context."""
    ...


# %%
exercises.check_in_parts(in_parts)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `range(0, len(ids), room)` counts where the parts begin. How much room is left in a
# row, and what does this range hold if there are no tokens?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def in_parts(ids, context, start, end):
#     room = context - 2
#     begins = range(0, max(1, len(ids)), room)
#     return [[start, *ids[i : i + room], end] for i in begins]
# ```
#
# </details>

# %% [markdown]
# > **Exercise 5 · How large a vocabulary?** — difficulty 3 of 3, about 10 minutes. Why
# > it matters: every merge is a row in the table; someone has to choose how many. Write
# > `merges_needed(texts, merges, target)`: the smallest number of merges, counted from
# > the first, with which a text takes at most `target` tokens on average (`encode`,
# > without START and END); `None` if all of them are not enough.


# %% tags=["exercise"]
def merges_needed(texts: list[str], merges: list[Pair], target: float) -> int | None:
    """How many merges make texts short enough on average."""
    ...


# %%
exercises.check_merges_needed(merges_needed)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `Tokenizer(merges[:n])` has the first n merges. The average never rises with n, so you
# can halve the range instead of trying every n; `bisect` does it for you.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def merges_needed(texts, merges, target):
#     def mean(n):
#         tokenizer = Tokenizer(merges[:n])
#         return sum(len(tokenizer.encode(text)) for text in texts) / len(texts)
#
#     low, high = 0, len(merges)
#     if mean(high) > target:
#         return None
#     while low < high:
#         middle = (low + high) // 2
#         low, high = (low, middle) if mean(middle) <= target else (middle + 1, high)
#     return low
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"For better text, take OpenAI's CLIP with BERT inside."** There is none. All of
# OpenAI's CLIPs have the tower of this lesson: causal, pooled at END (openai/CLIP,
# `clip/model.py`, lines 282–287 and 354). A model name with "bert" in it is somebody
# else's model.
#
# **"Prompts in Chinese work too, the tokenizer takes them."** The tokenizer takes
# everything; that is what bytes are for. Whether the model *understands* depends on its
# captions. OpenAI's were English, and its model card says so. Its tokenizer makes 28
# tokens of "这是一张有关大象的照片": scraps of characters that the model hardly ever
# saw. The course's CLIP is trained in both languages. What a missing language looks
# like, with our captions:

# %%
english = [text for text in texts if text.isascii()]
sentence = "这是一张有关大象的照片"
for name, corpus in (("English only", english), ("both", texts)):
    ids = Tokenizer(learn_merges(corpus, 300)).encode(sentence)
    print(f"300 merges, {name}: {len(ids)} tokens for {len(sentence)} characters")

# %% [markdown]
# No error, no unknown token, three tokens for each character: it fails in silence.
#
# ## Differs from the paper
#
# | | OpenAI's CLIP | here | why |
# |---|---|---|---|
# | vocabulary | 49,408 | 4,096 shipped, 1,514 in this lesson | 20,000 short texts |
# | context | 77 | 32 | captions are short |
# | tower | width 512, 12 layers | width 192, 4 layers | a laptop |
# | padding | id 0 | END, as in `transformers` | attention never sees it: same vector |
# | cleaning | `ftfy`, HTML entities | NFC, as in `transformers` | pages are parsed |
# | pooling | at the largest id, which is END | at the first END | the same place |
#
# ## Where this goes next
#
# Lesson 03 puts this tower beside the one for pictures and trains both until a
# caption's vector lies next to its picture's. Lesson 04 asks again whether CLIP reads
# or only spots words. Lesson 08 fills the mask square in yet other ways, for text and
# picture in one row.
#
# ## Read more
#
# - Sennrich, Haddow, Birch 2016, *Neural Machine Translation of Rare Words with Subword
#   Units*, sec. 3.2 and algorithm 1. For bytes: Radford et al. 2019 (GPT-2), sec. 2.2.
# - Mikolov et al. 2013, *Efficient Estimation of Word Representations in Vector Space*:
#   CBOW.
# - Radford et al. 2018 (GPT); Devlin et al. 2019 (BERT), sec. 3; Dong et al. 2019
#   (UniLM), fig. 1: the three masks.
# - Radford et al. 2021 (CLIP), sec. 2.4; openai/CLIP, `clip/simple_tokenizer.py` and
#   `clip/model.py`.
# - Sharma et al. 2018, *Conceptual Captions*: pairs from `alt`.
#
# **Glossary** · 替代文本 alt text · 分词 tokenisation · 字节对编码 byte-pair encoding ·
# 词元 token · 词表 vocabulary · 词袋模型 bag of words · 连续词袋模型 CBOW · 因果掩码
# causal mask · 前缀掩码 prefix mask · 填充 padding · 截断 truncation · 池化 pooling
