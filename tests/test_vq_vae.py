"""Lesson 05's bricks: lookup, gradients, running means, dead codes, parity with two libraries."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import VectorQuantizer
from vector_quantize_pytorch import VectorQuantize

from tests.helpers import NO_CODES, NO_PICTURES, noise
from utils.bricks.vq_vae import (
    VQVAE,
    Codebook,
    ConvBlock,
    Decoder,
    Encoder,
    nearest_code,
    psnr,
    smoothed,
)
from utils.data import Pairs
from utils.recipes import autoencoders
from utils.training import by_role


def small(**changes) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(**{"factor": 4, "width": 16, "latent": 8, "codes": 32} | changes)


# ---------------------------------------------------------------- lookup and gradients


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 4, 3), (1, 3)])
def test_the_nearest_code_is_that_of_brute_force(shape):
    z, book = noise(*shape), noise(9, 3, seed=1)
    found = nearest_code(z, book)
    for index in torch.cartesian_prod(*map(torch.arange, shape[:-1])).view(-1, len(shape) - 1):
        place = tuple(index.tolist())
        distances = [(z[place] - code).square().sum().item() for code in book]
        assert found[place].item() == distances.index(min(distances))
    assert found.dtype == torch.long and found.shape == shape[:-1]


def test_latents_and_codes_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="^latents are 3 wide, codes 4; give both"):
        nearest_code(noise(2, 3), noise(5, 4))


def test_gradients_pass_straight_through():
    """Forward the code, backward as if z had gone through unchanged."""
    book = Codebook(6, 3).eval()
    z = noise(4, 2, 3).requires_grad_()
    passed, indices, _ = book(z)
    torch.testing.assert_close(passed, book.vectors[indices])
    weights = noise(4, 2, 3, seed=5)
    (passed * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_the_commitment_loss_moves_the_latents_alone():
    book = Codebook(6, 3).eval()
    z = noise(7, 3).requires_grad_()
    _, indices, commitment = book(z)
    commitment.backward()
    chosen = book.vectors[indices]
    torch.testing.assert_close(z.grad, 2 * (z.detach() - chosen) / z.numel())
    assert not any(p.requires_grad for p in book.parameters())


def test_beta_belongs_to_the_commitment():
    """diffusers with legacy=False: codebook and encoder gradients, not only the value."""
    theirs = VectorQuantizer(6, 3, beta=0.25, legacy=False)
    book = Codebook(6, 3).eval()
    book.vectors.copy_(theirs.embedding.weight.detach())
    z = noise(2, 3, 4, 4)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    drawn, loss, (_, _, indices) = theirs(a)
    (loss + (drawn * noise(2, 3, 4, 4, seed=3)).sum()).backward()
    vectors = book.vectors.clone().requires_grad_()
    flat = b.permute(0, 2, 3, 1)
    passed, codes, commitment = book(flat)
    codebook = F.mse_loss(vectors[codes], flat.detach())  # the term a running mean replaces
    ours = codebook + 0.25 * commitment
    (ours + (passed.permute(0, 3, 1, 2) * noise(2, 3, 4, 4, seed=3)).sum()).backward()
    assert torch.equal(indices.view_as(codes), codes)
    torch.testing.assert_close(ours, loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(b.grad, a.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors.grad, theirs.embedding.weight.grad, atol=1e-6, rtol=0)
    legacy = VectorQuantizer(6, 3, beta=0.25, legacy=True)
    legacy.embedding.weight.data.copy_(book.vectors)
    value = legacy(z.clone())[1]
    torch.testing.assert_close(value, loss)  # the value does not tell them apart …
    value.backward()
    ratio = legacy.embedding.weight.grad.norm() / theirs.embedding.weight.grad.norm()
    assert ratio.item() == pytest.approx(0.25, abs=1e-4)  # … the gradient does


# ---------------------------------------------------------------- running means


def test_codes_move_as_in_vector_quantize_pytorch():
    """The same running means from the same start, in their settings without extras."""
    theirs = VectorQuantize(
        dim=3,
        codebook_size=5,
        decay=0.9,
        commitment_weight=0.25,
        rotation_trick=False,
        kmeans_init=False,
        threshold_ema_dead_code=0,
    ).train()
    start, counts = noise(5, 3, seed=2), torch.tensor([3.0, 1.0, 4.0, 1.5, 2.0])
    theirs._codebook.embed.data.copy_(start)
    theirs._codebook.embed_avg.data.copy_(start * counts.unsqueeze(1))
    theirs._codebook.cluster_size.data.copy_(counts)
    book = Codebook(5, 3, decay=0.9, dead=0.0).train()
    book.vectors.copy_(start)
    book.sums.copy_(start * counts.unsqueeze(1))
    book.counts.copy_(counts)
    book.updates.fill_(10**6)  # a mean that has forgotten its start, as theirs pretends
    for step in range(4):
        z = noise(1, 40, 3, seed=10 + step)
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        drawn, indices, loss = theirs(a)
        passed, codes, commitment = book(b)
        assert torch.equal(indices, codes)
        torch.testing.assert_close(0.25 * commitment, loss.sum(), atol=1e-6, rtol=0)
        (drawn.square().sum() + loss.sum()).backward()
        (passed.square().sum() + 0.25 * commitment).backward()
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=0)
        torch.testing.assert_close(book.vectors, theirs._codebook.embed[0], atol=1e-5, rtol=0)


def test_means_are_debiased():
    """After one update the counts read as those of the batch, whatever the decay."""
    book = Codebook(4, 2, decay=0.99, dead=0.0).train()
    z = noise(60, 2)
    indices = nearest_code(z, book.vectors)
    book(z)
    counts = torch.bincount(indices, minlength=4).float()
    torch.testing.assert_close(book.counts / (1 - 0.99), counts)
    for k in range(4):
        torch.testing.assert_close(book.vectors[k], z[indices == k].mean(0), atol=1e-4, rtol=0)


def test_smoothing_keeps_the_sum_and_leaves_no_zero():
    counts = torch.tensor([0.0, 5.0, 1.0])
    found = smoothed(counts, 0.1)
    assert found.sum().item() == pytest.approx(6.0) and (found > 0).all()
    assert found[0].item() == pytest.approx(0.1 / 6.3 * 6)


def test_smoothed_counts_are_not_written_back():
    """Only the vectors see them; the running counts stay those of the latents."""
    book = Codebook(3, 2, decay=0.5, dead=0.0).train()
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [99.0, 99.0]]))
    book(torch.zeros(8, 2))
    assert book.counts.tolist() == [4.0, 0.0, 0.0]


def test_nothing_moves_in_eval_mode():
    book = Codebook(5, 2).eval()
    before = {k: v.clone() for k, v in book.state_dict().items()}
    book(noise(30, 2))
    assert all(torch.equal(v, before[k]) for k, v in book.state_dict().items())


def test_a_dead_code_is_put_on_a_latent_of_the_batch():
    torch.manual_seed(0)
    book = Codebook(3, 2, decay=0.9, dead=0.5).train()
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [-60.0, 0.0]]))
    z = noise(20, 2)
    book(z)
    for k in (1, 2):
        assert any(torch.equal(book.vectors[k], row) for row in z)
    assert len(book(z)[1].unique()) > 1  # and so it is used
    kept = Codebook(3, 2, decay=0.9, dead=0.0).train()
    kept.vectors.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [-60.0, 0.0]]))
    for _ in range(3):
        kept(z)
    assert kept(z)[1].unique().tolist() == [0]


def test_the_lookup_does_not_run_in_bfloat16():
    book = Codebook(64, 8).eval()
    z = noise(500, 8)
    with torch.autocast("cpu", torch.bfloat16):
        _, indices, _ = book(z.bfloat16())
    assert torch.equal(indices, nearest_code(z.bfloat16().float(), book.vectors))


# ---------------------------------------------------------------- networks


def test_a_new_block_changes_nothing_and_keeps_negative_values():
    """Whoever takes an in-place ReLU first loses them on the skip path."""
    x = noise(2, 16, 4, 4)
    before = x.clone()
    assert torch.equal(ConvBlock(16)(x), before) and torch.equal(x, before)


@pytest.mark.parametrize("factor, side", [(4, 16), (8, 8)])
def test_shapes(factor, side):
    x = torch.rand(2, 3, 64, 64)
    z = Encoder(factor, 16, 5)(x)
    assert z.shape == (2, 5, side, side)
    assert Decoder(factor, 16, 5)(z).shape == (2, 3, 64, 64)
    assert Decoder(factor, 16, 5, channels=6)(z).shape == (2, 6, 64, 64)


def test_other_factors_are_refused():
    for kind in (Encoder, Decoder):
        with pytest.raises(ValueError, match="^the factor is 2; choose 4 or 8$"):
            kind(2, 16, 5)


def test_latents_lie_on_a_sphere():
    z = small().latents(torch.rand(3, 3, 16, 24))
    assert z.shape == (3, 4, 6, 8)
    torch.testing.assert_close(z.norm(dim=-1), torch.full((3, 4, 6), math.sqrt(8)))


def test_encode_and_decode_are_the_two_halves_of_forward():
    model = small().eval()
    x = torch.rand(2, 3, 16, 16)
    drawn, codes, _ = model(x)
    assert torch.equal(model.encode(x), codes)
    torch.testing.assert_close(model.decode(codes), drawn.clamp(0, 1))
    alone = model.decode(codes[1:])
    torch.testing.assert_close(alone, model.decode(codes)[1:], atol=1e-5, rtol=0)


def test_gradients_reach_every_weight():
    model = small().train()
    for block in model.modules():  # zero starts hide what lies before them
        if isinstance(block, ConvBlock):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    drawn, _, commitment = model(torch.rand(2, 3, 16, 16))
    (drawn.square().mean() + commitment).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("codes, said", NO_CODES, ids=str)
def test_codes_that_are_none_are_refused(codes, said):
    with pytest.raises(ValueError) as error:
        small().decode(codes)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("pictures, said", NO_PICTURES, ids=str)
def test_pictures_that_are_none_are_refused(pictures, said):
    with pytest.raises(ValueError) as error:
        small().encode(pictures)
    assert str(error.value).startswith(said)


def test_psnr_by_hand():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)


# ---------------------------------------------------------------- recipe


def test_every_weight_has_a_role_and_pixels_are_edges():
    model = small()
    found = by_role(model, autoencoders.roles(model))
    names = {id(p): n for n, p in model.named_parameters()}
    edges = {names[id(p)] for p in found["edge"]}
    last = next(n for n in reversed(names.values()) if n.endswith("weight"))
    assert edges == {"encoder.layers.1.weight", last}
    assert model.get_parameter(last).shape[0] == 4 * 3  # twelve maps, shuffled to pixels


def test_an_epoch_shows_every_picture_once():
    pairs = Pairs(torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(-1, 3, 4, 4), {})
    epoch = [autoencoders.batch(pairs, 4, 0, step, "cpu") for step in range(3)]
    seen = (torch.cat(epoch)[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen) == list(range(12))
    again = autoencoders.batch(pairs, 4, 0, 3, "cpu")
    assert not torch.equal(again, epoch[0])  # the next epoch has another order
    assert torch.equal(epoch[1], autoencoders.batch(pairs, 4, 0, 1, "cpu"))


def test_the_figures_of_the_card_by_hand():
    model = small(codes=4).eval()
    pictures = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    found = autoencoders.measure(model, pictures)
    codes = model.encode(pictures.float() / 255)
    used = codes.unique(return_counts=True)[1] / codes.numel()
    assert found["codes_used"] == 100 * len(used) / 4
    assert found["perplexity"] == pytest.approx((-(used * used.log()).sum()).exp().item(), abs=0.06)
    drawn = model.decode(codes)
    error = (drawn - 128 / 255).square().mean().item()
    assert found["psnr"] == pytest.approx(-10 * math.log10(error), abs=0.01)


def test_one_picture_is_compared_with_many():
    many = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = many.mean(0)
    wanted = torch.cat([psnr(one[None], mean[None]) for one in many])
    torch.testing.assert_close(psnr(many, mean), wanted)
    torch.testing.assert_close(psnr(many, mean[None]), wanted)
