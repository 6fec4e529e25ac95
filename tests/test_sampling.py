"""Sampling: DDIM's step, walks there and back, the clamp, guidance."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler

from tests import helpers
from tests.diffusions import SIDE, STEPS, Oracle, small
from tests.helpers import noise
from utils import device
from utils.bricks.diffusion import posterior, read_off, spread
from utils.bricks.sampling import ddim_step, guided, invert, last, look, sample, signal_at, walk

SCHEDULES = {
    "linear": (1e-4, 0.02, "linear"),
    "scaled_linear": (0.00085, 0.012, "scaled_linear"),
    "cosine": (1e-4, 0.02, "squaredcos_cap_v2"),
}
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

# ---------------------------------------------------------------- a step


def test_a_step_by_hand():
    """ᾱ from 0.36 to 0.64; picture 2, noise 10; half of DDPM's dice."""
    one = torch.ones(1, 1)
    levels = torch.tensor([0.36]), torch.tensor([0.64])
    found = ddim_step(2 * one, 10 * one, *levels)
    assert found.item() == pytest.approx(0.8 * 2 + 0.6 * 10)
    sigma = 0.5 * math.sqrt(0.36 / 0.64 * (1 - 0.36 / 0.64))
    wanted = 1.6 + math.sqrt(0.36 - sigma**2) * 10 + sigma * 3
    assert ddim_step(2 * one, 10 * one, *levels, 0.5, 3 * one).item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clamp", [False, True])
def test_a_step_is_that_of_diffusers(kind, eta, clamp):
    x, said, new = noise(2, 3, 4, 4, seed=3), noise(2, 3, 4, 4, seed=4), noise(2, 3, 4, 4, seed=5)
    for (start, end, schedule), step in itertools.product(SCHEDULES.values(), (0, 20, 400, 940)):
        theirs = DDIMScheduler(
            1000, start, end, schedule, clip_sample=clamp, prediction_type=KINDS[kind]
        )
        theirs.set_timesteps(50)
        told = theirs.step(
            said, step, x, eta=eta, variance_noise=new, use_clipped_model_output=clamp
        )
        left = theirs.alphas_cumprod
        now, before = left[[step] * 2], left[[step - 20] * 2] if step else torch.ones(2)
        x0, eps = read_off(kind, said, x, now)
        if clamp:
            x0, eps = read_off("x0", x0.clamp(-1, 1), x, now)
        found = ddim_step(x0, eps, now, before, eta, new)
        size = max(1, told.prev_sample.abs().max().item())
        assert (found - told.prev_sample).abs().max() < 1e-5 * size


