"""The bricks of lesson 02_text_encoders.

Built by `make build` from lessons/02_text_encoders.py: edit them there.
"""

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

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


@functools.cache
def byte_alphabet() -> dict[int, str]:
    """One printable character for each of the 256 bytes, CLIP's and GPT-2's choice."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # already printable
    others = [byte for byte in range(256) if byte not in kept]
    spare = dict(zip(others, map(chr, itertools.count(256)), strict=False))
    return {byte: chr(byte) for byte in kept} | spare


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


def end_positions(ids: Tensor, end: int) -> Tensor:
    """Index of the first END in each row: (B, L) → (B,). Padding repeats END later."""
    return (ids == end).int().argmax(-1)


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


def causal_mask(length: int, device=None) -> Tensor:
    """(L, L): 0 where a token may look (itself and before), −inf where it may not."""
    return torch.full((length, length), -torch.inf, device=device).triu(1)


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
