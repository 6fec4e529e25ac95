"""Lesson 02: answers that must be refused, and others that are right."""

LESSON = "02"
GIVEN = {}

MERGE = """
merged, i = [], 0
while i < len(symbols):
    if symbols[i : i + 2] == pair:
        merged.append(pair[0] + pair[1])
        i += 2
    else:
        merged.append(symbols[i])
        i += 1
return tuple(merged)
"""
NAIVE = """
counts = collections.Counter(word for text in texts for word in split_words(text))
spelt = {word: word_symbols(word) for word in counts}
merges = []
for _ in range(count):
    frequency = collections.Counter()
    for word, symbols in spelt.items():
        for pair in itertools.pairwise(symbols):
            frequency[pair] += counts[word]
    if not frequency:
        break
    merges.append(max(frequency, key=lambda pair: (frequency[pair], pair)))
    spelt = {word: merge(symbols, merges[-1]) for word, symbols in spelt.items()}
return merges
"""
# the same bookkeeping by the changes of each word
CAREFUL = """
counts = collections.Counter(word for text in texts for word in split_words(text))
words, merges = {word: word_symbols(word) for word in counts}, []
frequency, where = collections.Counter(), {}

def book(word, sign):
    for pair in itertools.pairwise(words[word]):
        frequency[pair] += sign * counts[word]
        where.setdefault(pair, set()).add(word)

for word in words:
    book(word, 1)
while len(merges) < count:
    best = max(frequency, key=lambda pair: (frequency[pair], pair), default=None)
    if best is None or frequency[best] == 0:
        break
    merges.append(best)
    for word in list(where[best]):
        book(word, -1)
        words[word] = merge(words[word], best)
        book(word, 1)
return merges
"""
ENCODE = """
if word in self.cache:
    return self.cache[word]
symbols = word_symbols(word)
while True:
    known = [p for p in zip(symbols, symbols[1:]) if p in self.ranks]
    if not known:
        return [self.ids[s] for s in symbols]
    symbols = merge(symbols, min(known, key=lambda p: self.ranks[p]))
"""
# every merge in the order learnt: slow, and the same
IN_ORDER = """
if word in (START, END):
    return [self.ids[word]]
symbols = word_symbols(word)
for pair in self.merges:
    symbols = merge(symbols, pair)
return [self.ids[s] for s in symbols]
"""
CALL = """
rows = [[self.start] + self.encode(p)[: self.context - 2] + [self.end] for p in prompts]
ids = torch.full((len(rows), max(map(len, rows))), self.end)
for i, row in enumerate(rows):
    ids[i, : len(row)] = torch.tensor(row)
return ids
"""
BAG = """
total, vectors = [], self.tokens(ids)
for row, end in zip(vectors, end_positions(ids, self.end).tolist()):
    total.append(row[: end + 1].mean(0))
return self.fc2(torch.relu(self.fc1(self.norm(torch.stack(total)))))
"""
STATES = """
length = ids.shape[1]
x = self.embed(ids)
mask = causal_mask(length, ids.device) if mask is None else mask
for block in self.blocks[:-1]:
    x = block(x, mask)
return self.norm(self.blocks[-1](x, mask))
"""

