"""DALL·E: pads, offsets and segments, three masks, one to seven, the cache, guidance, recipe."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2Model

from tests import helpers, tiny
from tests.helpers import gradients, noise
from utils import checkpoints, data, device, tensors
from utils.bricks import dalle as bricks
from utils.bricks.attention import attend
from utils.bricks.dalle import (
    DALLE,
    Cache,
    continue_block,
    convolution_mask,
    found_among,
    full_mask,
    kind_of_layer,
    layer_masks,
    nearest_codes,
    places_of,
    rerank,
    row_mask,
    sparse_attend,
    stream_loss,
    with_pads,
)
from utils.bricks.vq_vae import VQVAE
from utils.bricks.vqgan import choose
from utils.recipes import dalle, drawing, engine

MERGES = [["r", "e"], ["re", "d</w>"], ["h", "e"], ["he", "a"]]
CODES, TEXT, SIDE = 32, 5, 3


def quantiser() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(8, CODES, width=16, latent=8).eval().requires_grad_(False)


def small(depth: int = 2, scale: float = 0.2, **settings) -> DALLE:
    """A tiny DALLE whose blocks do something."""
    model = DALLE(quantiser(), MERGES, TEXT, SIDE, 32, depth, 2, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
    return model.eval()


def some_codes(count: int, length: int = SIDE**2, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (count, length), generator=draw)


# ---------------------------------------------------------------- pads and offsets


def test_pads_by_hand():
    rows = [[7], [3, 1], [], [5, 6, 7, 8], [9, 8, 7, 6, 5]]
    found = with_pads(rows, 4, 100)
    assert found.dtype == torch.long
    assert found.tolist() == [
        [7, 101, 102, 103],  # the pad of a place, not of how many are missing
        [3, 1, 102, 103],
        [100, 101, 102, 103],
        [5, 6, 7, 8],
        [9, 8, 7, 6],  # cut
    ]
    assert with_pads([], 4, 100).shape == (0, 4) and with_pads([], 4, 100).dtype == torch.long


def test_words_pads_and_codes_have_a_place_of_their_own_in_one_table():
    model = small()
    words = len(model.tokenizer)
    assert words == 2 * 256 + len(MERGES) + 2
    assert (model.first_pad, model.first_code) == (words, words + TEXT)
    assert model.tokens.num_embeddings == model.head.out_features == words + TEXT + CODES
    ids = model.encode_text(["red heart", "", "heart " * 9])
    encoded = model.tokenizer.encode("red heart")
    assert ids[0].tolist() == encoded + [words + j for j in range(len(encoded), TEXT)]
    assert ids[1].tolist() == [words + j for j in range(TEXT)]
    assert ids[2].tolist() == model.tokenizer.encode("heart " * 9)[:TEXT]
    assert torch.equal(model.no_text(2), ids[[1, 1]])


def test_word_seven_is_not_code_seven():
    model = small()
    ids, codes = torch.full((1, TEXT), 7), torch.full((1, SIDE**2), 9)
    stream_loss(model, ids, codes).backward()
    moved = model.tokens.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [7, model.first_code + 9]
    model.zero_grad()
    ids, codes = torch.full((1, TEXT), model.first_pad + 2), torch.full((1, SIDE**2), 7)
    stream_loss(model, ids, codes).backward()
    moved = model.tokens.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [model.first_pad + 2, model.first_code + 7]


@torch.no_grad()
def test_a_vector_is_that_of_its_token_and_its_place():
    model = small()
    ids, codes = model.encode_text(["red"]), some_codes(1, 7)
    found = model.embed(ids, codes)[0]
    assert torch.equal(found[0], model.start)
    for j in range(TEXT):
        wanted = model.tokens.weight[ids[0, j]] + model.places[j]
        torch.testing.assert_close(found[1 + j], wanted)
    for n in range(7):
        row, column = divmod(n, SIDE)
        token = model.tokens.weight[model.first_code + codes[0, n]]
        wanted = token + model.rows[row, 0] + model.columns[column]
        torch.testing.assert_close(found[1 + TEXT + n], wanted)
    assert len(found) == 1 + TEXT + 7


# ---------------------------------------------------------------- masks


def last_in(order: list, side: int) -> dict:
    """For each place of an order, itself and the `side` before it."""
    return {place: set(order[max(0, i - side) : i + 1]) for i, place in enumerate(order)}


def by_definition(kind: str, side: int, kernel: int = 3) -> torch.Tensor:
    """(L, L) bool from sets of (row, column)."""
    raster = list(itertools.product(range(side), range(side)))
    seen = {place: set(raster) for place in raster}
    if kind == "row":
        seen = last_in(raster, side)
    if kind == "column":
        seen = last_in([(row, column) for column, row in raster], side)
    if kind == "convolution":
        reach = range(-(kernel // 2), kernel // 2 + 1)
        for row, column in raster:  # beyond the left edge lies the end of the row above
            steps = [(row + down, column + right) for down in reach for right in reach]
            seen[row, column] = {(y + x // side, x % side) for y, x in steps}
    return torch.tensor(
        [[other in seen[asks] and other <= asks for other in raster] for asks in raster]
    )


BY_KIND = {
    "full": full_mask,
    "row": row_mask,
    "column": bricks.column_mask,
    "convolution": convolution_mask,
}


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("side", [2, 3, 4, 5, 8])
def test_a_mask_is_that_of_the_paper(kind, side):
    found = BY_KIND[kind](side)
    assert found.dtype == torch.bool and torch.equal(found, by_definition(kind, side))
    assert not found.triu(1).any() and found.diagonal().all()


@pytest.mark.parametrize("side, kernel", [(4, 1), (4, 5), (4, 7), (8, 5), (6, 11)])
def test_a_window_of_any_odd_size(side, kernel):
    wanted = by_definition("convolution", side, kernel)
    assert torch.equal(convolution_mask(side, kernel), wanted)


def seen_by(kind: str, row: int, column: int, side: int) -> set[tuple[int, int]]:
    mask = BY_KIND[kind](side)[row * side + column].view(side, side)
    return {tuple(place) for place in mask.nonzero().tolist()}


def test_masks_by_hand():
    """The code (2, 1) of 4×4, and one at the left edge."""
    assert seen_by("row", 2, 1, 4) == {(1, 1), (1, 2), (1, 3), (2, 0), (2, 1)}
    assert seen_by("row", 2, 0, 4) == {(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)}
    # back to the same row one column to the left, of which (3, 0) is not drawn yet
    assert seen_by("column", 2, 1, 4) == {(2, 0), (0, 1), (1, 1), (2, 1)}
    assert seen_by("convolution", 2, 1, 4) == {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)}
    assert seen_by("convolution", 2, 0, 4) == {(0, 3), (1, 0), (1, 1), (1, 3), (2, 0)}


@pytest.mark.parametrize("side", [3, 4, 8])
def test_a_row_is_not_the_same_row_only(side):
    """That is `axial_row` of DALLE-pytorch, where the first code of a row is alone."""
    row = torch.arange(side * side) // side
    same_row = (row.unsqueeze(1) == row) & full_mask(side)
    found = row_mask(side)
    assert not torch.equal(found, same_row) and (found | ~same_row).all()
    counts = found.sum(1).tolist()
    assert counts == [min(i, side) + 1 for i in range(side * side)]


def test_the_layers_take_turns_and_the_last_is_convolutional():
    kinds = [kind_of_layer(layer, 64) for layer in range(1, 65)]
    assert kinds == (["row", "column", "row", "row"] * 16)[:63] + ["convolution"]
    for depth in range(1, 12):
        kinds = [kind_of_layer(layer, depth) for layer in range(1, depth + 1)]
        assert kinds.index("convolution") == depth - 1
        wanted = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth)]
        assert kinds[:-1] == wanted


@pytest.mark.parametrize("attention", ["full", "sparse"])
def test_text_is_causal_and_seen_by_every_code(attention):
    text, side, depth = 4, 3, 6
    kinds = ["row", "column", "row", "row", "row", "convolution"]
    masks = layer_masks(attention, text, side, depth)
    assert len(masks) == depth
    for kind, mask in zip(kinds, masks, strict=True):
        codes = by_definition("full" if attention == "full" else kind, side)
        for asks, other in itertools.product(range(text + side * side), repeat=2):
            allowed = other <= asks
            if asks >= text and other >= text:
                allowed = codes[asks - text, other - text]
            assert mask[asks, other].item() == (0.0 if allowed else -torch.inf)


def test_a_grid_of_one_code_has_full_attention():
    (mask,) = layer_masks("full", 2, 1, 1)
    assert torch.equal(mask, torch.full((3, 3), -torch.inf).triu(1))


@torch.no_grad()
def moves(model: DALLE) -> torch.Tensor:
    """(tokens, guesses) bool: which guesses move when a token of the stream is changed."""
    ids, codes = model.encode_text(["red hat"]), some_codes(1)

    def guesses(ids, codes):
        parts = model(ids, codes[:, :-1])
        return torch.cat([part.double().log_softmax(-1)[..., 3] for part in parts], 1)[0]

    before, found = guesses(ids, codes), []
    for token in range(TEXT + SIDE**2):
        other_ids, other = ids.clone(), codes.clone()
        if token < TEXT:
            other_ids[0, token] = 300
        else:
            other[0, token - TEXT] = (codes[0, token - TEXT] + 5) % CODES
        found.append((guesses(other_ids, other) - before).abs() > 1e-6)
    return torch.stack(found)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_guess_depends_on_all_before_it_and_on_nothing_else(depth):
    found = moves(small(depth))
    later = torch.ones_like(found).triu(1)
    assert torch.equal(found, later)
    # and so the first word is guessed from the start alone


@pytest.mark.parametrize("layer", range(5))
def test_masks_by_perturbation(layer):
    """One layer of a sparse model at a time; the others change nothing."""
    kind = ["row", "column", "row", "row", "convolution"][layer]
    model = small(depth=5, attention="sparse")
    for i, block in enumerate(model.blocks):
        if i != layer:
            for last in (block.attention.out, block.fc2):
                nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    wanted = torch.ones(TEXT + SIDE**2, TEXT + SIDE**2).triu(1).bool()
    # guess n + 1 is made where code n was read
    wanted[TEXT:, TEXT + 1 :] = by_definition(kind, SIDE)[:-1].T
    assert torch.equal(moves(model), wanted)


# ---------------------------------------------------------------- fetching the few


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("side", [3, 6])
def test_the_sparse_way_equals_all_pairs_with_a_mask(kind, side):
    mask = by_definition(kind, side)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    draws = [noise(2, 3, side * side, 8, seed=i).requires_grad_() for i in range(3)]
    outputs = attend(*draws, added), sparse_attend(*draws, places_of(mask))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0)
    weights = noise(*outputs[0].shape, seed=7)
    one, two = (torch.autograd.grad((x * weights).sum(), draws) for x in outputs)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


def test_places_by_hand():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]]).bool()
    wanted = [[0, -1, -1], [0, 1, -1], [1, 2, -1], [0, 2, 3]]
    assert places_of(mask).tolist() == wanted


# ---------------------------------------------------------------- segments and the loss


def joint_loss(model: DALLE, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """⅛ and ⅞ from one row of scores over the whole table, the wrong segment at −∞."""
    states = []
    hook = model.norm.register_forward_hook(lambda *given: states.append(given[-1]))
    model(ids, codes[:, :-1])
    hook.remove()
    scores = states[0] @ model.head.weight.T + model.head.bias  # (B, T + S², V)
    for place in range(TEXT + SIDE**2):
        wrong = torch.zeros(scores.shape[-1], dtype=torch.bool)
        if place < TEXT:
            wrong[model.first_code :] = True
        else:
            wrong[: model.first_code] = True
        scores[:, place] = scores[:, place].masked_fill(wrong, -torch.inf)
    target = torch.cat([ids, codes + model.first_code], 1)
    logs = scores.log_softmax(-1).gather(-1, target.unsqueeze(-1))[..., 0]
    return -(logs[:, :TEXT].mean() + 7 * logs[:, TEXT:].mean()) / 8


def test_a_left_out_segment_is_minus_infinity_before_a_joint_softmax():
    model, ids, codes = small(), small().encode_text(["red hat", "a"]), some_codes(2)
    states = []
    hook = model.norm.register_forward_hook(lambda *given: states.append(given[-1]))
    words, drawn = model(ids, codes[:, :-1])
    hook.remove()
    joint = states[0] @ model.head.weight.T + model.head.bias
    assert words.shape == (2, TEXT, model.first_code) and drawn.shape == (2, SIDE**2, CODES)
    text, picture = joint[:, :TEXT].clone(), joint[:, TEXT:].clone()
    text[..., model.first_code :] = picture[..., : model.first_code] = -torch.inf
    chances = words.softmax(-1), drawn.softmax(-1)
    torch.testing.assert_close(text.softmax(-1)[..., : model.first_code], chances[0])
    torch.testing.assert_close(picture.softmax(-1)[..., model.first_code :], chances[1])
    assert text.softmax(-1)[..., model.first_code :].abs().max() == 0


def test_the_loss_is_one_to_seven_and_so_are_its_gradients():
    model, codes = small(), some_codes(3)
    ids = model.encode_text(["red hat", "a", ""])
    loss, wanted = stream_loss(model, ids, codes), joint_loss(model, ids, codes)
    torch.testing.assert_close(loss, wanted)
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for value in (loss, wanted):
        model.zero_grad()
        value.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if name in own})
        model.zero_grad(set_to_none=True)
    for name in own:
        one, two = found[0][name], found[1][name]
        assert (one - two).norm() < 1e-5 * two.norm(), name
    assert not any(name.startswith("quantiser") for name in own)


def test_where_every_token_is_alike_the_loss_is_known():
    model = small()
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    found = stream_loss(model, model.encode_text(["red"]), some_codes(1)).item()
    assert found == pytest.approx((math.log(model.first_code) + 7 * math.log(CODES)) / 8)


def test_text_counts_one_and_the_picture_seven(monkeypatch):
    """By hand: chances of ½ for words, ¼ for codes."""
    words, drawn = torch.zeros(2, 3, 2), torch.zeros(2, 5, 4)
    ids, codes = torch.ones(2, 3).long(), torch.ones(2, 5).long()
    found = stream_loss(lambda *_: (words, drawn), ids, codes)
    assert found.item() == pytest.approx((math.log(2) + 7 * math.log(4)) / 8)


def test_what_is_shown_may_differ_from_what_is_due():
    model, ids = small(), small().encode_text(["red"])
    codes, seen = some_codes(1), some_codes(1, seed=1)
    words, drawn = model(ids, seen[:, :-1])
    text = F.cross_entropy(words[0], ids[0])
    picture = F.cross_entropy(drawn[0], codes[0])
    wanted = (text + 7 * picture) / 8
    torch.testing.assert_close(stream_loss(model, ids, codes, seen), wanted)
    same = stream_loss(model, ids, codes, codes)
    torch.testing.assert_close(same, stream_loss(model, ids, codes))
    assert not torch.allclose(same, wanted)


# ---------------------------------------------------------------- parity


@torch.no_grad()
def test_with_full_attention_it_is_a_gpt_2():
    """Copied weights; their positions are 0, for ours stand in the vectors already."""
    model = small(depth=3)
    size = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 1 + TEXT + SIDE**2}
    theirs = GPT2Model(GPT2Config(vocab_size=1, activation_function="gelu", **size)).eval()
    nn.init.zeros_(theirs.wpe.weight)
    for ours, block in zip(model.blocks, theirs.h, strict=True):
        pairs = [(ours.norm1, block.ln_1), (ours.norm2, block.ln_2)]
        pairs += [(ours.attention.qkv, block.attn.c_attn), (ours.attention.out, block.attn.c_proj)]
        pairs += [(ours.fc1, block.mlp.c_fc), (ours.fc2, block.mlp.c_proj)]
        for mine, other in pairs:
            turned = mine.weight.T if mine.weight.ndim == 2 else mine.weight
            other.weight.copy_(turned), other.bias.copy_(mine.bias)
    theirs.ln_f.load_state_dict(model.norm.state_dict())
    ids, codes = model.encode_text(["red hat", ""]), some_codes(2)[:, :-1]
    states = theirs(inputs_embeds=model.embed(ids, codes)).last_hidden_state
    words, drawn = model(ids, codes)
    torch.testing.assert_close(words, model.words(states[:, :TEXT]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn, model.next_codes(states[:, TEXT:]), atol=1e-5, rtol=1e-5)


def test_its_blocks_are_those_of_torch_with_masks_and_gradients():
    model = small(depth=5, attention="sparse")
    x = noise(2, 1 + TEXT + SIDE**2, 32)
    for ours, mask in zip(model.blocks, model.masks, strict=True):
        theirs = nn.TransformerEncoderLayer(
            32, 2, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        names = {
            "attention.qkv.": "self_attn.in_proj_",
            "attention.out.": "self_attn.out_proj.",
            "fc1.": "linear1.",
            "fc2.": "linear2.",
        }
        state = {}
        for name, value in ours.state_dict().items():
            for old, new in names.items():
                name = name.replace(old, new)
            state[name] = value
        theirs.load_state_dict(state)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        one, two = ours(a, mask), theirs(b, src_mask=mask)
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        mine = gradients(ours, one)
        right = gradients(theirs, two)
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
        for value, other in zip(mine.values(), [right[n] for n in state], strict=True):
            torch.testing.assert_close(value, other, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the cache


def test_a_cache_puts_the_new_behind_the_old():
    cache = Cache()
    parts = [noise(1, 2, n, 4, seed=n) for n in (3, 1, 2)]
    for i, part in enumerate(parts):
        k, v = cache.add(part, -part)
        assert torch.equal(k, torch.cat(parts[: i + 1], 2)) and torch.equal(v, -k)


@torch.no_grad()
def test_a_block_goes_on_as_if_it_saw_all():
    model = small(attention="sparse")
    for block, mask in zip(model.blocks, model.masks, strict=True):
        x, cache, parts = noise(2, len(mask), 32), Cache(), []
        for start, end in itertools.pairwise([0, 4, 5, 9, len(mask)]):
            part = x[:, start:end]
            parts.append(continue_block(block, part, mask[start:end, :end], cache))
        torch.testing.assert_close(torch.cat(parts, 1), block(x, mask), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "sparse"])
def test_logits_with_a_cache_are_those_without(attention, monkeypatch):
    model = small(3, attention=attention)
    ids, codes = model.encode_text(["red hat", "", "a"]), some_codes(3)
    caches, lengths = [Cache() for _ in model.blocks], []
    real = bricks.continue_block
    monkeypatch.setattr(
        bricks, "continue_block", lambda *x: lengths.append(x[1].shape[1]) or real(*x)
    )
    for n in range(SIDE**2):
        found = model.newest(ids, codes[:, :n], caches)
        wanted = model(ids, codes[:, :n])[1][:, -1]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # the text at once, and then no token twice
    assert lengths == [1 + TEXT] * 3 + [1] * 3 * (SIDE**2 - 1)


@pytest.mark.parametrize("attention", ["full", "sparse"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_codes_with_a_cache_are_those_without(attention, guidance):
    model = small(3, 0.3, attention=attention)
    prompts = ["red hat", "heart", "a"]
    how = {"seed": [4, 5, 6], "guidance": guidance, "temperature": 0.9, "top_k": 20}
    found = model.codes(prompts, **how)
    assert torch.equal(found, model.codes(prompts, cached=False, **how))
    assert len(found.unique()) > 5


# ---------------------------------------------------------------- drawing


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_a_picture_is_drawn_code_by_code(guidance):
    """u + s·(c − u), with both guesses made anew for every code."""
    model, prompts, seeds = small(scale=0.3), ["red hat", "heart"], [3, 8]
    found = list(model.stream(prompts, seed=seeds, guidance=guidance, top_p=0.95))
    assert [x.shape for x in found] == [(2, n) for n in range(1, SIDE**2 + 1)]
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        darts = torch.rand(SIDE**2, generator=device.generator(seed))
        codes = torch.zeros(1, 0, dtype=torch.long)
        for place in range(SIDE**2):
            asked = model(model.encode_text([prompt]), codes)[1][:, -1]
            free = model(model.no_text(1), codes)[1][:, -1]
            logits = free + guidance * (asked - free)
            code = choose(logits, darts[place : place + 1], 0.9, top_p=0.95)
            codes = torch.cat([codes, code.unsqueeze(1)], 1)
            assert torch.equal(found[place][i], codes[0])
    grids = model.codes(prompts, seed=seeds, guidance=guidance, top_p=0.95)
    assert torch.equal(grids, found[-1].view(2, SIDE, SIDE))
    hot = model.codes(prompts, seed=seeds, guidance=guidance, temperature=1.0, top_p=0.95)
    assert not torch.equal(grids, hot)
    pictures = model.generate(prompts, seed=seeds, guidance=guidance, top_p=0.95)
    assert torch.equal(pictures, model.quantiser.decode(grids))


def test_a_scale_of_one_is_the_plain_model_and_of_none_ignores_the_prompt():
    model = small(scale=0.3)
    plain = model.codes(["red hat"], guidance=1)
    assert torch.equal(model.codes(["red hat"]), plain)
    # beside 1 the other way round is taken: nearly the same logits, the same codes
    assert torch.equal(model.codes(["red hat"], guidance=1 + 1e-9), plain)
    silent = [model.codes([prompt], guidance=0) for prompt in ("red hat", "heart", "a")]
    assert torch.equal(silent[0], silent[1]) and torch.equal(silent[0], silent[2])
    assert not torch.equal(model.codes(["heart"]), plain)


def test_one_seed_gives_the_same_picture_alone_or_among_others():
    model, prompts = small(scale=0.3), ["red hat", "heart", "a", "heart"]
    together = model.codes(prompts, seed=[7, 7, 8, 9], guidance=2.0)
    for i, seed in enumerate([7, 7, 8, 9]):
        assert torch.equal(model.codes([prompts[i]], seed=seed, guidance=2.0)[0], together[i])
    assert not torch.equal(together[1], together[3])  # the same prompt, another seed
    alike = model.codes(["heart"] * 3, seed=5)
    assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], alike[2])


def test_drawing_needs_no_gradient_and_leaves_the_random_numbers_alone():
    model = small()
    before = torch.random.get_rng_state()
    stream = model.stream(["red hat"])
    next(stream)
    assert torch.is_grad_enabled()  # between two codes, too
    assert not model.generate(["red hat"]).requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "prompts, said",
    [
        ("red hat", "prompts are a list of strings"),
        (5, "prompts are a list of strings"),
        (None, "prompts are a list of strings"),
        ([b"red"], "prompts are a list of strings"),
        (["red", None], "prompts are a list of strings"),
        ({"red"}, "prompts are a list of strings"),
        ([], "there are no prompts"),
        ([""], "prompt 0 is empty"),
        (["red", " \n"], "prompt 1 is empty"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(prompts, said):
    assert said in helpers.refusal(small().generate, prompts)


def test_what_else_is_refused():
    model = small()

    def codes(**how):
        return lambda: model.codes(["red", "hat"], **how)

    told = helpers.refusal(codes(seed=[1]))
    assert told.startswith("there are 2 prompts and 1 seeds; give one seed, or")
    assert "3 seeds" in helpers.refusal(codes(seed=range(3)))
    assert "the temperature is 0" in helpers.refusal(codes(temperature=0))
    assert "attention is 'rows'; choose" in helpers.refusal(layer_masks, "rows", 2, 3, 1)
    for kernel in (0, 4, -1, 9):
        told = helpers.refusal(convolution_mask, 4, kernel)
        assert told == f"the kernel is {kernel}; choose an odd one from 1 to 7"


def test_a_prompt_that_is_too_long_is_cut_and_a_strange_one_is_drawn():
    model = small(scale=0.3)
    fits = "red " * TEXT  # a token a word
    for long in (fits + "hat", "red " * 400):
        assert torch.equal(model.codes([long]), model.codes([fits]))
    assert model.generate(["红心", "🦊", "a\x00b", "<|end|>"]).isfinite().all()


# ---------------------------------------------------------------- measuring


class Eyes:
    """Stands for `class_vectors` and `image_vectors`: every picture's score of every label."""

    def __init__(self, monkeypatch, scores: torch.Tensor, labels: list[str]):
        def classes(_, asked):
            return torch.eye(len(labels))[[labels.index(label) for label in asked]]

        monkeypatch.setattr(bricks, "class_vectors", classes)
        monkeypatch.setattr(bricks, "image_vectors", lambda _, pictures: scores)


