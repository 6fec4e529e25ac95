"""Attention: by hand, against torch's layer, the fast ways against the plain, gradients too."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from tests.helpers import gradients, noise
from utils.bricks.attention import (
    Attention,
    Block,
    attend,
    join_heads,
    quick_gelu,
    split_heads,
    state_at,
)

CAUSAL = torch.full((7, 7), -torch.inf).triu(1)


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["no mask", "causal"])
def test_attention_is_the_formula_term_by_term(mask):
    q, k, v = noise(3, 7, 4).unbind()
    answer = attend(q, k, v, mask)
    for i in range(7):
        seen = range(7 if mask is None else i + 1)
        powers = [math.exp(float(q[i] @ k[j]) / 2) for j in seen]  # √d = 2
        expected = sum(p * v[j] for p, j in zip(powers, seen, strict=True)) / sum(powers)
        assert torch.allclose(answer[i], expected, atol=1e-5)


def test_a_query_may_look_at_another_sequence():
    q, k, v = noise(2, 3, 4), noise(2, 5, 4, seed=1), noise(2, 5, 6, seed=2)
    weights = (q @ k.mT / 2).softmax(-1)  # (2, 3, 5)
    assert torch.allclose(attend(q, k, v), weights @ v, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "causal"])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_both_ways_to_attend_are_the_two_products(dtype, tolerance, masked, length):
    """In float32 the fused kernel, in bfloat16 on a CPU the products themselves."""
    inputs = [x.clone().requires_grad_() for x in noise(3, 2, 3, length, 8).to(dtype)]
    wholes = [x.detach().float().requires_grad_() for x in inputs]
    mask = torch.full((length, length), -torch.inf).triu(1) if masked else None
    output = attend(*inputs, mask)
    assert output.dtype == dtype
    assert torch.allclose(attend(*(x.detach() for x in inputs), mask), output, atol=tolerance)
    scores = wholes[0] @ wholes[1].mT / 8**0.5 + (0 if mask is None else mask)
    expected = scores.softmax(-1) @ wholes[2]
    slope = noise(*output.shape, seed=9)
    (output.float() * slope).sum().backward(), (expected * slope).sum().backward()
    pairs = [(output, expected), *((x.grad, y.grad) for x, y in zip(inputs, wholes, strict=True))]
    for ours, plain in pairs:
        assert (ours.float() - plain).abs().max() <= tolerance * max(1, plain.abs().max())


def test_heads_come_apart_and_together():
    x = noise(2, 5, 12)
    parts = split_heads(x, 3)
    assert parts.shape == (2, 3, 5, 4)
    assert parts[1, 2, 3].equal(x[1, 3, 8:])  # the third head has the last third
    assert join_heads(parts).equal(x)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_attention_is_torchs_layer(heads):
    torch.manual_seed(0)
    ours, x = Attention(24, heads), noise(2, 7, 24)
    theirs = nn.MultiheadAttention(24, heads, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    for mask in (None, CAUSAL):
        expected = theirs(x, x, x, attn_mask=mask)[0]
        assert torch.allclose(ours(x, mask), expected, atol=1e-6)
        slopes, theirs_slopes = gradients(ours, ours(x, mask)), gradients(theirs, expected)
        assert torch.allclose(slopes["qkv.weight"], theirs_slopes["in_proj_weight"], atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match="width 48 does not divide into 5 heads"):
        Attention(48, 5)


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["no mask", "causal"])
@pytest.mark.parametrize("depth", [1, 3])
def test_one_asking_token_gets_what_it_gets_among_all(mask, depth):
    torch.manual_seed(0)
    blocks, x = nn.ModuleList(Block(24, heads=3) for _ in range(depth)), noise(4, 7, 24)
    places = torch.tensor([0, 6, 3, 3])
    alone = state_at(blocks, x, places, mask)
    everyone = x
    for block in blocks:
        everyone = block(everyone, mask)
    among_all = everyone[torch.arange(4), places]
    assert alone.shape == (4, 24)
    assert torch.allclose(alone, among_all, atol=1e-6)
    slopes, expected = gradients(blocks, alone), gradients(blocks, among_all)
    for name, slope in slopes.items():
        assert torch.allclose(slope, expected[name], atol=1e-5), name


def test_a_block_is_pre_norm():
    torch.manual_seed(0)
    block, x = Block(24, heads=3, activation="gelu", hidden=40), noise(2, 7, 24)
    middle = x + block.attention(F.layer_norm(x, [24]))
    expected = middle + block.fc2(F.gelu(block.fc1(F.layer_norm(middle, [24]))))
    assert torch.allclose(block(x), expected, atol=1e-6)
    for layer in (block.attention.out, block.fc2):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    assert block(x).equal(x)  # nothing stands in the way round


def test_quick_gelu_is_transformers_own():
    x = torch.linspace(-12, 12, 500, requires_grad=True)
    ours, theirs = quick_gelu(x), ACT2FN["quick_gelu"](x)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(ours, x * torch.sigmoid(1.702 * x), atol=1e-6)
    a, b = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-6)
