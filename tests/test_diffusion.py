"""Diffusion: schedules, noise, three targets, the posterior, the U-Net, sampling, the recipe."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from tests import helpers, tiny
from tests.diffusions import SIDE, STEPS, Oracle, small
from tests.helpers import gradients, noise
from utils import checkpoints, data, device, tensors
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import (
    Diffusion,
    Mixer,
    TimeBlock,
    UNet,
    add_noise,
    betas,
    diffusion_loss,
    frechet_distance,
    picture_distances,
    posterior,
    read_off,
    signal_left,
    target,
    timestep_embedding,
)
from utils.recipes import diffusion, drawing, engine

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
LIMITS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def scheduler(schedule: str = "linear", **settings) -> DDPMScheduler:
    start, end = LIMITS[schedule]
    return DDPMScheduler(1000, start, end, SCHEDULES[schedule], **{"clip_sample": False} | settings)


def rows(count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, noise, and a share of signal for each row, none at an end."""
    shape = (count, 3, 4, 4)
    return noise(*shape, seed=1), noise(*shape, seed=2), torch.linspace(0.05, 0.95, count)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_that_of_diffusers(schedule):
    theirs = scheduler(schedule)
    ours = betas(schedule, 1000)
    torch.testing.assert_close(ours.float(), theirs.betas, atol=1e-6, rtol=1e-5)
    left = signal_left(ours)
    torch.testing.assert_close(left.float(), theirs.alphas_cumprod, atol=2e-6, rtol=0)


def test_schedules_by_their_formulas():
    for schedule, (start, end) in (("linear", (1e-4, 0.02)), ("scaled_linear", (0.00085, 0.012))):
        root = 2 if schedule == "scaled_linear" else 1
        found = betas(schedule, 1000).tolist()
        for t in (0, 1, 500, 999):
            line = start ** (1 / root) + t / 999 * (end ** (1 / root) - start ** (1 / root))
            assert found[t] == pytest.approx(line**root)
    left = signal_left(betas("cosine", 1000))

    def f(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 10, 500, 990):
        assert left[t - 1].item() == pytest.approx(f(t / 1000) / f(0), rel=1e-6)
    # the last steps would bring infinitely much
    assert betas("cosine", 1000).max() == 0.999
    assert signal_left(betas("linear", 1000))[-1].item() == pytest.approx(4.04e-5, rel=1e-2)
    assert signal_left(betas("scaled_linear", 1000))[-1].item() == pytest.approx(0.00466, rel=1e-2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 25, 250, 4000])
def test_with_other_numbers_of_steps_as_much_signal_is_lost(schedule, steps):
    found = betas(schedule, steps)
    assert found.shape == (steps,) and 0 < found.min() and found.max() <= 0.999
    left = signal_left(found)
    assert torch.equal(left, left.sort(descending=True).values) and left[-1] > 0
    if steps >= 250:
        wanted = signal_left(betas(schedule, 1000))
        for share in (0.25, 0.5, 0.75):
            now, then = (x[int(share * len(x)) - 1].item() for x in (left, wanted))
            assert now == pytest.approx(then, abs=0.01)


# ---------------------------------------------------------------- noise


def test_signal_left_by_loops():
    some, product = betas("cosine", 30), 1.0
    for beta, left in zip(some.tolist(), signal_left(some).tolist(), strict=True):
        product *= 1 - beta
        assert left == pytest.approx(product)


def test_step_by_step_is_the_closed_form_in_mean_and_variance():
    """q(x_t | x_{t−1}) one after the other; as numbers, no draws: mean and variance of each."""
    for schedule in SCHEDULES:
        some = betas(schedule, 100)
        factor, variance = 1.0, 0.0
        for beta, left in zip(some.tolist(), signal_left(some).tolist(), strict=True):
            factor, variance = (1 - beta) ** 0.5 * factor, (1 - beta) * variance + beta
            assert factor == pytest.approx(left**0.5, rel=1e-9)
            assert variance == pytest.approx(1 - left, rel=1e-9)


def test_step_by_step_is_the_closed_form_in_draws():
    some, draw = betas("linear", 50), device.generator(0)
    x0 = torch.tensor([-1.0, 0.25, 1.0]).repeat(40_000, 1)
    x = x0.clone()
    for beta in some.tolist():
        x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(x.shape, generator=draw)
    signal = signal_left(some)[-1:].expand(len(x))
    once = add_noise(x0, torch.randn(x.shape, generator=draw), signal)
    for found in (x, once):
        torch.testing.assert_close(
            found.mean(0), x0[0] * signal[0].float().sqrt(), atol=0.02, rtol=0
        )
        torch.testing.assert_close(
            found.var(0), (1 - signal[0]).float().expand(3), atol=0.02, rtol=0
        )