def test_the_judge_among_all_by_brute_force(monkeypatch):
    labels = [f"{chr(97 + i)} thing" for i in range(9)]
    scores, own = noise(40, 9), [labels[i % 9] for i in range(40)]
    Eyes(monkeypatch, scores, labels)
    found = found_among(None, torch.zeros(40, 3, 8, 8), own, labels, among=9)
    wanted = [max(labels, key=lambda x: row[labels.index(x)]) for row in scores]
    assert found.tolist() == [a == b for a, b in zip(own, wanted, strict=True)]
    assert found.dtype == torch.bool
    # more than there are means all; the order of the pool does not count, nor twice the same
    for pool, among in ((labels, 100), (labels[::-1] * 2, 9), ([], 9)):
        again = found_among(None, torch.zeros(40), own, pool, among)
        assert again.tolist() == found.tolist()


def test_the_judge_chooses_among_as_many_as_said(monkeypatch):
    """One label beats the right one: it is missed where that one was drawn, 1 in 29 times."""
    labels = [f"label {i:02}" for i in range(30)]
    scores = torch.zeros(3000, 30)
    scores[:, 4], scores[:, 11] = 1.0, 2.0
    Eyes(monkeypatch, scores, labels)
    found = found_among(None, scores, ["label 04"] * 3000, labels, among=2)
    assert found.float().mean().item() == pytest.approx(1 - 1 / 29, abs=0.015)
    again = found_among(None, scores, ["label 04"] * 3000, labels, among=2)
    other = found_among(None, scores, ["label 04"] * 3000, labels, among=2, seed=1)
    assert torch.equal(found, again) and not torch.equal(found, other)
    scores[:, 11] = 1.0  # as near as the right one is not nearer than it
    assert not found_among(None, scores, ["label 04"] * 50, labels, among=30).any()