def test_with_all_the_dice_it_is_ddpm():
    x0, eps, new = (noise(5, 2, 3, seed=s).double() for s in range(3))
    before = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    now = before * torch.linspace(0.2, 0.95, 5, dtype=torch.float64)
    x = spread(now, x0).sqrt() * x0 + (1 - spread(now, x0)).sqrt() * eps
    mean, small_one, _ = posterior(x0, x, now, before)
    found = ddim_step(x0, eps, now, before, 1.0, new)
    torch.testing.assert_close(found, mean + small_one.sqrt() * new, atol=1e-12, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_whatever_the_dice_there_is_as_much_noise_as_belongs_there(eta):
    """The factors of old and new noise, each read off with the other at 0."""
    zero, one = torch.zeros(4, 1), torch.ones(4, 1)
    before = torch.tensor([0.3, 0.7, 0.99, 1.0])
    now = torch.tensor([0.1, 0.65, 0.2, 0.9])
    old, new = (ddim_step(zero, a, now, before, eta, b) for a, b in ((one, zero), (zero, one)))
    new = new if eta else torch.zeros(4, 1)  # without dice nothing new comes in
    torch.testing.assert_close((old**2 + new**2).flatten(), 1 - before, atol=1e-6, rtol=0)
    kept = ddim_step(one, zero, now, before, eta, zero)
    torch.testing.assert_close(kept.flatten(), before.sqrt())


def test_without_dice_new_noise_counts_for_nothing_and_steps_go_up_too():
    x0, eps, new = (noise(3, 2, seed=s) for s in range(3))
    low, high = torch.tensor([0.2, 0.4, 0.5]), torch.tensor([0.6, 0.9, 1.0])
    assert torch.equal(ddim_step(x0, eps, low, high, 0.0, new), ddim_step(x0, eps, low, high))
    up = ddim_step(x0, eps, high, low)  # from a picture, where 1 − ᾱ is 0
    torch.testing.assert_close(up, low.sqrt()[:, None] * x0 + (1 - low).sqrt()[:, None] * eps)


# ---------------------------------------------------------------- looking


def test_what_is_seen_makes_up_what_is_there_clamped_or_not():
    model, x = small(), noise(3, 3, SIDE, SIDE, seed=1)
    clipped = 0
    for t, clamp in itertools.product((0, 5, 20, STEPS - 1), (True, False)):
        with torch.no_grad():
            x0, eps = look(model, x, t, clamp=clamp)
        left = model.signal[t]
        torch.testing.assert_close(left.sqrt() * x0 + (1 - left).sqrt() * eps, x, atol=1e-4, rtol=0)
        assert not clamp or x0.abs().max() <= 1
        clipped += int(not clamp and x0.abs().max() > 1.01)
    assert clipped > 0  # else clamping was not tried


def test_the_clamp_and_its_noise_by_hand():
    model = small(predicts="x0")
    model.unet = Oracle(lambda x, t: torch.full_like(x, 1.5))
    x, left = noise(1, 3, SIDE, SIDE, seed=2), model.signal[7]
    x0, eps = look(model, x, 7)
    assert torch.equal(x0, torch.ones_like(x))
    torch.testing.assert_close(eps, (x - left.sqrt()) / (1 - left).sqrt())


def test_guidance_goes_from_the_free_answer_through_the_asked_one():
    asked, free = noise(2, 3, seed=1), noise(2, 3, seed=2)
    assert torch.equal(guided(asked, free, 0.0), free)
    torch.testing.assert_close(guided(asked, free, 1.0), asked)
    torch.testing.assert_close(guided(asked, free, 3.0), 3 * asked - 2 * free)
    model, x = small(), noise(2, 3, SIDE, SIDE, seed=3)
    text = model.encode_text(["red", "hat"])
    with torch.no_grad():
        alone, with_text = look(model, x, 9, clamp=False), look(model, x, 9, text, clamp=False)
        both = look(model, x, 9, text, 2.5, clamp=False)
    for found, a, f in zip(both, with_text, alone, strict=True):
        torch.testing.assert_close(found, guided(a, f, 2.5), atol=1e-2, rtol=0)


# ---------------------------------------------------------------- walking


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_whoever_knows_the_picture_arrives_at_it(eta):
    picture = torch.rand(3, SIDE, SIDE)
    model = small(predicts="x0")
    model.unet = Oracle(lambda x, t: (2 * picture - 1).expand_as(x))
    for steps in (1, 3, STEPS):
        found = last(sample(model, seed=range(3), steps=steps, eta=eta))
        torch.testing.assert_close(found, picture.expand_as(found), atol=1e-5, rtol=0)
    frames = [x for x, _ in sample(model, seed=range(300), steps=STEPS, eta=eta)]
    for t, x in zip(model.times(STEPS), frames, strict=True):
        if t >= 0:
            off = x - model.signal[t].sqrt() * (2 * picture - 1)
            assert off.std().item() == pytest.approx((1 - model.signal[t]).sqrt().item(), rel=0.03)


def test_with_all_the_dice_a_walk_is_lesson_10s(in_float32):
    model = small()
    for steps in (4, 12):
        found = last(sample(model, ["red", "hat"], seed=[3, 4], steps=steps, eta=1.0))
        theirs = model.generate(["red", "hat"], seed=[3, 4], steps=steps)
        torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)


def test_one_seed_gives_the_same_picture_alone_or_among_others():
    model, prompts, seeds = small(), ["red hat", "fox", "fox"], [7, 8, 9]
    for eta in (0.0, 1.0):
        together = last(sample(model, prompts, seed=seeds, steps=5, eta=eta))
        alone = last(sample(model, prompts[1:2], seed=8, steps=5, eta=eta))
        torch.testing.assert_close(alone[0], together[1], atol=1e-3, rtol=0)
        assert not torch.allclose(together[1], together[2], atol=0.05)


def exact(spread_of: float = 0.5):
    """A model of pictures whose pixels are normal about 0: its best answers are known."""
    model = small(predicts="x0")

    def answer(x, t):
        left = spread(model.signal[t], x)
        return left.sqrt() * spread_of**2 * x / (left * spread_of**2 + 1 - left)

    model.unet = Oracle(answer)
    return model


