"""Lesson 06's bricks: draws, gradients, the KL, the logit-Laplace, schedules, the model."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import NO_CODES, NO_PICTURES, noise
from utils import training
from utils.bricks.dvae import (
    DVAE,
    annealed,
    gumbel_max,
    gumbel_noise,
    gumbel_softmax,
    kl_from_uniform,
    logit_laplace,
    map_pixels,
    negative_elb,
    unmap_pixels,
)
from utils.bricks.vq_vae import ConvBlock
from utils.data import Pairs
from utils.recipes import RECIPES, autoencoders, dvae
from utils.training import by_role


def small(**changes) -> DVAE:
    torch.manual_seed(0)
    return DVAE(**{"factor": 4, "width": 16, "latent": 8, "codes": 32} | changes)


# ---------------------------------------------------------------- noise and draws


def test_gumbel_noise_has_its_moments():
    torch.manual_seed(0)
    g = gumbel_noise(torch.zeros(400_000, dtype=torch.float64))
    assert g.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's γ
    assert g.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    below = (g[:, None] < torch.tensor([-1.0, 0.0, 2.0])).double().mean(0)
    wanted = torch.tensor([-1.0, 0.0, 2.0]).double().neg().exp().neg().exp()  # exp(−exp(−g))
    torch.testing.assert_close(below, wanted, atol=0.003, rtol=0)


def test_gumbel_noise_is_finite_and_of_its_logits_type():
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        g = gumbel_noise(torch.zeros(1_000_000, dtype=kind))
        assert g.dtype == kind and g.isfinite().all()


@pytest.mark.parametrize("logits", [[2.0, 1.0, 0.0], [5.0, 0.0, 0.0, 0.0], [-3.0, -3.0]])
def test_argmax_with_gumbel_noise_draws_from_the_softmax(logits):
    torch.manual_seed(0)
    logits = torch.tensor(logits)
    codes = gumbel_max(logits.expand(200_000, -1))
    counted = torch.bincount(codes, minlength=len(logits)) / len(codes)
    torch.testing.assert_close(counted, logits.softmax(0), atol=0.004, rtol=0)
    assert codes.dtype == torch.long


def test_a_relaxed_draw_has_its_winner_from_the_softmax_too():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0])
    for tau in (3.0, 1 / 16):
        winners = gumbel_softmax(logits.expand(100_000, 3), tau).argmax(1)
        counted = torch.bincount(winners, minlength=3) / len(winners)
        torch.testing.assert_close(counted, logits.softmax(0), atol=0.006, rtol=0)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [2.0, 1.0, 1 / 16])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 4, 9)])
def test_a_relaxed_draw_is_pytorchs_bit_for_bit(shape, tau, hard):
    """Values and gradients, for the same seed."""
    found = []
    for draw in (gumbel_softmax, F.gumbel_softmax):
        logits = noise(*shape).requires_grad_()
        torch.manual_seed(3)
        weights = draw(logits, tau, hard)
        (weights * noise(*shape, seed=1)).sum().backward()
        found.append((weights.detach(), logits.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_so_it_is_for_logits_in_another_memory_order():
    logits = noise(2, 9, 4, 4).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    other = noise(2, 9, 4, 4).permute(0, 2, 3, 1)  # not contiguous
    for x in (logits, other):
        torch.manual_seed(3)
        ours = gumbel_softmax(x, 0.5)
        torch.manual_seed(3)
        assert torch.equal(ours, F.gumbel_softmax(x, 0.5))


def test_weights_add_up_to_one_and_harden_as_it_cools():
    logits = noise(50, 8)
    largest = []
    for tau in (8.0, 1.0, 0.1, 1e-3):
        torch.manual_seed(0)
        weights = gumbel_softmax(logits, tau)
        torch.testing.assert_close(weights.sum(-1), torch.ones(50))
        largest.append(weights.max(-1).values.mean().item())
    assert largest == sorted(largest) and largest[-1] > 0.999 and largest[0] < 0.2


def test_straight_through_is_one_hot_forward_and_soft_backward():
    logits, direction = noise(6, 5), noise(6, 5, seed=1)
    slopes = []
    for hard in (False, True):
        x = logits.clone().requires_grad_()
        torch.manual_seed(0)
        weights = gumbel_softmax(x, 0.7, hard)
        (weights * direction).sum().backward()
        slopes.append(x.grad)
    assert torch.equal(*slopes)
    ones = weights.detach().round()
    torch.testing.assert_close(weights.detach(), ones)
    assert ones.sum(-1).tolist() == [1.0] * 6
    torch.manual_seed(0)
    assert torch.equal(ones.argmax(-1), gumbel_max(logits))


def test_the_slope_of_a_relaxed_draw_is_right_when_cold():
    """E[f(draw)] has the slope q·(L − mean L); relaxed draws find it, argmax finds none."""
    losses = torch.tensor([0.8, 0.1, 0.3])
    logits = torch.tensor([1.0, 0.5, 0.0])
    q = logits.softmax(0)
    truth = q * (losses - (q * losses).sum())
    off = []
    for tau in (2.0, 0.1):
        torch.manual_seed(0)
        x = logits.repeat(100_000, 1).requires_grad_()
        (gumbel_softmax(x, tau) @ losses).sum().backward()
        off.append(((x.grad.mean(0) - truth).norm() / truth.norm()).item())
    assert off[1] < 0.05 < 0.3 < off[0]
    assert not gumbel_max(logits.requires_grad_()).requires_grad


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(tau):
    with pytest.raises(ValueError, match=rf"^the temperature is {tau}; it must be above 0$"):
        gumbel_softmax(noise(3), tau)


# ---------------------------------------------------------------- the prior


def test_the_kl_by_hand():
    sure = torch.tensor([1e4, 0.0, 0.0, 0.0])
    two = torch.tensor([1e4, 1e4, 0.0, 0.0])
    uniform = torch.full((4,), -7.0)
    found = kl_from_uniform(torch.stack([sure, two, uniform]))
    torch.testing.assert_close(found, torch.tensor([math.log(4), math.log(2), 0.0]))
    assert kl_from_uniform(noise(2, 3, 5)).shape == (2, 3)


def test_the_kl_is_log_k_minus_the_entropy_of_the_posterior():
    """The prior is uniform, the posterior is the softmax of the logits."""
    logits = 4 * noise(6, 7)
    posterior = torch.distributions.Categorical(logits=logits)
    prior = torch.distributions.Categorical(logits=torch.zeros(6, 7))
    theirs = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(kl_from_uniform(logits), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        kl_from_uniform(logits), math.log(7) - posterior.entropy(), atol=1e-5, rtol=0
    )


def test_the_slope_of_the_kl():
    """q·(ln q + H): 0 for the uniform q, and finite for a q that is sure."""
    logits = (3 * noise(5, 6)).double().requires_grad_()
    kl_from_uniform(logits).sum().backward()
    log_q = logits.detach().log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, log_q.exp() * (log_q + entropy))
    sure = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    kl_from_uniform(sure).sum().backward()
    assert sure.grad.isfinite().all()


def test_batchmean_with_one_number_for_the_prior_sums_over_everything():
    """What a much-used implementation computes; ours gives each place its own."""
    logits = noise(4, 3, 3, 8)
    log_q = logits.log_softmax(-1)
    prior = torch.tensor([1 / 8]).log()
    theirs = F.kl_div(prior, log_q, reduction="batchmean", log_target=True)
    torch.testing.assert_close(kl_from_uniform(logits).sum(), theirs, atol=1e-4, rtol=0)
    a_picture = kl_from_uniform(logits).sum((1, 2)).mean()
    assert theirs.item() == pytest.approx(4 * a_picture.item(), rel=1e-4)


# ---------------------------------------------------------------- pixels in a box


@pytest.mark.parametrize("mu", [-2.197, 0.0, 0.7, 2.197])
@pytest.mark.parametrize("b", [0.135, 0.5, 1.0, 2.0])
def test_the_density_integrates_to_one(mu, b):
    # on an even grid of logits, so that the poles at the edges (b > 1) do no harm
    u = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    inner = u[(u > -30) & (u < 30)]  # 1 − σ(u) can still be told from 0
    x = inner.sigmoid()
    density = logit_laplace(x, torch.tensor(mu).double(), torch.tensor(b).double().log()).exp()
    width = (u[1] - u[0]) * x * (1 - x)  # dx = x(1 − x) du
    assert (density * width).sum().item() == pytest.approx(1.0, abs=1e-3)


def test_the_density_is_that_of_a_laplace_through_a_sigmoid():
    """Against torch.distributions, values and gradients."""
    mu, log_b = noise(40).double().requires_grad_(), noise(40, seed=1).double().requires_grad_()
    x = torch.rand(40, generator=torch.Generator().manual_seed(2)).double() * 0.8 + 0.1
    base = torch.distributions.Laplace(mu, log_b.exp())
    sigmoid = torch.distributions.SigmoidTransform()
    theirs = torch.distributions.TransformedDistribution(base, sigmoid).log_prob(x)
    ours = logit_laplace(x, mu, log_b)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (mu, log_b)),
        torch.autograd.grad(theirs.sum(), (mu, log_b)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_density_by_hand():
    """1/(2b·x(1 − x)) at the median: 2 for x = ½, b = 1."""
    zero = torch.tensor(0.0)
    assert logit_laplace(torch.tensor(0.5), zero, zero).exp().item() == pytest.approx(2.0)
    x, b = torch.tensor(0.9), 0.5
    found = logit_laplace(x, x.logit(), torch.tensor(math.log(b))).exp().item()
    assert found == pytest.approx(1 / (2 * b * 0.9 * 0.1), rel=1e-5)


def test_pixels_are_mapped_away_from_the_edge_and_back():
    x = torch.linspace(0, 1, 256)
    mapped = map_pixels(x)
    torch.testing.assert_close(mapped, 0.8 * x + 0.1)
    torch.testing.assert_close(unmap_pixels(mapped), x, atol=1e-6, rtol=0)
    assert mapped.logit().isfinite().all()
    beyond = unmap_pixels(torch.tensor([0.01, 0.99]))
    assert beyond.tolist() == [0.0, 1.0]


# ---------------------------------------------------------------- the bound and the schedules


def test_the_bound_by_loops():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mu, log_b = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1) / 3
    logits = noise(2, 2, 2, 5, seed=2)
    total = 0.0
    for value, m, s in zip(x.flatten(), mu.flatten(), log_b.flatten(), strict=True):
        p, b = 0.8 * value.item() + 0.1, math.exp(s)
        away = abs(math.log(p / (1 - p)) - m.item())
        total += math.log(2 * b * p * (1 - p)) + away / b
    for place in logits.view(-1, 5).softmax(-1).tolist():
        total += 6.6 * sum(q * math.log(5 * q) for q in place)
    found = negative_elb(x, mu, log_b, logits, 6.6).item()
    assert found == pytest.approx(total / x.numel(), rel=1e-5)


def test_the_weight_of_the_prior_is_the_papers():
    """256×256×3 values and 32×32 places: β = 6.6 weighs a nat of a place as 6.6/192."""
    x = torch.full((1, 3, 64, 64), 0.5)  # the same ratio: 192 values for each of 8×8 places
    zero = torch.zeros_like(x)
    sure = torch.zeros(1, 8, 8, 4).index_fill(-1, torch.tensor([0]), 1e4)
    gap = negative_elb(x, zero, zero, sure, 6.6) - negative_elb(x, zero, zero, sure, 0.0)
    assert gap.item() == pytest.approx(6.6 / 192 * math.log(4), rel=1e-4)


def test_the_bound_does_not_depend_on_the_size_of_the_batch():
    x, mu = torch.rand(1, 3, 8, 8), noise(1, 3, 8, 8)
    logits = noise(1, 2, 2, 5)
    one = negative_elb(x, mu, mu / 4, logits, 2.0)
    many = negative_elb(*(t.repeat(5, 1, 1, 1) for t in (x, mu, mu / 4, logits)), 2.0)
    torch.testing.assert_close(one, many)


def test_schedules_are_half_a_cosine_and_then_stay():
    """DALL·E's: τ from 1 to 1/16, the KL weight from 0 to 6.6 and no way back."""
    assert annealed(0, 1.0, 1 / 16, 150_000) == 1.0
    assert annealed(75_000, 1.0, 1 / 16, 150_000) == pytest.approx(0.53125)
    assert (
        annealed(150_000, 1.0, 1 / 16, 150_000) == annealed(10**7, 1.0, 1 / 16, 150_000) == 1 / 16
    )
    assert annealed(0, 0.0, 6.6, 5000) == 0.0
    assert annealed(1250, 0.0, 6.6, 5000) == pytest.approx(6.6 * (1 - math.cos(math.pi / 4)) / 2)
    assert annealed(5001, 0.0, 6.6, 5000) == pytest.approx(6.6)
    way = [annealed(step, 1.0, 1 / 16, 50) for step in range(60)]
    assert way == sorted(way, reverse=True)


