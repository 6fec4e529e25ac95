"""CLIP-guided diffusion: the blend, cut-outs, terms, the bent answer."""

import math

import pytest
import torch

from tests import tiny
from tests.diffusions import SIDE, small
from tests.helpers import noise
from utils import device
from utils.bricks import sampling
from utils.bricks.clip_guidance import (
    bent_look,
    beyond,
    blended,
    cut_counts,
    guide,
    guided_walk,
    limited,
    total_variation,
    two_kinds,
)
from utils.bricks.diffusion import add_noise
from utils.bricks.vqgan_clip import prompt_loss, targets


def test_the_blend_goes_from_the_guess_to_what_is_there():
    x0, x = noise(3, 2, 4, seed=1), noise(3, 2, 4, seed=2)
    found = blended(x0, x, torch.tensor([0.0, 0.75, 1.0]))
    assert torch.equal(found[0], x0[0]) and torch.equal(found[2], x[2])
    torch.testing.assert_close(found[1], (x0[1] + x[1]) / 2)


def test_total_variation_by_loops():
    x = noise(2, 3, 4, 5, seed=1)
    for row, found in zip(x, total_variation(x), strict=True):
        right = [(row[c, i, j + 1] - row[c, i, j]) ** 2
                 for c in range(3) for i in range(4) for j in range(4)]  # fmt: skip
        down = [(row[c, i + 1, j] - row[c, i, j]) ** 2
                for c in range(3) for i in range(3) for j in range(5)]  # fmt: skip
        right, down = sum(right).item() / 48, sum(down).item() / 45
        assert found.item() == pytest.approx(right + down, rel=1e-5)