def test_the_way_back_misses_by_less_the_finer_the_steps():
    model, picture = exact(), 0.5 + 0.1 * noise(2, 3, SIDE, SIDE, seed=1)
    errors = []
    for steps in (4, 8, 16, STEPS):
        found = invert(model, picture, steps)
        again = last(walk(model, found, model.times(steps), clamp=False))
        errors.append((again - picture).abs().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    # the noise of normal pixels is these pixels, brought to variance 1
    torch.testing.assert_close(found, (2 * picture - 1) / 0.5, atol=0.12, rtol=0.05)


def test_part_of_the_way_to_the_noise():
    """A walk to a time holds what the closed form has there, if pictures are normal."""
    model, picture = exact(), 0.5 + 0.1 * noise(2, 3, SIDE, SIDE, seed=1)
    found = invert(model, picture, 21, first=20)
    left = model.signal[20]
    factor = (left * 0.25 + 1 - left).sqrt() / 0.5  # of the deviations there and here
    torch.testing.assert_close(found, factor * (2 * picture - 1), atol=0.05, rtol=0.05)
    again = last(walk(model, found, model.times(21, 20), clamp=False))
    assert (again - picture).abs().mean() < 0.01


def test_without_dice_walks_end_in_the_order_in_which_they_began():
    model = exact()
    begin = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    *_, (end, _) = walk(model, begin, model.times(STEPS), clamp=False)
    assert (end[:, 0, 0, 0].diff() > 0).all()
    torch.testing.assert_close(end, 0.5 * begin, atol=0.05, rtol=0.05)


def test_the_network_is_told_a_time_that_there_is():
    model = small()
    model.unet = Oracle(lambda x, t: torch.zeros_like(x))
    invert(model, torch.rand(1, 3, SIDE, SIDE), 4)
    assert [t.item() for _, t, _ in model.unet.asked] == [0, *model.times(4)[-2:0:-1]]
    assert torch.equal(signal_at(model, -1, 2), torch.ones(2))
    assert torch.equal(signal_at(model, 3, 2), model.signal[[3, 3]])


def test_sampling_needs_no_gradient_and_leaves_the_random_numbers_alone():
    model = small()
    before = torch.random.get_rng_state()
    frames = sample(model, ["red hat"], steps=3, eta=1.0)
    next(frames)
    assert torch.is_grad_enabled()
    assert not last(frames).requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- bad input


def test_what_is_refused():
    model = small()

    def how(prompts=("red",), **settings):
        prompts = list(prompts) if isinstance(prompts, tuple) else prompts
        return lambda: last(sample(model, prompts, **settings))

    asked = {
        "prompts are a list of strings": how("red"),
        "there are no prompts": how([]),
        "prompt 1 is empty": how(["red", " "]),
        "there are 1 prompts and 2 seeds; give one seed, or": how(seed=[1, 2]),
        "there is no seed; give one": how(None, seed=[]),
        "there are 0 steps; choose 1 to 40": how(steps=0),
        "there are 10000 steps; choose 1 to 40": how(steps=10_000),
        "the guidance is nan; give a number": how(guidance=math.nan),
        "eta is 1.5; give a share from 0": how(eta=1.5),
        "eta is -0.1; give a share from 0": how(eta=-0.1),
        "eta is nan; give a share from 0": how(eta=math.nan),
        "guidance is inf; give one number": how(guidance=math.inf),
        "guidance is 'loud'; give one number": how(guidance="loud"),
        "steps is 2.5; take a whole number": how(steps=2.5),
        "seed is None; take a whole number": how(seed=None),
        "pictures are 15×16 pixels; scale them": lambda: invert(model, torch.ones(1, 3, 15, 16)),
        "the first is 40; choose 0 to 39": lambda: invert(
            model, torch.ones(1, 3, SIDE, SIDE), 2, first=STEPS
        ),
        "pictures are float (B, 3, H, W)": lambda: invert(model, torch.ones(3, SIDE, SIDE)),
        "dice need noise and a walk to a picture": lambda: last(
            walk(model, torch.zeros(1, 3, SIDE, SIDE), model.times(4), eta=0.5)
        ),
        "dice need noise and a walk to a picture;": lambda: last(
            walk(model, torch.zeros(1, 3, SIDE, SIDE), [-1, 0, 9], eta=0.5, noise=lambda: 0)
        ),
    }
    for said, action in asked.items():
        assert helpers.refusal(action).startswith(said)
    with device.half_precision(torch.device("cpu")):
        found = last(sample(model, ["红心", "🦊", "red " * 400], steps=2))
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