# ---------------------------------------------------------------- the model


def test_shapes():
    model = small()
    mu, log_b, logits = model(torch.rand(2, 3, 16, 24), 1.0)
    assert mu.shape == log_b.shape == (2, 3, 16, 24)
    assert logits.shape == (2, 4, 6, 32)
    codes = model.encode(torch.rand(2, 3, 16, 24))
    assert codes.shape == (2, 4, 6) and codes.dtype == torch.long
    assert model.decode(codes).shape == (2, 3, 16, 24)


def test_as_many_bits_as_the_vq_vae():
    ours, theirs = RECIPES["dvae"], RECIPES["vq_vae"]
    assert (ours.factor, ours.codes, ours.width) == (theirs.factor, theirs.codes, theirs.width)


def test_codes_are_the_likeliest_and_pictures_the_median():
    """argmax without noise; σ(μ) without b, taken back from [0.1, 0.9]."""
    model = small().eval()
    x = torch.rand(2, 3, 16, 16)
    codes = model.encode(x)
    assert torch.equal(codes, model.logits(x).argmax(-1))
    assert torch.equal(codes, model.encode(x))  # no dice
    mu, _ = model.draw(F.one_hot(codes, 32).float() @ model.codebook())
    torch.testing.assert_close(model.decode(codes), unmap_pixels(mu.sigmoid()), atol=1e-5, rtol=0)
    assert model.decode(codes).min() >= 0 and model.decode(codes).max() <= 1