def test_the_range_term_of_disco_has_no_gradient_and_ours_has():
    x = noise(1, 3, 4, 4, seed=1).requires_grad_()
    x0 = 3 * x
    x_in = blended(x0, x, torch.tensor([0.5]))
    loss = beyond(x0).square().mean()
    assert torch.autograd.grad(loss, x_in, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(loss, x)[0].norm() > 0.01


def test_a_gradient_is_limited_row_by_row():
    grad = torch.stack([torch.full((4, 4), 2.0), torch.full((4, 4), 0.01), torch.zeros(4, 4)])
    found = limited(grad, 0.05)
    torch.testing.assert_close(found[0], torch.full((4, 4), 0.05))
    assert torch.equal(found[1:], grad[1:])
    assert torch.equal(limited(grad, math.inf), grad)


def test_cuts_by_time():
    """Disco's `[12]*400+[4]*600` and `[4]*400+[12]*600`, indexed by 1000 − t."""
    overviews, inner = [12] * 400 + [4] * 600, [4] * 400 + [12] * 600
    for t in (999, 700, 601, 600, 599, 300, 1):
        assert cut_counts(t, 1000, 16) == (overviews[999 - t], inner[999 - t])
    assert all(sum(cut_counts(t, 40, cuts)) == cuts for t in range(40) for cuts in range(1, 20))


def test_overviews_show_all_in_four_ways_and_crops_a_part():
    picture = torch.rand(1, 3, 8, 8, generator=device.generator(0))
    seen = two_kinds(picture, device.generator(1), 8, 5, 3, least=4)
    assert seen.shape == (8, 3, 8, 8)
    torch.testing.assert_close(seen[0], picture[0])
    torch.testing.assert_close(seen[1], picture[0].mean(0).expand(3, 8, 8))
    torch.testing.assert_close(seen[2], picture[0].flip(2))
    torch.testing.assert_close(seen[3], seen[1].flip(2))
    assert torch.equal(seen[4], seen[0])
    assert two_kinds(picture, device.generator(1), 8, 2, 0).shape == (2, 3, 8, 8)


def wishes(guide, *prompts):
    return [targets(guide, prompt) for prompt in prompts]


def dice():
    return [device.generator(s) for s in (1, 2)]


def plain(model, x, t):
    with torch.no_grad():
        return model.read(x, torch.full((len(x),), t))


@pytest.fixture
def models():
    return small(), tiny.model("clip_resnet").eval().requires_grad_(False)


def test_without_weights_the_answer_is_the_models_own(models):
    model, guide = models
    x = noise(2, 3, SIDE, SIDE, seed=1)
    found = bent_look(model, guide, x, 15, wishes(guide, "red", "fox"), dice(), scale=0.0)
    for a, b in zip(found, plain(model, x, 15), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_the_answer_is_bent_by_the_slope_of_the_loss(models):
    """ε' = ε + √(1 − ᾱ)·∂L/∂x, the loss written out; x₀ goes with it, down the slope."""
    model, guide = models
    x, t, asked = noise(2, 3, SIDE, SIDE, seed=1), 15, wishes(guide, "red", "fox | hat:-0.5")
    how = {"scale": 7.0, "most": math.inf, "cuts": 6}
    how |= {"variation": 0.3, "limits": 0.4, "saturation": 0.5}
    x0, eps = bent_look(model, guide, x, t, asked, dice(), **how)
    moving = x.clone().requires_grad_()
    seen, other = model.read(moving, torch.full((2,), t))
    left, draws, loss = model.signal[t], dice(), 0.0
    for k in range(2):
        share = (1 - left).sqrt()
        shown = (share * seen[k] + (1 - share) * moving[k]) / 2 + 0.5
        cuts = two_kinds(shown.unsqueeze(0), draws[k], guide.image_size, 1, 5)  # t is below 24
        loss = loss + 7 * prompt_loss(guide, cuts, *asked[k])
        right, down = seen[k].diff(dim=2), seen[k].diff(dim=1)
        loss = loss + 0.3 * (right.square().mean() + down.square().mean())
        far = (seen[k].abs() - 1).clamp(min=0)
        loss = loss + 0.4 * far.square().mean() + 0.5 * far.mean()
    (slope,) = torch.autograd.grad(loss, moving)
    change = (1 - left).sqrt() * slope
    assert change.abs().max() > 0.01
    scale = change.abs().max().item()
    torch.testing.assert_close(eps - other.detach(), change, atol=0.03 * scale, rtol=0.05)
    seen = (x - (1 - left).sqrt() * eps) / left.sqrt()
    torch.testing.assert_close(x0, seen, atol=1e-4, rtol=1e-4)


def test_a_limit_holds(models):
    model, guide = models
    x, asked = noise(2, 3, SIDE, SIDE, seed=1), wishes(guide, "red", "fox")
    _, eps = bent_look(model, guide, x, 15, asked, dice(), scale=1e4, most=0.05)
    change = (eps - plain(model, x, 15)[1]) / (1 - model.signal[15]).sqrt()
    torch.testing.assert_close(
        change.flatten(1).square().mean(1).sqrt(), torch.full((2,), 0.05), atol=2e-3, rtol=0.05
    )


def test_a_weight_is_not_part_of_what_is_read(models):
    """Disco encoded the prompt with its weight in it."""
    _, guide = models
    (vectors, weights), (plain_vectors, _) = targets(guide, "red fox:2"), targets(guide, "red fox")
    assert torch.equal(vectors, plain_vectors) and weights.tolist() == [2.0]
    assert not torch.allclose(vectors, targets(guide, "red fox 2")[0])


def test_silent_it_is_the_free_walk_and_one_seed_is_one_picture(models, in_float32):
    model, clip = models
    how = {"model": model, "clip": clip}
    *_, quiet = guide(["red", "fox"], seed=[3, 4], steps=5, scale=0.0, **how)
    free = sampling.last(sampling.sample(model, seed=[3, 4], steps=5))
    torch.testing.assert_close(quiet, free, atol=1e-4, rtol=1e-4)
    loud = how | {"steps": 4, "scale": 20.0, "eta": 0.5}
    *_, both = guide(["red", "fox"], seed=[3, 4], **loud)
    *_, alone = guide(["fox"], seed=4, **loud)
    torch.testing.assert_close(both[1], alone[0], atol=1e-2, rtol=1e-2)
    *_, again = guide(["red", "fox"], seed=[3, 4], **loud)
    assert torch.equal(both, again)
    assert (both - quiet).abs().max() > 0.01
    assert both.min() >= 0 and both.max() <= 1


def test_a_start_gets_the_noise_of_the_time_at_which_the_walk_begins(models):
    model, clip = models
    start, times = torch.rand(1, 3, SIDE, SIDE, generator=device.generator(0)), model.times(10)
    frames = list(guided_walk(model, clip, wishes(clip, "red"), [7], times[6:], start))
    assert len(frames) == 5
    fresh = torch.randn(3, SIDE, SIDE, generator=device.generator(7))
    wanted = add_noise(2 * start - 1, fresh[None], model.signal[[times[6]]])
    torch.testing.assert_close(frames[0][0], wanted)


def test_with_a_start_half_of_the_steps_are_skipped_unless_told(models):
    model, clip = models
    how = {"model": model, "clip": clip, "start": torch.ones(3, SIDE, SIDE), "steps": 6}
    assert len(list(guide(["red"], **how))) == 4
    assert len(list(guide(["red"], skip=1, **how))) == 6
    assert len(list(guide(["red"], skip=0, **how))) == 7


def test_networks_and_gradients_are_left_alone(models):
    model, clip = models
    clip.train()
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    with torch.no_grad():
        list(guide(["red"], steps=2, scale=5.0, model=model, clip=clip))
    assert all(torch.equal(before[k], v) for k, v in clip.state_dict().items())
    assert all(p.grad is None for net in models for p in net.parameters())


WRONG = {
    "prompts": ("red", ["red", " "], [], ["red |"], [3], ["red:0"]),
    "steps": (0, -1, 41, 2.5, "ten", None, True),
    "seed": ([1, 2], 1.5, "one"),
    "skip": (1, -1, 99, 2.5),  # there is no start
    "scale": (math.nan, math.inf, "loud", None),
    "most": (0, -1.0, math.nan),
    "cuts": (0, -3, 1.5),
    "eta": (-0.1, 1.1, math.nan),
    "variation": (math.nan,),
    "limits": ("a",),
    "saturation": (math.inf,),
    "start": ("cat.png", 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_one_sentence_at_once(models, name):
    model, clip = models
    for value in WRONG[name]:
        given = {"prompts": ["red"]} | {name: value}
        with pytest.raises(ValueError) as error:
            guide(given.pop("prompts"), model=model, clip=clip, **given)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_starts_and_skips_that_do_not_fit(models):
    page, how = torch.ones(3, SIDE, SIDE), dict(zip(("model", "clip"), models, strict=True))
    for given in (
        {"start": page, "skip": 25},
        {"start": page * math.nan, "skip": 5},
        {"start": torch.ones(2, 3, 8, 8), "skip": 5},
        {"start": torch.ones(4, 8, 8), "skip": 5},
        {"start": page + 1, "skip": 5},
    ):
        with pytest.raises(ValueError):
            guide(["red"], **how, **given)
    *_, wide = guide(["red"], start=torch.ones(3, 5, 40), skip=24, **how)
    assert wide.shape == (1, 3, SIDE, SIDE)
