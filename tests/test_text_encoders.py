"""The text bricks: laws of the tokenizer, parity with transformers, masks, pooling."""

import collections
import itertools
import random
import string
import time
import unicodedata

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.helpers import gradients
from utils.bricks import text_encoders
from utils.bricks.text_encoders import (
    END,
    START,
    BagOfWords,
    TextTransformer,
    Tokenizer,
    byte_alphabet,
    causal_mask,
    encode_by_length,
    end_positions,
    learn_merges,
    merge,
    merge_by_rank,
    split_words,
    word_symbols,
)

CORPUS = """
a picture of a grinning face, smile, happy
a drawing of a red fox
don't they'll we've it's I'm she'd you're
a flat drawing of a café in Côte d’Ivoire
12 o'clock, 3 o'clock
微笑的猫的图片
一幅红色的狐狸的画
两个人的表情符号
ελληνικά ΟΔΟΣ
""".split("\n")

# strings in which something has gone wrong in one tokenizer or another
AWKWARD = """'s 'S 're don't DON'T '' ''s 'll've ß ẞ ﬁ ǅ ſ K Å İ ı Σ ς ΟΔΟΣ ΌΔΟΣ½
½ Ⅷ ² ٣ 五 〇 ㊗ _ - </w> </ w> 👨‍👩‍👧 ❤️ 👍🏽 🏳️‍🌈 🇨🇳 1️⃣
中文 的图片 가각 각 ก็ नमस्ते ﷽ e\u0301 \u0301 \u0338 =\u0338 a\u0308\u0301""".split()
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x85", "\xa0", "\u2003", "\u2028"]
SPACES += [
    "\u3000",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u180e",
    "\x00",
    "\x1b",
    "\x1c",
    "\x1f",
]
SPECIAL = [START, END, END.upper(), START.title(), "<|", "|>", "<|end", "oftext|>"]
# assigned since Unicode 3.2, so that Python and tokenizers know it alike
OLD = unicodedata.ucd_3_2_0
CHARACTERS = [c for c in map(chr, range(0x110000)) if OLD.category(c) not in ("Cn", "Cs")]
EVERYDAY = "abcdefghijklmnopqrstuvwxyzABCDEFGH '0123456789.,!?-éüñç"