def test_the_first_three_maps_are_mu_and_the_last_three_ln_b():
    model = small()
    z = noise(1, 4, 4, 8)
    maps = model.decoder(z.permute(0, 3, 1, 2))
    mu, log_b = model.draw(z)
    assert torch.equal(mu, maps[:, :3])
    assert torch.equal(log_b, maps[:, 3:].clamp(min=model.floor))


def test_the_floor_holds_on_a_page_that_is_known_exactly():
    model = small(floor=-1.0)
    with torch.no_grad():
        last = model.decoder.layers[-2]
        last.weight.zero_()
        last.bias.fill_(-50.0)
    _, log_b = model.draw(noise(1, 2, 2, 8))
    assert (log_b == -1.0).all()


def test_a_cold_relaxed_draw_is_what_decode_sees():
    model = small().eval()
    with torch.no_grad():
        model.log_sharpness.fill_(9.0)  # so sure that no noise matters
    x = torch.rand(2, 3, 16, 16)
    mu, _, _ = model(x, 1 / 16)
    drawn = model.decode(model.encode(x))
    torch.testing.assert_close(unmap_pixels(mu.sigmoid()), drawn, atol=1e-3, rtol=0)


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_reach_every_weight(hard):
    model = small().train()
    for block in model.modules():  # zero starts hide what lies before them
        if isinstance(block, ConvBlock):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    x = torch.rand(2, 3, 16, 16)
    mu, log_b, logits = model(x, 0.5, hard)
    negative_elb(x, mu, log_b, logits).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_likeliest_code_is_the_nearest():
    """q falls with the squared distance, as fast as the sharpness says."""
    model = small(sharpness=3.0)
    z = model.latents(torch.rand(2, 3, 16, 16))
    distance = torch.cdist(z.flatten(0, 2), model.codebook()).square()  # (places, codes)
    q = model.closeness(z).flatten(0, 2).softmax(-1)
    torch.testing.assert_close(q, (-3.0 * distance / 2).softmax(-1), atol=1e-5, rtol=0)