def test_the_guide_puts_what_fits_best_first():
    guide, pictures = tiny.model("clip").eval(), tiny.pictures()
    with torch.no_grad():
        vector = guide.encode_text(["a red fox"])[0]
        scores = [(guide.encode_image(p[None])[0] @ vector).item() for p in pictures]
    wanted = sorted(range(3), key=lambda i: -scores[i])
    assert rerank(guide, pictures, "a red fox").tolist() == wanted


def test_the_nearest_grid_by_loops():
    codes, known = some_codes(6, 8, 1) % 4, some_codes(30, 8, 2) % 4
    known[17] = codes[3]
    shares, which = nearest_codes(codes, known)
    for i, row in enumerate(codes.tolist()):
        each = [
            sum(a == b for a, b in zip(row, other, strict=True)) / 8 for other in known.tolist()
        ]
        assert shares[i].item() == pytest.approx(max(each))
        assert each[which[i]] == max(each)
    assert (shares[3].item(), which[3].item()) == (1.0, 17)


# ---------------------------------------------------------------- pairs set aside


@pytest.fixture(scope="module")
def plain() -> data.Pairs:
    return data.load_emoji("train").where(skin_tone="none")


def key(row: dict) -> tuple[str, str]:
    return row["concept"], row["style"]


def test_what_is_set_aside_is_kept_in_its_other_styles(plain):
    kept, aside = data.set_aside(plain)
    shown = {key(kept.row(i)) for i in range(len(kept))}
    hidden = [key(aside.row(i)) for i in range(len(aside))]
    assert len(hidden) == 200 == len({concept for concept, _ in hidden})
    assert len(kept) + 200 == len(plain) and not shown & set(hidden)
    for concept, style in hidden:
        others = [other for other in data.STYLES if other != style]
        assert all((concept, other) in shown for other in others)
    counts = Counter(style for _, style in hidden)
    assert set(counts) == set(data.STYLES) and min(counts.values()) > 25
    again = data.set_aside(plain)[1]
    assert again.table == aside.table and torch.equal(again.pictures, aside.pictures)
    assert data.set_aside(plain, seed=1)[1].table != aside.table