WRONG = [
    ("merge", MERGE.replace("i += 2", "i += 1"), "go on by two"),
    (
        "merge",
        """
        for i in range(len(symbols) - 1):
            if symbols[i : i + 2] == pair:
                return symbols[:i] + (pair[0] + pair[1],) + symbols[i + 2 :]
        return symbols
        """,
        "only the first occurrence",
    ),
    ("merge", MERGE.replace("return tuple(merged)", "return merged"), "a list comes back"),
    (
        "merge",
        """
        joined, i, merged = "".join(symbols), 0, []
        return tuple(" ".join(symbols).replace(" ".join(pair), "".join(pair)).split(" "))
        """,
        "at place",
    ),
    (
        "merge",
        """
        turned, i = [], len(symbols)
        while i > 0:
            width = 2 if symbols[max(0, i - 2) : i] == pair else 1
            turned.append("".join(symbols[i - width : i]))
            i -= width
        return tuple(turned[::-1])
        """,
        "from the left",
    ),
    ("merge", MERGE.replace("pair[0] + pair[1]", "pair"), "it is a str"),
    ("learn_merges", NAIVE, "times as long"),
    ("learn_merges", CAREFUL.replace("(frequency[pair], pair)", "frequency[pair]"), "sorts last"),
    ("learn_merges", CAREFUL.replace("sign * counts[word]", "sign"), "counts each of its pairs"),
    ("learn_merges", CAREFUL.replace("        book(word, -1)\n", ""), "kept up to date"),
    (
        "learn_merges",
        CAREFUL.replace(
            "        words[word] = merge(words[word], best)\n        book(word, 1)", ""
        ),
        "learn_merges",
    ),
    ("learn_merges", CAREFUL.replace(" or frequency[best] == 0", ""), "you found"),
    ("learn_merges", CAREFUL.replace("append(best)", "append(list(best))"), "it is a tuple"),
    ("learn_merges", CAREFUL.replace("return merges", "return tuple(merges)"), "it is a list"),
    (
        "learn_merges",
        "words = [word_symbols(w) for text in texts for w in split_words(text)]\nlen(texts)",
        "TypeError",
    ),
    ("Tokenizer.encode_word", ENCODE.replace("min(", "max("), "latest merge first"),
    (
        "Tokenizer.encode_word",
        ENCODE.replace("min(known, key=lambda p: self.ranks[p])", "known[0]"),
        "left to right",
    ),
    (
        "Tokenizer.encode_word",
        ENCODE.replace("if word in self.cache:", "if False:"),
        "START and END",
    ),
    (
        "Tokenizer.encode_word",
        ENCODE.replace("word_symbols(word)", "tuple(byte_alphabet()[b] for b in word.encode())"),
        "`WORD_END`",
    ),
    (
        "Tokenizer.encode_word",
        ENCODE.replace("[self.ids[s] for s in symbols]", "list(symbols)"),
        "it is an int",
    ),
    ("Tokenizer.encode_word", ENCODE.replace("word_symbols(word)", "tuple(word)"), "at place 0"),
    ("Tokenizer.__call__", CALL.replace(", self.end)", ", 0)"), "not 0"),
    ("Tokenizer.__call__", CALL.replace("- 2]", "- 1]"), "need two places"),
    ("Tokenizer.__call__", CALL.replace("[self.start] + ", ""), "START is missing"),
    ("Tokenizer.__call__", CALL.replace(" + [self.end] for", " for"), "END is missing"),
    (
        "Tokenizer.__call__",
        CALL.replace("max(map(len, rows))", "self.context"),
        "longest of this batch",
    ),
    (
        "Tokenizer.__call__",
        CALL.replace("[self.start] +", "([self.start] +").replace(
            "[: self.context - 2] + [self.end]", " + [self.end])[: self.context]"
        ),
        "before END is put behind it",
    ),
    ("Tokenizer.__call__", CALL.replace("return ids", "return ids.int()"), "the dtype is int32"),
    ("Tokenizer.__call__", CALL.replace("return ids", "return ids.tolist()"), "a list comes back"),
    (
        "end_positions",
        "return ids.shape[1] - 1 - (ids == end).int().flip(-1).argmax(-1)",
        "the last END",
    ),
    ("end_positions", "return (ids != end).sum(-1)", "not END"),
    ("end_positions", "return (ids == end).int().argmax(-1) + 1", "after END"),
    ("end_positions", "return (ids == end).int().argmax(0)", "the shape is"),
    ("end_positions", "return (ids == end).sum(-1)", "how many END"),
    ("end_positions", "return (ids == end).argmax(-1)", "RuntimeError"),
    ("end_positions", "return (ids == end).int().argmax(-1).int()", "the dtype is int32"),
    ("end_positions", "return (ids == end).int().argmax(-1, keepdim=True)", "length 1 is too many"),
    (
        "BagOfWords.forward",
        "(self.tokens(ids) * real).sum(1) / real.sum(1)",
        "self.tokens(ids).mean(1)",
        "padding behind",
    ),
    ("BagOfWords.forward", "places <= ", "places < ", "END itself"),
    ("BagOfWords.forward", " / real.sum(1)", "", "this is a sum"),
    ("BagOfWords.forward", "self.norm(mean)", "mean", "`self.norm`"),
    (
        "BagOfWords.forward",
        "torch.relu(self.fc1(self.norm(mean)))",
        "self.fc1(self.norm(mean))",
        "ReLU",
    ),
    (
        "BagOfWords.forward",
        "self.tokens(ids)",
        "self.tokens(ids).detach()",
        "no gradient reaches `tokens.weight`",
    ),
    (
        "causal_mask",
        "return torch.full((length, length), -torch.inf, device=device).triu()",
        "diagonal",
    ),
    (
        "causal_mask",
        "return torch.full((length, length), -torch.inf, device=device).tril(-1)",
        "shows the future",
    ),
    ("causal_mask", "return torch.ones(length, length, device=device).tril()", "removes it"),
    (
        "causal_mask",
        "return torch.ones(length, length, device=device).tril().bool()",
        "truth values",
    ),
    ("causal_mask", "return torch.ones(length, length).triu(1) * -torch.inf", "0 · ∞ is nan"),
    ("causal_mask", "return torch.full((length, length), -1e9).triu(1)", "not −∞"),
    (
        "causal_mask",
        "return torch.full((length, length), torch.inf).triu(1)",
        "stands inf; it is -inf",
    ),
    (
        "TextTransformer.states",
        STATES.replace("self.embed(ids)", "self.tokens(ids)"),
        "no positions",
    ),
    (
        "TextTransformer.states",
        STATES.replace("causal_mask(length, ids.device)", "None"),
        "lets every token see all",
    ),
    ("TextTransformer.states", STATES.replace(" if mask is None else mask", ""), "takes the place"),
    ("TextTransformer.states", STATES.replace("self.norm(", "("), "`self.norm`"),
    (
        "TextTransformer.states",
        STATES.replace("[-1](x, mask)", "[-1](x)"),
        "the last block",
    ),
    (
        "TextTransformer.states",
        STATES.replace("(x, mask)", "(x)"),
        "no block",
    ),
    ("TextTransformer.states", STATES.replace("x = block(x, mask)", "block(x, mask)"), "at ["),
]
RIGHT = [
    ("merge", MERGE),
    (
        "merge",
        """
        out = []
        for symbol in symbols:
            if out and out[-1] == pair[0] and symbol == pair[1] and not out_of.get(len(out)):
                out[-1] = out[-1] + symbol
            else:
                out.append(symbol)
        return tuple(out)
        """.replace(" and not out_of.get(len(out))", ""),
    ),
    ("learn_merges", CAREFUL),
    ("Tokenizer.encode_word", ENCODE),
    ("Tokenizer.encode_word", IN_ORDER),
    ("Tokenizer.__call__", CALL),
    ("end_positions", "return ids.argmax(-1)"),  # END has the largest id
    (
        "end_positions",
        "return torch.tensor([row.index(end) for row in ids.tolist()], device=ids.device)",
    ),
    ("BagOfWords.forward", BAG),
    (
        "causal_mask",
        "return torch.zeros(length, length, device=device).masked_fill(torch.ones("
        "length, length, dtype=torch.bool, device=device).triu(1), -torch.inf)",
    ),
    (
        "causal_mask",
        """
        mask = torch.zeros(length, length, device=device)
        for i in range(length):
            mask[i, i + 1 :] = float("-inf")
        return mask
        """,
    ),
    ("TextTransformer.states", STATES),
    (
        "TextTransformer.states",
        """
        mask = mask if mask is not None else causal_mask(ids.shape[1], ids.device)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
        """,
    ),
]