def test_codes_can_start_from_latents():
    model = small().eval()
    x = torch.rand(2, 3, 16, 16)
    model.start_from(x)
    gaps = model.codebook().unsqueeze(1) - model.latents(x).flatten(0, 2)  # (codes, places, d)
    assert gaps.norm(dim=-1).amin(1).max() < 1e-5 and len(model.encode(x).unique()) > 4


def test_draws_and_the_bound_stay_in_float32_under_autocast():
    model = small()
    x = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mu, log_b, logits = model(x, 1.0)
        loss = negative_elb(x, mu, log_b, logits)
    assert {t.dtype for t in (mu, log_b, logits, loss)} == {torch.float32}


@pytest.mark.parametrize("codes, said", NO_CODES, ids=str)
def test_codes_that_are_none_are_refused(codes, said):
    with pytest.raises(ValueError) as error:
        small().decode(codes)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("pictures, said", NO_PICTURES, ids=str)
def test_pictures_that_are_none_are_refused(pictures, said):
    model = small()
    for ask in (model.encode, lambda x: model(x, 1.0)):
        with pytest.raises(ValueError) as error:
            ask(pictures)
        assert str(error.value).startswith(said)


# ---------------------------------------------------------------- what one code sees


def test_receptive_fields_overlap():
    """A CNN's grid, not patches: one pixel moves 11×11 places of our encoder."""
    encoder = small(width=16).encoder
    for name, part in list(encoder.named_modules()):
        if isinstance(part, torch.nn.GroupNorm):  # it averages over the whole picture
            encoder.set_submodule(name, torch.nn.Identity())
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.normal_(part.weight, std=0.05)
    pictures = torch.rand(1, 3, 64, 64).repeat(2, 1, 1, 1)
    pictures[1, :, 33, 33] = 1 - pictures[1, :, 33, 33]
    with torch.no_grad():
        before, after = encoder(pictures)
    moved = ((before - after).abs().amax(0) > 0).nonzero()
    assert len(moved) == 121
    assert moved.amin(0).tolist() == [3, 3] and moved.amax(0).tolist() == [13, 13]