def strings(count: int, seed: int, special: bool = True) -> list[str]:
    """Seeded strings that mix everyday, awkward and arbitrary characters."""
    rng = random.Random(seed)
    parts = [EVERYDAY, AWKWARD, SPACES, CHARACTERS, CHARACTERS[:0x250]]
    parts += [SPECIAL] if special else []
    return [
        "".join(rng.choice(rng.choice(parts)) for _ in range(rng.randint(0, 14)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn_merges(CORPUS, 150))


@pytest.fixture(scope="module")
def reference(tokenizer) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=tokenizer.ids, merges=tokenizer.merges)


# ---------------------------------------------------------------- tokenizer


def assert_same_ids(tokenizer, reference, texts):
    theirs = reference(texts)["input_ids"]
    for text, ids in zip(texts, theirs, strict=True):
        assert tokenizer.encode(text) == ids[1:-1], ascii(text)
        assert (ids[0], ids[-1]) == (tokenizer.start, tokenizer.end)


def test_ids_equal_transformers_on_generated_strings(tokenizer, reference):
    assert_same_ids(tokenizer, reference, strings(12_000, seed=0))


def test_ids_equal_transformers_on_every_character(tokenizer, reference):
    chosen = CHARACTERS[:0x3000] + CHARACTERS[0x3000::17]
    assert_same_ids(tokenizer, reference, [f"a{c}'S{c}" for c in chosen])


@pytest.mark.parametrize("text", [*AWKWARD, *SPACES, *SPECIAL])
def test_ids_equal_transformers_on_awkward_strings(tokenizer, reference, text):
    texts = [text, text + text, f"x{text}y", f"?{text}!", f"{text} {END}{text}"]
    assert_same_ids(tokenizer, reference, texts)


def test_decode_undoes_encode_up_to_case_nfc_and_spaces(tokenizer):
    for text in strings(3_000, seed=1, special=False):
        back = tokenizer.decode(tokenizer.encode(text))
        assert back == " ".join(split_words(text)), ascii(text)
        again = tokenizer.encode(back)
        assert tokenizer.decode(again) == " ".join(split_words(back)), ascii(text)


def test_the_words_hold_every_sign_of_the_text():
    for text in strings(2_000, seed=2, special=False):
        plain = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
        spaces = [c for c in plain if c.isspace() and not "\x1c" <= c <= "\x1f"]
        left = collections.Counter(plain) - collections.Counter(spaces)
        assert collections.Counter("".join(split_words(text))) == left, ascii(text)


def test_no_text_is_unknown_not_even_half_a_surrogate(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a \ud83d b")) == "a ? b"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_bytes_have_one_printable_sign_each():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert all(sign.isprintable() and not sign.isspace() for sign in alphabet.values())


def test_prompts_become_one_table_padded_with_end(tokenizer):
    ids = tokenizer(["a red fox", "", "cat " * 99])
    assert ids.shape == (3, 32) and ids.dtype == torch.int64
    assert (ids[:, 0] == tokenizer.start).all()
    assert ids[2, -1] == tokenizer.end and (ids[1, 1:] == tokenizer.end).all()
    assert tokenizer(["", ""]).shape == (2, 2)
    assert tokenizer([]).shape == (0, 2)


@pytest.mark.parametrize("words", [0, 1, 29, 30, 31, 60])
def test_truncated_counts_what_is_cut_off(tokenizer, words):
    text = "! ? " * (words // 2) + "! " * (words % 2)
    assert len(tokenizer.encode(text)) == words
    assert tokenizer.truncated(text) == max(0, words - 30)
    kept = tokenizer([text])[0].tolist()
    assert kept[1:-1] == tokenizer.encode(text)[:30]


# ---------------------------------------------------------------- merges


def slow_merges(texts, count):
    """Byte-pair encoding as the definition has it, counted again each time."""
    counts = collections.Counter(word for text in texts for word in split_words(text))
    spelt, merges = {word: list(word_symbols(word)) for word in counts}, []
    while len(merges) < count:
        pairs = [
            p for w, s in spelt.items() for p in itertools.pairwise(s) for _ in range(counts[w])
        ]
        if not pairs:
            break
        frequency = {pair: pairs.count(pair) for pair in set(pairs)}
        most = max(frequency.values())
        best = sorted(pair for pair, n in frequency.items() if n == most)[-1]
        merges.append(best)
        for symbols in spelt.values():
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = ["".join(best)]
                i += 1
    return merges


@pytest.mark.parametrize("seed", range(60))
def test_merges_equal_brute_force(seed):
    rng = random.Random(seed)
    letters = rng.choice(["ab", "aab", "abc猫", "aé'1"])
    words = ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(12)]
    texts = [" ".join(rng.choices(words, k=5)) for _ in range(4)]
    count = rng.randint(0, 30)
    assert learn_merges(texts, count) == slow_merges(texts, count)


def test_merges_are_a_prefix_of_more_merges_and_end_by_themselves():
    merges = learn_merges(CORPUS, 10_000)
    assert len(merges) < 10_000
    assert learn_merges(CORPUS, 40) == merges[:40]
    words = {word for text in CORPUS for word in split_words(text)}
    assert all(len(Tokenizer(merges).encode_word(word)) == 1 for word in words)
    assert learn_merges([], 5) == [] and learn_merges(["a b"], 5) == []


def test_more_merges_never_make_the_corpus_longer():
    merges = learn_merges(CORPUS, 60)
    sizes = [sum(len(Tokenizer(merges[:n]).encode(t)) for t in CORPUS) for n in range(61)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_merge_goes_from_the_left():
    assert merge(("a", "a", "a"), ("a", "a")) == ("aa", "a")
    assert merge(("b", "a", "b", "a"), ("b", "a")) == ("ba", "ba")
    assert merge(("a",), ("a", "a")) == ("a",)


# ---------------------------------------------------------------- towers


def tower(vocab: int = 300, depth: int = 2, **settings) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocab, width=48, depth=depth, heads=3, **settings).eval()


def transformers_copy(ours: TextTransformer, activation: str) -> CLIPTextModel:
    hidden = ours.blocks[0].fc1.out_features
    config = CLIPTextConfig(
        vocab_size=ours.end + 1,
        hidden_size=ours.width,
        intermediate_size=hidden,
        num_hidden_layers=len(ours.blocks),
        num_attention_heads=ours.blocks[0].attention.heads,
        max_position_embeddings=len(ours.positions),
        hidden_act=activation,
        bos_token_id=ours.end - 1,
        eos_token_id=ours.end,
        pad_token_id=ours.end,
    )
    names = {
        "embeddings.token_embedding.weight": ours.tokens.weight,
        "embeddings.position_embedding.weight": ours.positions,
        "final_layer_norm.weight": ours.norm.weight,
        "final_layer_norm.bias": ours.norm.bias,
    }
    for i, block in enumerate(ours.blocks):
        parts = {
            "layer_norm1": block.norm1,
            "layer_norm2": block.norm2,
            "mlp.fc1": block.fc1,
            "mlp.fc2": block.fc2,
            "self_attn.out_proj": block.attention.out,
        }
        for kind in ("weight", "bias"):
            start = f"encoder.layers.{i}."
            for name, module in parts.items():
                names[f"{start}{name}.{kind}"] = getattr(module, kind)
            thirds = getattr(block.attention.qkv, kind).chunk(3)
            for letter, third in zip("qkv", thirds, strict=True):
                names[f"{start}self_attn.{letter}_proj.{kind}"] = third
    theirs = CLIPTextModel(config).eval()
    parameters = dict(theirs.named_parameters())
    parameters = {n.removeprefix("text_model."): p for n, p in parameters.items()}
    assert parameters.keys() == names.keys()
    with torch.no_grad():
        for name, value in names.items():
            parameters[name].copy_(value)
    return theirs


def padded_ids(batch: int, length: int, vocab: int = 300, seed: int = 0) -> torch.Tensor:
    """START, tokens, END, END…: captions of all lengths from none to full."""
    torch.manual_seed(seed)
    ids = torch.randint(0, vocab - 2, (batch, length))
    ids[:, 0] = vocab - 2
    for row, end in zip(ids, torch.linspace(1, length - 1, batch).long(), strict=True):
        row[end:] = vocab - 1
    return ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("hidden", [0, 100])
def test_transformer_equals_transformers(activation, hidden):
    ours = tower(activation=activation, hidden=hidden)
    theirs = transformers_copy(ours, activation)
    ids = padded_ids(8, 20)
    with torch.no_grad():
        answer = theirs(ids)
        assert torch.allclose(ours.states(ids), answer.last_hidden_state, atol=1e-5)
        assert torch.allclose(ours(ids), answer.pooler_output, atol=1e-5)


def test_the_vector_is_the_state_at_the_first_end():
    ours, ids = tower(), padded_ids(8, 20)
    places = end_positions(ids, 299)
    among_all = ours.states(ids)[torch.arange(8), places]
    assert torch.allclose(ours(ids), among_all, atol=1e-5)
    slopes, expected = gradients(ours, ours(ids)), gradients(ours, among_all)
    check_slopes(slopes, expected)


def test_the_other_activation_is_noticed():
    ours = tower(activation="gelu")
    theirs = transformers_copy(ours, "quick_gelu")
    with torch.no_grad():
        gap = (ours(padded_ids(8, 20)) - theirs(padded_ids(8, 20)).pooler_output).abs()
    assert gap.max() > 1e-4


def test_gradients_equal_transformers():
    ours = tower()
    theirs = transformers_copy(ours, "quick_gelu")
    ids = padded_ids(6, 12)
    ours(ids).square().sum().backward()
    theirs(ids).pooler_output.square().sum().backward()
    parameters = dict(theirs.named_parameters())
    name = next(n for n in parameters if n.endswith("layers.0.self_attn.v_proj.weight"))
    third = ours.blocks[0].attention.qkv.weight.grad.chunk(3)[2]
    assert torch.allclose(third, parameters[name].grad, rtol=1e-3, atol=1e-4)


def test_nothing_after_the_first_end_matters():
    ours, bag = tower(), BagOfWords(300, width=48)
    ids = padded_ids(8, 20)
    other = ids.clone()
    for row, end in zip(other, end_positions(ids, 299), strict=True):
        row[end + 1 :] = torch.randint(0, 300, (20 - int(end) - 1,))
    assert not other.equal(ids)
    with torch.no_grad():
        assert (ours(ids) - ours(other)).abs().max() == 0
        assert (bag(ids) - bag(other)).abs().max() == 0


def check_slopes(found, expected) -> None:
    """Sums of many terms: what rounds is measured by the largest of them, whatever cancels."""
    for name, slope in found.items():
        apart, most = (slope - expected[name]).abs().max(), expected[name].abs().max()
        assert apart <= 2e-5 * most, (name, apart, most)


@pytest.mark.parametrize("count", [1, 15, 33, 50, 64, 130])
@pytest.mark.parametrize("new", [tower, lambda: BagOfWords(300, width=48)], ids=["tower", "bag"])
def test_groups_of_like_length_change_nothing(new, count):
    ours, ids = new(), padded_ids(count, 20)
    shapes = []
    ours.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    grouped = encode_by_length(ours, ids)
    rows, lengths = zip(*shapes, strict=True)
    assert sum(rows) == count and len(rows) == max(1, min(4, count // 16))
    assert list(lengths) == sorted(set(lengths)) and lengths[-1] <= 20  # short ones apart
    plain = ours(ids)
    assert torch.allclose(grouped, plain, atol=1e-5)
    slopes, expected = gradients(ours, grouped), gradients(ours, plain)
    check_slopes(slopes, expected)


def test_more_padding_changes_nothing():
    ours, bag = tower(), BagOfWords(300, width=48)
    ids = padded_ids(6, 12)
    longer = torch.cat([ids, torch.full((6, 15), 299)], 1)
    with torch.no_grad():
        assert torch.allclose(ours(ids), ours(longer), atol=1e-5)
        assert torch.allclose(bag(ids), bag(longer), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
def test_later_tokens_never_reach_earlier_states(depth):
    ours = tower(depth=depth)
    ids = torch.randint(0, 298, (1, 9), generator=torch.Generator().manual_seed(0))
    same = ids.expand(9, -1)
    changed = same + torch.eye(9, dtype=torch.long)  # row j: another token at place j
    with torch.no_grad():
        moved = (ours.states(changed) != ours.states(same)).any(-1)
    assert moved.equal(torch.ones(9, 9, dtype=torch.bool).triu())


def test_causal_mask():
    mask = causal_mask(4)
    assert mask.equal(
        torch.tensor([[0.0 if j <= i else -torch.inf for j in range(4)] for i in range(4)])
    )


def test_bag_of_words_has_no_order():
    bag = BagOfWords(300, width=48).eval()
    ids = padded_ids(6, 16)
    shuffled = ids.clone()
    for row, end in zip(shuffled, end_positions(ids, 299), strict=True):
        row[1:end] = row[1:end][torch.randperm(int(end) - 1)]
    assert not shuffled.equal(ids)
    with torch.no_grad():
        assert torch.allclose(bag(ids), bag(shuffled), atol=1e-6)
        assert not torch.allclose(tower()(ids), tower()(shuffled), atol=1e-3)
        assert not torch.allclose(bag(ids), bag(ids + (ids < 200)), atol=1e-3)


def test_end_positions_finds_the_first():
    ids = torch.tensor([[7, 9, 9, 9], [7, 1, 2, 9], [7, 3, 9, 1]])
    assert end_positions(ids, 9).tolist() == [1, 3, 2]


def one_at_a_time(symbols, ranks):
    """The loop that one reads first."""
    while known := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
        symbols = merge(symbols, min(known, key=ranks.get))
    return list(symbols)


@pytest.mark.parametrize("seed", range(20))
def test_the_heap_merges_as_the_loop_does(seed):
    """For ranks in any order too, where a symbol can come about in several ways."""
    rng = random.Random(seed)
    for _ in range(50):
        symbols, pairs = ["a", "b", "c"], []
        for _ in range(rng.randint(1, 12)):
            pair = rng.choice(symbols), rng.choice(symbols)
            pairs += [pair] * (pair not in pairs)
            symbols.append("".join(pair))
        rng.shuffle(pairs)
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        word = tuple(rng.choices("abc", k=rng.randint(0, 14)))
        assert merge_by_rank(word, ranks) == one_at_a_time(word, ranks), (word, pairs)


def test_long_words_have_the_ids_of_the_loop(tokenizer):
    for word in ("a" * 300, "na" * 99, "微笑的猫" * 40, "smiling" * 30):
        symbols = one_at_a_time(word_symbols(word), tokenizer.ranks)
        assert tokenizer.encode(word) == [tokenizer.ids[symbol] for symbol in symbols]


def counted(monkeypatch, name: str) -> list:
    """The arguments of every call of a function of the module."""
    calls, real = [], getattr(text_encoders, name)
    monkeypatch.setattr(text_encoders, name, lambda *a: calls.append(a) or real(*a))
    return calls


@pytest.mark.parametrize("word", ["{}", "{} "], ids=["one word", "many words"])
def test_what_is_ten_times_as_long_takes_little_more_than_ten_times(word, tokenizer):
    """A loop over the whole word for every merge would take a hundred times."""

    def seconds(count: int) -> float:
        text = "".join(
            word.format(x) for x in random.Random(0).choices(string.ascii_lowercase, k=count)
        )
        began = time.process_time()
        tokenizer.encode(text)
        return time.process_time() - began

    few = min(seconds(2_000) for _ in range(3))
    assert min(seconds(20_000) for _ in range(3)) < 35 * few


def test_what_does_not_fit_the_context_is_not_merged(tokenizer, monkeypatch):
    calls = counted(monkeypatch, "word_symbols")
    texts = [" ".join(random.Random(0).choices(["fox", "panda", "ΟΔΟΣ", "12"], k=20_000))]
    assert tokenizer(texts).tolist() == [
        [tokenizer.start, *tokenizer.encode(texts[0])[: tokenizer.context - 2], tokenizer.end]
    ]
    fresh = Tokenizer(tokenizer.merges)
    seen = counted(monkeypatch, "character_class")
    fresh(texts)
    assert len(calls) < 100 and len(seen) < 1000


def test_a_tokenizer_remembers_no_more_than_so_many_words(tokenizer, monkeypatch):
    monkeypatch.setattr(text_encoders, "CACHE", 100)
    fresh = Tokenizer(tokenizer.merges)
    for number in range(1000):
        word = "".join(chr(97 + number // 26**place % 26) for place in range(3))
        assert fresh.encode(f"{word} {START}") == tokenizer.encode(word) + [fresh.start]
        assert len(fresh.cache) <= 110
    fresh.encode("a" * 10_000)
    assert max(map(len, fresh.cache)) < 20  # long words are not kept


def test_many_rows_are_encoded_in_parts(monkeypatch):
    ours, ids = tower(), padded_ids(50, 20)
    whole = encode_by_length(ours, ids)
    monkeypatch.setattr(text_encoders, "GROUP", 8)
    rows = []
    ours.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    assert torch.allclose(encode_by_length(ours, ids), whole, atol=1e-5)
    assert sum(rows) == 50 and max(rows) <= 8