def test_noise_by_hand_and_as_diffusers_adds_it():
    found = add_noise(torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.36]))
    assert found.item() == pytest.approx(0.6 * 2 + 0.8 * 10)  # roots, not the shares themselves
    for schedule in SCHEDULES:
        x0, eps, _ = rows(4)
        t, theirs = torch.tensor([0, 17, 500, 999]), scheduler(schedule)
        found = add_noise(x0, eps, signal_left(betas(schedule, 1000))[t])
        torch.testing.assert_close(found, theirs.add_noise(x0, eps, t), atol=1e-5, rtol=0)


def test_every_row_has_its_own_noise_level_whatever_its_shape():
    signal = torch.tensor([1.0, 0.0, 0.25])
    for shape in ((3,), (3, 2), (3, 1, 4, 5)):
        x0, eps = noise(*shape, seed=1), noise(*shape, seed=2)
        found = add_noise(x0, eps, signal)
        assert torch.equal(found[0], x0[0]) and torch.equal(found[1], eps[1])
        torch.testing.assert_close(found[2], 0.5 * x0[2] + 0.75**0.5 * eps[2])


# ---------------------------------------------------------------- three targets


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_answer_tells_picture_and_noise(kind):
    x0, eps, signal = rows()
    x = add_noise(x0, eps, signal)
    found = read_off(kind, target(kind, x0, eps, signal), x, signal)
    torch.testing.assert_close(found, (x0, eps), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_said_picture_and_noise_make_up_what_was_seen(kind):
    _, _, signal = rows()
    x, said = noise(5, 3, 4, 4, seed=3), noise(5, 3, 4, 4, seed=4)
    x0, eps = read_off(kind, said, x, signal)
    torch.testing.assert_close(add_noise(x0, eps, signal), x, atol=1e-5, rtol=1e-5)
    # and the answer can be asked for again
    torch.testing.assert_close(target(kind, x0, eps, signal), said, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("one, other", list(itertools.permutations(KINDS, 2)))
def test_an_answer_of_one_kind_says_the_same_as_one_of_another(one, other):
    _, _, signal = rows()
    x, said = noise(5, 3, 4, 4, seed=3), noise(5, 3, 4, 4, seed=4)
    x0, eps = read_off(one, said, x, signal)
    again = read_off(other, target(other, x0, eps, signal), x, signal)
    torch.testing.assert_close(again, (x0, eps), atol=1e-4, rtol=1e-4)


def test_the_velocity_is_a_turn_by_a_right_angle():
    """x = cos·x₀ + sin·ε and v = cos·ε − sin·x₀: v is how x changes with the angle."""
    x0, eps, _ = (x.double() for x in rows())
    angle = torch.linspace(0.1, 1.4, 5, dtype=torch.float64)

    def x(angle):
        return add_noise(x0, eps, angle.cos().square())

    step = 1e-6
    change = (x(angle + step) - x(angle - step)) / (2 * step)
    v = target("v", x0, eps, angle.cos().square())
    torch.testing.assert_close(v, change, atol=1e-8, rtol=0)


def test_at_the_ends_v_is_the_noise_and_minus_the_picture():
    x0, eps, _ = rows(2)
    v = target("v", x0, eps, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(v, torch.stack([eps[0], -x0[1]]))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_differ_by_the_ratio_of_signal_to_noise(kind):
    """|ε − ε̂|² = SNR·|x₀ − x̂₀|² and |v − v̂|² = (SNR + 1)·|x₀ − x̂₀|²."""
    x0, eps, signal = rows()
    x, said = add_noise(x0, eps, signal), noise(5, 3, 4, 4, seed=4)
    guess, guessed_eps = read_off(kind, said, x, signal)
    error = (x0 - guess).square().flatten(1).sum(1)
    snr = signal / (1 - signal)
    weight = {"eps": snr, "x0": torch.ones(5), "v": snr + 1}
    for other in KINDS:
        right = target(other, x0, eps, signal)
        wrong = target(other, guess, guessed_eps, signal)
        found = (right - wrong).square().flatten(1).sum(1)
        torch.testing.assert_close(found, weight[other] * error, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------- the posterior


def test_the_posterior_is_bayes_by_hand():
    """Over a fine grid: p(x_s | x_t, x₀) ∝ q(x_t | x_s)·q(x_s | x₀)."""
    for now, before in ((0.5, 0.8), (0.1, 0.9), (0.899, 0.9)):
        x0, x = 0.7, -0.4
        places = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
        kept = now / before

        def bell(value, mean, variance):
            return torch.exp(-((value - mean) ** 2) / (2 * variance))

        density = bell(x, kept**0.5 * places, 1 - kept) * bell(places, before**0.5 * x0, 1 - before)
        density /= density.sum()
        mean = (density * places).sum()
        variance = (density * (places - mean) ** 2).sum()
        numbers = (torch.tensor([[n]], dtype=torch.float64) for n in (x0, x))
        shares = (torch.tensor([n], dtype=torch.float64) for n in (now, before))
        found, small, large = posterior(*numbers, *shares)
        assert found.item() == pytest.approx(mean.item(), abs=1e-6)
        assert small.item() == pytest.approx(variance.item(), rel=1e-4)
        assert large.item() == pytest.approx(1 - kept)


def test_a_step_back_keeps_how_x_is_distributed():
    """Noise x₀ to t, draw x_s from the posterior: as if it had been noised to s."""
    x0 = torch.full((200_000, 1), 0.8)
    draws = [torch.randn(x0.shape, generator=device.generator(i)) for i in range(2)]
    now, before = torch.full((len(x0),), 0.3), torch.full((len(x0),), 0.7)
    mean, small, _ = posterior(x0, add_noise(x0, draws[0], now), now, before)
    x = mean + small.sqrt() * draws[1]
    assert x.mean().item() == pytest.approx(0.7**0.5 * 0.8, abs=0.01)
    assert x.var().item() == pytest.approx(0.3, abs=0.01)


def test_both_variances_of_ddpm():
    some = betas("linear", 1000).double()
    left = signal_left(some)
    before = torch.cat([left.new_ones(1), left[:-1]])
    x0, x = noise(1000, 2, seed=1).double(), noise(1000, 2, seed=2).double()
    mean, small, large = posterior(x0, x, left, before)
    torch.testing.assert_close(large.squeeze(1), some, atol=1e-12, rtol=0)
    torch.testing.assert_close(small.squeeze(1), some * (1 - before) / (1 - left))
    assert (small <= large + 1e-15).all() and small[0] == 0
    torch.testing.assert_close(mean[0], x0[0])  # the last step ends at the picture
    # the mean by ε, as the paper writes it (eq. 11): the same without clamping
    eps = read_off("x0", x0[1:], x[1:], left[1:])[1]
    alpha = (1 - some[1:]).unsqueeze(1)
    rest = (1 - left[1:]).unsqueeze(1).sqrt()
    wanted = (x[1:] - some[1:].unsqueeze(1) / rest * eps) / alpha.sqrt()
    torch.testing.assert_close(mean[1:], wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_is_that_of_diffusers(kind, clamp, variance):
    x, said = noise(2, 3, 4, 4, seed=3), noise(2, 3, 4, 4, seed=4)
    for schedule, t in itertools.product(SCHEDULES, (0, 1, 400, 900)):
        theirs = scheduler(
            schedule,
            prediction_type=KINDS[kind],
            clip_sample=clamp,
            variance_type=f"fixed_{variance}",
        )
        wanted = theirs.step(said, t, x, generator=device.generator(5)).prev_sample
        left = theirs.alphas_cumprod
        now, before = left[[t, t]], left[[t - 1, t - 1]] if t else torch.ones(2)
        x0, _ = read_off(kind, said, x, now)
        x0 = x0.clamp(-1, 1) if clamp else x0
        mean, low, high = posterior(x0, x, now, before)
        draw = torch.randn(x.shape, generator=device.generator(5))
        found = mean + {"small": low, "large": high}[variance].sqrt() * draw * (t > 0)
        assert (found - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max().item())


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("width", [2, 16, 64])
def test_an_embedding_of_the_time_is_that_of_diffusers(width):
    t = torch.tensor([0, 1, 17, 999])
    theirs = get_timestep_embedding(t, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, width), theirs, atol=1e-6, rtol=0)


def test_an_embedding_of_the_time_by_hand():
    found = timestep_embedding(torch.tensor([3]), 4)[0].tolist()
    wanted = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    assert found == pytest.approx(wanted)
    every = timestep_embedding(torch.arange(1000), 64)
    apart = torch.cdist(every, every) + 10 * torch.eye(1000)
    assert apart.min() > 0.1  # no two times look alike


def test_a_new_network_says_nothing_and_its_blocks_change_nothing():
    torch.manual_seed(0)
    unet = UNet(3, (16, 32), 1, 2, condition=5)
    assert unet(noise(2, 3, 8, 8), torch.tensor([3, 9]), noise(2, 5)).abs().max() == 0
    x, time = noise(2, 32, 4, 4), noise(2, 7)
    assert torch.equal(TimeBlock(32, 32, 7)(x, time), x)
    mixer = Mixer(32)
    nn.init.zeros_(mixer.attention.out.bias)
    assert torch.equal(mixer(x), x)


def test_a_block_by_its_definition():
    torch.manual_seed(0)
    block, x, time = TimeBlock(32, 16, 7), noise(2, 32, 4, 4), noise(2, 7)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    change = block.conv1(F.silu(F.group_norm(x, 16, block.norm1.weight, block.norm1.bias)))
    scale, shift = block.time(time).split(16, 1)
    for b, channel in itertools.product(range(2), range(16)):  # sixteen groups of one channel
        part = change[b, channel]
        part = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
        part = part * block.norm2.weight[channel] + block.norm2.bias[channel]
        change[b, channel] = part * (1 + scale[b, channel]) + shift[b, channel]
    wanted = block.skip(x) + block.conv2(F.silu(change))
    torch.testing.assert_close(block(x, time), wanted, atol=1e-5, rtol=1e-4)


def test_a_mixer_is_attention_over_places():
    torch.manual_seed(0)
    mixer, x = Mixer(64), noise(2, 64, 3, 4)
    nn.init.normal_(mixer.attention.out.weight, std=0.2)
    theirs = nn.MultiheadAttention(64, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = (
        mixer.attention.qkv.weight.data,
        mixer.attention.qkv.bias.data,
    )
    theirs.out_proj.load_state_dict(mixer.attention.out.state_dict())
    tokens = torch.stack([mixer.norm(x)[:, :, i // 4, i % 4] for i in range(12)], 1)
    change = theirs(tokens, tokens, tokens)[0]
    for i in range(12):
        wanted = x[:, :, i // 4, i % 4] + change[:, i]
        torch.testing.assert_close(mixer(x)[:, :, i // 4, i % 4], wanted, atol=1e-5, rtol=1e-4)


SHAPES = [
    {"widths": (16,), "mixed": ()},
    {"widths": (16, 32), "depth": 2, "patch": 2},
    {"widths": (16, 32, 48), "mixed": (0, 2), "channels": 4},
    {"widths": (16, 32), "patch": 4, "condition": 6},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_keeps_the_shape_and_every_weight_counts(shape):
    torch.manual_seed(0)
    unet, channels = UNet(**shape), shape.get("channels", 3)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, t = noise(2, channels, 16, 16), torch.tensor([3, 30])
    said = noise(2, 6) if "condition" in shape else None
    found = unet(x, t, said)
    assert found.shape == x.shape and found.dtype == torch.float32
    for name, grad in gradients(unet, found).items():
        assert grad.abs().max() > 0, name


@torch.no_grad()
def test_each_answer_depends_on_its_own_picture_time_and_text_alone():
    model = small()
    x, t = noise(4, 3, SIDE, SIDE), torch.tensor([1, 9, 20, 39])
    text = model.encode_text(["red", "a fox", "", "hat"])
    found = model(x, t, text)
    for i in range(4):
        alone = model(x[i : i + 1], t[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(alone, found[i : i + 1], atol=1e-5, rtol=1e-4)
    changes = [(x.clone(), t, text), (x, t.clone(), text), (x, t, text.clone())]
    changes[0][0][1, 2, 3, 4] += 1
    changes[1][1][1] += 1
    changes[2][2][1] *= -1
    for changed in changes:
        differs = (model(*changed) - found).abs().flatten(1).amax(1)
        assert differs[1] > 1e-4 and differs[[0, 2, 3]].max() < 1e-5
    # and every pixel of the answer on every pixel of the picture, through the middle's attention
    far = (model(changes[0][0], t, text) - found)[1].abs().amax(0)
    assert (far > 0).float().mean() > 0.9


def test_what_a_network_is_given_beyond_the_time_comes_to_its_mixers():
    seen = []

    class Watching(Mixer):
        def forward(self, x, states, mask):
            seen.append((tuple(x.shape), states, mask))
            return super().forward(x)

    unet = UNet(3, (16, 32), 2, 2, mixed=(0, 1), mixer=Watching)
    unet(noise(1, 3, 16, 16), torch.tensor([3]), None, "states", "mask")
    assert [shape for shape, *_ in seen] == (
        [(1, 16, 8, 8)] * 2 + [(1, 32, 4, 4)] * 5 + [(1, 16, 8, 8)] * 2
    )
    assert {given[1:] for given in seen} == {("states", "mask")}


# ---------------------------------------------------------------- the text


@torch.no_grad()
def test_a_prompt_is_a_vector_of_variance_one_and_no_prompt_none():
    model = small()
    prompts = ["red fox", "", "hat", "  "]
    found = model.encode_text(prompts)
    wanted = model.clip.encode_text(["red fox", "hat"]) * tiny.DIM**0.5
    torch.testing.assert_close(found[[0, 2]], wanted, atol=1e-5, rtol=0)
    assert found[[1, 3]].abs().max() == 0
    torch.testing.assert_close(found[0].square().mean().item(), 1.0)
    x, t = noise(2, 3, SIDE, SIDE), torch.tensor([3, 9])
    silent = model(x, t, model.encode_text(["", ""]))
    torch.testing.assert_close(silent, model(x, t), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_guidance_goes_from_the_free_answer_through_the_asked_one(in_float32):
    model = small()
    x, t, text = noise(2, 3, SIDE, SIDE), torch.tensor([3, 9]), model.encode_text(["red", "hat"])
    asked, free = model(x, t, text), model(x, t)
    for scale in (0.0, 1.0, 1.000001, 3.0):
        x0, eps = model.read(x, t, text, scale)
        said = free + scale * (asked - free)
        wanted = read_off("v", said, x, model.signal[t])
        torch.testing.assert_close((x0, eps), wanted, atol=1e-4, rtol=1e-4)
    # of the answers' noise, not only of their velocities: all three are linear in one another
    parts = [model.read(x, t, text, s)[1] for s in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(parts[2], parts[0] + 3 * (parts[1] - parts[0]), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_target(kind):
    model = small(predicts=kind)
    model.unet = Oracle(lambda x, t: torch.zeros_like(x))
    pictures, text = torch.rand(6, 3, SIDE, SIDE), noise(6, tiny.DIM)
    torch.manual_seed(3)
    found = diffusion_loss(model, pictures, text)
    ((x, t, told),) = model.unet.asked
    assert told is text and t.dtype == torch.long
    x0, signal = 2 * pictures - 1, model.signal[t]
    eps = read_off("x0", x0, x, signal)[1]
    torch.testing.assert_close(found, target(kind, x0, eps, signal).square().mean())
    assert abs(eps.mean()) < 0.1 and eps.std().item() == pytest.approx(1, abs=0.1)


def test_every_time_is_drawn_as_often():
    model = small()
    model.unet = Oracle(lambda x, t: torch.zeros_like(x))
    torch.manual_seed(0)
    for _ in range(20):
        diffusion_loss(model, torch.zeros(200, 3, 1, 1))
    times = torch.cat([t for _, t, _ in model.unet.asked])
    counts = times.bincount(minlength=STEPS)
    assert len(counts) == STEPS and counts.min() > 60 and counts.max() < 150


def test_only_the_network_learns():
    model = small()
    diffusion_loss(model, torch.rand(2, 3, SIDE, SIDE), model.encode_text(["a", ""])).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("unet."), name


# ---------------------------------------------------------------- sampling


def test_the_times_go_down_to_the_picture():
    model = small()
    assert model.times(STEPS) == [*range(STEPS - 1, -1, -1), -1]
    assert model.times(4) == [39, 26, 13, 0, -1]
    assert model.times(1) == [39, -1]
    assert model.times(3, 20) == [20, 10, 0, -1]
    assert model.times(1, 0) == [0, -1]
    refused = {"the first is 40": (3, 40), "the first is -1": (1, -1), "there are 4 steps": (4, 2)}
    for said, asked in refused.items():
        assert helpers.refusal(lambda asked=asked: model.times(*asked)).startswith(said)


def one_by_one(model: Diffusion, seed: int, steps: int, variance: str, x0_of) -> torch.Tensor:
    """Algorithm 2 for one picture, with every formula of the paper written out."""
    draw = device.generator(seed)
    x = torch.randn(3, SIDE, SIDE, generator=draw).double()
    left = signal_left(betas("cosine", STEPS))
    for now, before in itertools.pairwise(model.times(steps)):
        kept = left[now] / (left[before] if before >= 0 else 1)
        rest = 1 - left[before] if before >= 0 else torch.zeros(())
        x0 = x0_of(x, now).double().clamp(-1, 1)
        mean = ((1 - rest) ** 0.5 * (1 - kept) * x0 + kept**0.5 * rest * x) / (1 - left[now])
        spread = 1 - kept
        if variance == "small":
            spread = spread * rest / (1 - left[now])
        x = mean
        if before >= 0:
            x = x + spread**0.5 * torch.randn(3, SIDE, SIDE, generator=draw)
    return ((x + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1, 7, STEPS])
def test_pictures_come_by_the_papers_algorithm(variance, steps):
    model = small()
    model.unet = Oracle(lambda x, t: 0.3 * x + t.view(-1, 1, 1, 1) / 100)

    def x0_of(x, t):
        signal = model.signal[t].double()
        return signal.sqrt() * x - (1 - signal).sqrt() * (0.3 * x + t / 100)

    found = model.generate(seed=[4, 9], steps=steps, variance=variance)
    for picture, seed in zip(found, (4, 9), strict=True):
        wanted = one_by_one(model, seed, steps, variance, x0_of)
        torch.testing.assert_close(picture.double(), wanted, atol=2e-3, rtol=0)


def test_whoever_knows_the_picture_arrives_at_it():
    """With the true x₀ as an answer every path ends there: no noise is added at the end."""
    picture = torch.rand(3, SIDE, SIDE)
    model = small(predicts="x0")
    model.unet = Oracle(lambda x, t: (2 * picture - 1).expand_as(x))
    for how in ({"steps": 40}, {"steps": 40, "variance": "large"}, {"steps": 1}, {"steps": 3}):
        found = model.generate(seed=range(3), **how)
        torch.testing.assert_close(found, picture.expand_as(found), atol=1e-6, rtol=0)
    # on the way there is noise, as much as belongs there
    way = [x for x, _ in model.stream(seed=range(400), steps=STEPS)]
    assert len(way) == STEPS + 1
    for t, x in zip(model.times(STEPS), way, strict=True):
        if t >= 0:
            off = x - model.signal[t].sqrt() * (2 * picture - 1)
            wanted = (1 - model.signal[t]).sqrt().item()
            assert off.std().item() == pytest.approx(wanted, rel=0.02), t


def test_what_is_seen_is_clamped_unless_told_otherwise():
    model = small(predicts="x0")
    model.unet = Oracle(lambda x, t: torch.full_like(x, 1.5))
    (_, x0), *_ = model.stream(seed=[1], steps=2)
    assert x0.max() == 1
    *_, (x, _) = model.stream(seed=[1], steps=2, clamp=False)
    torch.testing.assert_close(x, torch.full_like(x, 1.5))
    assert model.generate(seed=[1], steps=2, clamp=False).max() == 1


def test_one_seed_gives_the_same_picture_alone_or_among_others():
    model, prompts, seeds = small(), ["red hat", "fox", "a", "fox"], [7, 7, 8, 9]
    together = model.generate(prompts, seed=seeds, steps=6)
    for i, seed in enumerate(seeds):
        alone = model.generate([prompts[i]], seed=seed, steps=6)[0]
        torch.testing.assert_close(alone, together[i], atol=1e-3, rtol=0)
    assert not torch.allclose(together[1], together[3], atol=0.05)  # another seed
    free = model.generate(seed=[3, 5], steps=6)
    torch.testing.assert_close(model.generate(seed=5, steps=6)[0], free[1], atol=1e-3, rtol=0)
    assert torch.equal(model.generate(seed=[3, 5], steps=6), free)


def test_without_a_prompt_text_and_guidance_change_nothing():
    model = small()
    free = model.generate(seed=[3, 4], steps=4)
    ignored = model.generate(["red", "hat"], seed=[3, 4], steps=4, guidance=0.0)
    torch.testing.assert_close(ignored, free, atol=1e-3, rtol=0)
    assert torch.equal(model.generate(seed=[3, 4], steps=4, guidance=5.0), free)
    asked = model.generate(["red", "hat"], seed=[3, 4], steps=4)
    assert not torch.allclose(asked, free, atol=0.05)


def test_drawing_needs_no_gradient_and_leaves_the_random_numbers_alone():
    model = small()
    before = torch.random.get_rng_state()
    stream = model.stream(["red hat"], steps=3)
    next(stream)
    assert torch.is_grad_enabled()  # between two steps, too
    assert not model.generate(["red hat"], steps=2).requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- bad input


def test_what_is_refused():
    model = small()

    def how(prompts=("red",), **settings):
        prompts = list(prompts) if isinstance(prompts, tuple) else prompts
        return lambda: model.generate(prompts, **settings)

    asked = {
        "prompts are a list of strings": how("red"),
        "there are no prompts": how([]),
        "prompt 1 is empty": how(["red", " "]),
        "there are 1 prompts and 2 seeds; give one seed, or": how(seed=[1, 2]),
        "there is no seed; give one": how(None, seed=[]),
        "there are 0 steps; choose 1 to 40": how(steps=0),
        "there are 10000 steps; choose 1 to 40": how(steps=10_000),
        "the guidance is nan; give a number": how(guidance=math.nan),
        "the guidance is inf; give a number": how(guidance=math.inf),
        "the variance is 'none'; choose small or large": how(variance="none"),
        "the target is 'noise'; choose eps, x0 or v": lambda: small(predicts="noise"),
        "the schedule is 'quick'; choose linear, scaled_linear": lambda: betas("quick"),
        "there are 0 steps; give at least one": lambda: betas("linear", 0),
    }
    for said, action in asked.items():
        assert helpers.refusal(action).startswith(said)
    for bad in (target, read_off):
        assert "'V'" in helpers.refusal(bad, "V", *[torch.zeros(1, 1)] * 2, torch.ones(1))


def test_a_strange_prompt_is_drawn():
    found = small().generate(["红心", "🦊", "a\x00b", "red " * 400], steps=2)
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1


# ---------------------------------------------------------------- measuring


def test_distances_by_loops():
    one, other = torch.rand(3, 3, 4, 4), torch.rand(5, 3, 4, 4)
    found = picture_distances(one, other)
    for i, j in itertools.product(range(3), range(5)):
        wanted = (one[i] - other[j]).square().mean().sqrt().item()
        assert found[i, j].item() == pytest.approx(wanted, abs=1e-5)


def test_the_frechet_distance_by_hand():
    """In one dimension it is (μ₁ − μ₂)² + (σ₁ − σ₂)²; for diagonals, the sum of those."""
    draws = torch.randn(4000, 3, generator=device.generator(0), dtype=torch.float64)
    draws = (draws - draws.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(draws.T.cov())).T
    deviation, shift = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([1.0, 0.0, -3.0])
    found = frechet_distance(draws, draws * deviation + shift)
    assert found == pytest.approx(10 + 0.25 + 1 + 0, rel=1e-6)
    assert frechet_distance(draws, draws) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_against_a_square_root_by_newton():
    one, other = noise(50, 6, seed=1).double(), noise(40, 6, seed=2).double() @ noise(6, 6).double()
    first, second = one.T.cov(), other.T.cov()
    root, inverse = first @ second, torch.eye(6, dtype=torch.float64)
    for _ in range(60):  # Denman and Beavers: root → (Σ₁Σ₂)^½
        root, inverse = (root + inverse.inverse()) / 2, (inverse + root.inverse()) / 2
    torch.testing.assert_close(root @ root, first @ second, atol=1e-8, rtol=1e-6)
    wanted = (one.mean(0) - other.mean(0)).square().sum() + (first + second - 2 * root).trace()
    assert frechet_distance(one, other) == pytest.approx(wanted.item(), rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(wanted.item(), rel=1e-6)
    few = noise(4, 6).double()  # fewer than dimensions
    assert math.isfinite(frechet_distance(few, one)) and frechet_distance(few, one) > 0


# ---------------------------------------------------------------- the recipe


RECIPE = replace(tiny.MODELS["diffusion"].recipe, steps=6, batch=4, warmup=2, aside=2)


def styled(concepts: int = 8, side: int = 32) -> data.Pairs:
    """Concepts in all four styles; every picture is of one number, its own."""
    each = [(c, style) for c in range(concepts) for style in data.STYLES]
    table = {
        "label_en": [f"fox {c}" for c, _ in each],
        "keywords_en": [["red", "wild"] if c % 2 else [] for c, _ in each],
        "style": [style for _, style in each],
        "skin_tone": ["dark" if c == 2 else "none" for c, _ in each],
        "concept": [str(c) for c, _ in each],
        "group": ["flags" if c == 1 else "animals" for c, _ in each],
    }
    numbers = torch.arange(len(each), dtype=torch.uint8).view(-1, 1, 1, 1)
    return data.Pairs(numbers.expand(-1, 3, side, side).contiguous(), table)


def built(recipe=RECIPE) -> Diffusion:
    torch.manual_seed(0)
    clip: CLIP = tiny.model("clip_resnet").eval().requires_grad_(False)
    return recipe.build(styled(), {"clip": clip})


def test_a_picture_goes_with_its_own_words_or_none_and_what_is_set_aside_never(monkeypatch):
    pairs, model, seen = styled(), built(), []
    monkeypatch.setattr(model, "encode_text", lambda words: words)

    def keep(_, pictures, words):
        # the corners of a moved picture are white; its middle is its number
        seen.append((words, (255 * pictures[:, 0, 8, 8]).round().int().tolist()))
        return torch.zeros(())

    monkeypatch.setattr(diffusion, "diffusion_loss", keep)
    (loss,) = RECIPE.losses(model, pairs, {})
    kept, aside = drawing.shown(pairs, RECIPE.aside)
    hidden = set(aside.pictures[:, 0, 0, 0].tolist())
    toned = {i for i in range(len(pairs)) if pairs.table["skin_tone"][i] != "none"}
    steps = len(kept) // RECIPE.batch
    for step in range(60 * steps):
        loss(step)
    numbers = [number for _, part in seen for number in part]
    assert set(numbers) == set(range(len(pairs))) - hidden - toned
    for epoch in range(60):  # nothing comes twice before all else has come
        part = numbers[epoch * steps * RECIPE.batch :][: steps * RECIPE.batch]
        assert len(set(part)) == len(part)
    words = [word for part, _ in seen for word in part]
    for word, number in zip(words, numbers, strict=True):
        assert not word or pairs.table["label_en"][number] in word
    assert words.count("") / len(words) == pytest.approx(RECIPE.silent, abs=0.03)
    for step in (7, 3, 7):
        torch.manual_seed(step)
        loss(step)
    assert seen[-1] == seen[-3] != seen[-2]


def test_batches_are_those_that_any_recipe_of_the_kind_sees():
    kept, _ = drawing.shown(styled(), 2)
    found, words, moves = drawing.batch(kept, 4, 0, 9, silent=0.5, moves=3)
    rng = random.Random("0/9")
    epoch, place = divmod(9, len(kept) // 4)
    order = torch.randperm(len(kept), generator=device.generator(0, epoch))
    assert found == order[place * 4 : place * 4 + 4].tolist()
    for row, word in zip(found, words, strict=True):
        assert word == ("" if rng.random() < 0.5 else drawing.caption(kept, row, rng))
    assert len(moves) == 4 and set(moves) <= set(range(4))


def test_pictures_are_scaled_down_by_their_means():
    pairs = tiny.pairs(n=5)
    found = diffusion.small(pairs, 2, 16)
    assert found.shape == (3, 5, 3, 16, 16) and found.dtype == torch.uint8
    for move in range(3):
        large = drawing.moved(pairs.pictures, move).float()
        wanted = large.view(5, 3, 16, 2, 16, 2).mean((3, 5))
        assert (found[move] - wanted).abs().max() <= 0.5


def test_a_copy_is_three_times_nearer_to_one_picture_than_to_any_other():
    known = torch.randint(256, (2, 4, 3, 4, 4), dtype=torch.uint8)  # as they are, and moved
    pictures = known.float()[[0, 1, 1], [0, 2, 1]] / 255
    pictures[2] = (pictures[2] + known[0, 3] / 255) / 2  # half of one and half of another
    assert diffusion.copies(pictures, known) == pytest.approx(66.7)
    # the same picture, moved by no more than nothing, is not a second one
    assert diffusion.copies(pictures, known[:1].repeat(2, 1, 1, 1, 1)) == pytest.approx(33.3)
    twins = known[:1, [0, 0]]
    assert diffusion.copies(pictures[:1], twins) == 0.0


def test_every_parameter_but_the_clips_has_its_role():
    model = built()
    (optimizer,) = RECIPE.optimizers(model)
    owned = [p.data_ptr() for group in optimizer.param_groups for p in group["params"]]
    own = {name: p for name, p in model.named_parameters() if name.startswith("unet.")}
    assert sorted(owned) == sorted(p.data_ptr() for p in own.values())
    edges = ("enter", "time", "condition", "leave")
    hidden = {n for n, p in own.items() if p.ndim > 1 and n.split(".")[1] not in edges}
    matrices = {p.data_ptr() for p in optimizer.matrices}
    assert matrices == {own[name].data_ptr() for name in hidden}


def test_what_the_recipe_builds_is_what_is_shipped_and_fits():
    clip = tiny.model("clip_resnet").requires_grad_(False)
    clip.config["dim"] = 256
    model = diffusion.RECIPES["diffusion"].build(styled(), {"clip": clip})
    count = sum(p.numel() for p in model.unet.parameters())
    size = checkpoints.card("diffusion")["bytes"]
    assert 2 * count == pytest.approx(size, rel=0.01)
    assert size < 13.9e6


@pytest.mark.parametrize("aside", [0, 2])
def test_a_run_ships_what_draws_and_measures_it(aside, monkeypatch, tmp_path):
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    pairs = styled(8, 32)
    pairs.pictures[:] = torch.randint_like(pairs.pictures, 256)
    monkeypatch.setattr(engine, "load_emoji", lambda split: pairs)
    for name in ("clip", "clip_resnet", "dalle"):
        tiny.save(name, tmp_path)
    recipe = replace(RECIPE, aside=aside)
    engine.pretrain("diffusion", recipe, tmp_path, tmp_path / "runs", save_every=0)
    card = checkpoints.card("diffusion", tmp_path)
    figures = {"found", "found_guided", "copies"}
    assert all(look.keys() == figures for look in card["looks"].values())
    assert set(card["looks"]) == {"1", "2", "4", "6"}
    figures |= {"set_aside_found", "set_aside_style"} if aside else set()
    figures |= {"frechet", "frechet_error", "frechet_codes", "frechet_real"}
    assert card["metrics"].keys() == figures
    assert card["borrows"].keys() == {"clip"} and set(card["helpers"]) == {"judge", "codes"}
    stored = tensors.read(tmp_path / "diffusion.safetensors")[0]
    assert all(name.startswith("unet.") for name in stored)
    model = checkpoints.load("diffusion", folder=tmp_path)
    assert model.generate(["fox 3"], steps=2).shape == (1, 3, 16, 16)