# ---------------------------------------------------------------- the recipe


def test_every_weight_has_a_role_and_what_reads_or_writes_codes_is_an_edge():
    model = small()
    found = by_role(model, dvae.roles(model))
    names = {id(p): n for n, p in model.named_parameters()}
    edges = {names[id(p)] for p in found["edge"]}
    last = next(n for n in reversed(names.values()) if n.startswith("decoder") and "weight" in n)
    assert edges == {"encoder.layers.1.weight", last, "vectors"}
    assert model.get_parameter(last).shape[0] == 4 * 6  # six maps, shuffled to pixels


def test_the_loss_of_a_step_has_the_temperature_and_the_weight_of_that_step(monkeypatch):
    pairs = Pairs(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), {})
    recipe = dvae.Recipe(
        factor=4, codes=16, width=16, latent=4, steps=100, batch=4, beta=3.0, grow=0.2, cool=0.5,
        continuous=10,
    )  # fmt: skip
    model = recipe.build(pairs, {})
    asked = []
    monkeypatch.setattr(
        dvae, "negative_elb", lambda *parts: asked.append(parts[-1]) or negative_elb(*parts)
    )
    monkeypatch.setattr(
        dvae, "gumbel_softmax", lambda logits, tau: asked.append(tau) or gumbel_softmax(logits, tau)
    )
    (loss,) = recipe.losses(model, pairs, {})
    assert loss(0).isfinite() and asked == [0.0]  # no codes yet, and no prior
    before = model.vectors.clone()
    asked.clear()
    for step in (10, 25, 50, 99):
        assert loss(step).isfinite()
    assert asked[0::2] == [annealed(s, 1.0, 1 / 16, 50) for s in (10, 25, 50, 99)]
    assert asked[1::2] == [annealed(s, 0.0, 3.0, 20) for s in (10, 25, 50, 99)]
    assert not torch.equal(model.vectors, before)  # they started from latents


def test_a_small_run_learns_more_than_the_mean_picture():
    pictures = torch.full((16, 3, 16, 16), 255, dtype=torch.uint8)
    pictures[:, :, 4:12, 4:12] = torch.randint(200, (16, 3, 1, 1), dtype=torch.uint8)
    pairs = Pairs(pictures, {"skin_tone": ["none"] * 16})
    size = {"factor": 4, "codes": 32, "width": 16, "latent": 4, "batch": 16}
    recipe = dvae.Recipe(**size, steps=150, lr=4e-3, continuous=20)
    torch.manual_seed(0)
    model = recipe.build(pairs, {})
    before = autoencoders.measure(model.eval(), pictures)["psnr"]
    (optimizer,), losses = recipe.optimizers(model.train()), recipe.losses(model, pairs, {})
    for _ in training.run(optimizer, losses[0], recipe.steps, warmup=10):
        pass
    after = autoencoders.measure(model.eval(), pictures)["psnr"]
    x = pictures.float() / 255
    mean = -10 * (x - x.mean(0)).square().flatten(1).mean(1).log10().mean().item()
    assert after > mean > before