def styled(concepts: int = 8, side: int = 16) -> data.Pairs:
    """Concepts in all four styles and one in three; every picture is of one number, its own."""
    rows = [(c, style) for c in range(concepts) for style in data.STYLES][:-1]
    table = {
        "label_en": [f"fox {c}" for c, _ in rows],
        "keywords_en": [["red", "wild"] if c % 2 else [] for c, _ in rows],
        "style": [style for _, style in rows],
        "skin_tone": ["dark" if c == 2 else "none" for c, _ in rows],
        "concept": [str(c) for c, _ in rows],
        "group": ["flags" if c == 1 else "animals" for c, _ in rows],
    }
    numbers = torch.arange(len(rows), dtype=torch.uint8).view(-1, 1, 1, 1)
    return data.Pairs(numbers.expand(-1, 3, side, side).contiguous(), table)


def test_too_few_whole_concepts_are_told():
    pairs = styled()
    kept, aside = data.set_aside(pairs, 7)
    assert len(aside) == 7 and "7" not in aside.table["concept"]
    with pytest.raises(ValueError, match="^7 concepts have every style; 8 were asked for$"):
        data.set_aside(pairs, 8)
    kept, aside = data.set_aside(pairs, 0)
    assert kept.table == pairs.table and len(aside) == 0


# ---------------------------------------------------------------- the recipe


RECIPE = dalle.Recipe(
    steps=6, batch=4, merges=20, width=16, depth=2, heads=2, moves=2, aside=2, questions=3, warmup=2
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of what is encoded once, in place of the house's."""
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    real = engine.cached
    monkeypatch.setattr(engine, "cached", lambda *given: real(*given, runs=tmp_path))
    return tmp_path / "cache"


def built(recipe: dalle.Recipe = RECIPE, pairs: data.Pairs | None = None) -> DALLE:
    torch.manual_seed(0)
    return recipe.build(pairs or styled(), {"quantiser": quantiser()})


def test_a_model_fits_its_pictures_and_its_quantiser():
    model = built()
    assert model.side == 2 and model.text == 16 and len(model.blocks) == 2
    merges = [tuple(pair) for pair in model.config["merges"]]
    texts = ["fox 0", *["fox 1", "red", "wild"], "fox 2"]
    assert dalle.texts(styled(3)) == texts
    assert merges[0] in {("f", "o"), ("o", "x</w>"), ("fo", "x</w>")}
    assert model.config["side"] == 2 and model.config["dropout"] == 0.1


def test_a_caption_says_label_style_and_keyword():
    pairs, rng = styled(), random.Random(0)
    for i in range(8):
        row, found = pairs.row(i), {drawing.caption(pairs, i, rng) for _ in range(400)}
        label, words = row["label_en"], data.STYLE_WORDS[row["style"]]["en"]
        wanted = {label, f"a picture of {label}"}
        articles = {word: "an" if word == "outlined" else "a" for word in words}
        wanted |= {f"{articles[word]} {word} drawing of {label}" for word in words}
        wanted |= {f"{label} in {word} style" for word in words}
        wanted |= {f"{label}, {keyword}" for keyword in row["keywords_en"] or [label]}
        assert found == wanted


def test_a_picture_moves_by_a_pixel_or_two_and_white_comes_in():
    pictures = torch.randint(0, 255, (2, 3, 7, 7), dtype=torch.uint8)
    assert torch.equal(drawing.moved(pictures, 0), pictures)
    shifts = []
    for move in range(1, 9):
        found = drawing.moved(pictures, move)
        assert found.shape == pictures.shape and found.dtype == torch.uint8
        fits = []
        for down, right in itertools.product(range(-3, 4), repeat=2):
            wanted = torch.full_like(pictures, 255)
            for y, x in itertools.product(range(7), repeat=2):
                if 0 <= y - down < 7 and 0 <= x - right < 7:
                    wanted[:, :, y, x] = pictures[:, :, y - down, x - right]
            if torch.equal(found, wanted):
                fits.append((down, right))
        shifts += fits
    assert len(shifts) == len(set(shifts)) == 8 and (0, 0) not in shifts
    assert all(max(map(abs, shift)) in (1, 2) for shift in shifts)


def test_codes_are_computed_once_for_these_pictures_and_this_quantiser(cache, monkeypatch):
    model, pairs = built(), tiny.pairs(n=5)
    found = dalle.encoded(model, pairs, 2)
    assert found.shape == (3, 5, 16) and found.dtype == torch.int16
    for move in range(3):
        pictures = drawing.moved(pairs.pictures, move).float() / 255
        wanted = model.quantiser.encode(pictures).flatten(1)
        assert torch.equal(found[move].long(), wanted)
    assert not torch.equal(found[0], found[1])
    (file,) = cache.iterdir()

    def never(*_):
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(VQVAE, "encode", never)
        assert torch.equal(dalle.encoded(model, pairs, 2), found)
        for other, some, moves in (
            (model, pairs, 1),
            (model, tiny.pairs("another", 5), 2),
            (changed(model), pairs, 2),
        ):
            with pytest.raises(AssertionError, match="encoded again"):
                dalle.encoded(other, some, moves)
    dalle.encoded(changed(model), pairs, 2)
    assert len(list(cache.iterdir())) == 2


def changed(model: DALLE) -> DALLE:
    """With one weight of the quantiser's encoder moved."""
    other = built()
    other.quantiser.load_state_dict(model.quantiser.state_dict())
    next(other.quantiser.encoder.parameters()).data.view(-1)[3] += 0.1
    return other


@pytest.fixture
def watched(monkeypatch):
    """(model, loss, what each step showed): codes are the numbers of the pictures."""
    pairs, seen = styled(), []
    model = built()
    monkeypatch.setattr(
        dalle,
        "encoded",
        lambda _, kept, moves: torch.stack(
            [kept.pictures[:, 0, 0, :4].short() + 1000 * move for move in range(moves + 1)]
        ),
    )
    monkeypatch.setattr(model, "encode_text", lambda prompts: prompts)

    def keep(_, prompts, right, shown):
        seen.append((prompts, right[:, 0].tolist(), shown))
        return torch.zeros(())

    monkeypatch.setattr(dalle, "stream_loss", keep)
    (loss,) = RECIPE.losses(model, pairs, {})
    return pairs, loss, seen


def test_what_is_set_aside_never_reaches_the_loss(watched):
    pairs, loss, seen = watched
    kept, aside = drawing.shown(pairs, RECIPE.aside)
    hidden = set(aside.pictures[:, 0, 0, 0].tolist())
    toned = {i for i in range(len(pairs)) if pairs.table["skin_tone"][i] != "none"}
    assert len(hidden) == 2 and len(toned) == 4
    steps = len(kept) // RECIPE.batch  # of an epoch
    for step in range(60 * steps):
        loss(step)
    every = [code % 1000 for _, right, _ in seen for code in right]
    assert set(every) == set(range(len(pairs))) - hidden - toned
    for epoch in range(60):  # nothing comes twice before all else has come
        part = every[epoch * steps * RECIPE.batch :][: steps * RECIPE.batch]
        assert len(set(part)) == len(part)
    moves = Counter(code // 1000 for _, right, _ in seen for code in right)
    assert set(moves) == {0, 1, 2}
    assert moves[0] / sum(moves.values()) == pytest.approx(0.5, abs=0.07)


def test_a_picture_goes_with_its_own_words_or_none(watched):
    pairs, loss, seen = watched
    for step in range(200):
        loss(step)
    silent = 0
    for prompts, right, shown in seen:
        assert len(prompts) == len(right) == len(shown) == RECIPE.batch
        for prompt, code in zip(prompts, right, strict=True):
            silent += not prompt
            assert not prompt or pairs.table["label_en"][code % 1000] in prompt
    assert silent / 800 == pytest.approx(RECIPE.silent, abs=0.04)


def test_a_step_depends_on_its_number_alone(watched):
    _, loss, seen = watched
    for step in (7, 3, 7):
        torch.manual_seed(step)
        loss(step)
    first, other, again = seen
    assert first[:2] == again[:2] and torch.equal(first[2], again[2])
    assert first[:2] != other[:2]


def test_inputs_are_corrupted_and_targets_stay(cache, monkeypatch):
    pairs, model, seen = styled(), built(), []
    monkeypatch.setattr(dalle, "stream_loss", lambda *given: seen.append(given) or torch.zeros(()))
    (loss,) = RECIPE.losses(model, pairs, {})
    known = {tuple(row) for row in dalle.encoded(model, pairs, 2).flatten(0, 1).tolist()}
    torch.manual_seed(0)
    for step in range(80):
        loss(step)
    right, shown = (torch.cat([given[i] for given in seen]) for i in (2, 3))
    assert {tuple(row) for row in right.tolist()} <= known
    kept = (right == shown).float().mean().item()
    assert kept == pytest.approx(RECIPE.keep + (1 - RECIPE.keep) / CODES, abs=0.03)
    assert 0 <= shown.min() and shown.max() < CODES


def test_every_parameter_but_the_quantisers_has_its_role():
    model = built()
    (optimizer,) = RECIPE.optimizers(model)
    owned = [p.data_ptr() for group in optimizer.param_groups for p in group["params"]]
    own = [p.data_ptr() for name, p in model.named_parameters() if "quantiser" not in name]
    assert sorted(owned) == sorted(own)
    matrices = {p.data_ptr() for p in optimizer.matrices}
    wanted = {p.data_ptr() for p in model.blocks.parameters() if p.ndim > 1}
    assert matrices == wanted


def test_no_flag_is_asked_for():
    labels, pool = drawing.asked(styled(), 5)
    assert pool == [f"fox {c}" for c in range(8) if c != 1]
    assert len(set(labels)) == 5 and set(labels) <= set(pool)
    assert drawing.asked(styled(), 5)[0] == labels


def test_a_copy_has_nine_in_ten_codes_of_one_picture():
    known = torch.arange(2 * 3 * 16).view(2, 3, 16)  # as they are, and moved
    rows = known[[0, 1, 1, 0], [0, 2, 1, 1]].clone()
    rows[1, :1] = -1  # 15 of 16
    rows[2, :2] = -1  # 14 of 16
    rows[3, 8:] = known[0, 2, 8:]  # half of one and half of another
    assert dalle.copies(rows.view(4, 4, 4), known) == 50.0


def test_unseen_pairs_are_asked_for_by_style_and_label(monkeypatch):
    kept, aside = drawing.shown(styled(side=8), 5)
    wanted = [data.STYLES.index(style) for style in aside.table["style"]]
    prompts, judged = [], []

    class Drawer:
        def generate(self, part, guidance):
            prompts.extend(part)
            return torch.zeros(len(part), 3, 8, 8)

    def vectors(_, pictures):
        if len(pictures) == len(kept):
            return torch.eye(4)[[data.STYLES.index(s) for s in kept.table["style"]]]
        return torch.eye(4)[[wanted[0], *[(w + 1) % 4 for w in wanted[1:3]], *wanted[3:]]]

    def found(*given):
        judged.append(given[2:4])
        return torch.tensor([True, True, False, False, False])

    monkeypatch.setattr(drawing, "image_vectors", vectors)
    monkeypatch.setattr(drawing, "found_among", found)
    figures = drawing.unseen_pairs(Drawer(), None, kept, aside, ["a", "b"], 2.0)
    assert figures == {"set_aside_found": 40.0, "set_aside_style": 60.0}
    words = [data.STYLE_WORDS[style]["en"][0] for style in aside.table["style"]]
    labels = aside.table["label_en"]
    asked = ["an outlined" if word == "outlined" else f"a {word}" for word in words]
    assert prompts == [f"{w} drawing of {x}" for w, x in zip(asked, labels, strict=True)]
    assert judged == [(labels, ["a", "b"])]


def test_the_best_of_sixteen_is_the_guides_choice(monkeypatch):
    model, seen = built(), {}

    def generate(prompts, seed, guidance):
        seen.update(prompts=prompts, seeds=list(seed), guidance=guidance)
        return torch.arange(32.0).view(32, 1, 1, 1).expand(-1, 3, 2, 2)

    def rerank(guide, pictures, label):
        assert pictures.shape == (16, 3, 2, 2)
        return torch.tensor({"fox 3": [11, 3], "fox 4": [2, 0]}[label])

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(dalle, "rerank", rerank)
    assert RECIPE.best(model, None, ["fox 3", "fox 4"])[:, 0, 0, 0].tolist() == [11, 16 + 2]
    asked = ["fox 3"] * 16 + ["fox 4"] * 16
    assert seen == {"prompts": asked, "seeds": [*range(16)] * 2, "guidance": 2.0}


@pytest.mark.parametrize("aside", [0, 2])
def test_a_run_ships_what_draws_and_measures_it(aside, cache, monkeypatch, tmp_path):
    pairs = styled(8, 32)
    pairs.pictures[:] = torch.randint_like(pairs.pictures, 256)
    monkeypatch.setattr(engine, "load_emoji", lambda split: pairs)
    for name in ("clip", "clip_resnet", "vqgan"):
        tiny.save(name, tmp_path)
    card = engine.pretrain(
        "dalle", replace(RECIPE, aside=aside), tmp_path, tmp_path / "runs", save_every=0
    )
    figures = {"found", "found_guided", "copies"}
    figures |= {"set_aside_found", "set_aside_style"} if aside else set()
    assert card["metrics"].keys() == figures | {"best_of_16"}
    assert all(look.keys() == figures for look in card["looks"].values())
    assert set(card["looks"]) == {"1", "2", "4", "6"}
    assert card["set_aside"].startswith(f"{aside} (concept, style) pairs of train")
    assert set(card["helpers"]) == {"guide", "judge"}
    stored = tensors.read(tmp_path / "dalle.safetensors")[0]
    assert not any(name.startswith("quantiser") for name in stored)
    model = checkpoints.load("dalle", folder=tmp_path)
    assert model.generate(["fox 3"]).shape == (1, 3, 32, 32)
