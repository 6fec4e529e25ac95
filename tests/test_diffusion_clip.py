"""DiffusionCLIP: directions, losses, the way back with a slope, tuning, mixing."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from tests import helpers, tiny
from tests.diffusions import SIDE, small
from tests.helpers import noise
from utils import device
from utils.bricks import diffusion_clip
from utils.bricks.diffusion_clip import (
    copy_of,
    decode,
    directional_loss,
    edit,
    fine_tune,
    log_form,
    mixed,
    text_direction,
    tuned_to,
)
from utils.bricks.sampling import invert, last, walk
from utils.bricks.zero_shot import image_vectors


@pytest.fixture
def models():
    return small(), tiny.model("clip_resnet").eval().requires_grad_(False)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=device.generator(seed))


# ---------------------------------------------------------------- the losses


def test_the_loss_by_hand():
    """45° away: 1 − √½. How far does not matter, nor how long the direction is."""
    before, east = torch.tensor([[0.6, 0.8]]), torch.tensor([3.0, 0.0])
    for way, loss in {(1, 1): 1 - 0.5**0.5, (1, 0): 0.0, (-1, 0): 2.0, (0, 1): 1.0}.items():
        for length in (0.01, 5.0):
            after = before + length * torch.tensor([way], dtype=torch.float32)
            assert directional_loss(before, after, east).item() == pytest.approx(loss, abs=1e-4)


def test_the_code_s_form_is_that_of_the_cosine():
    """−log((2 − L)/2) with L = 1 − cos is −log((1 + cos)/2), and its slope is 1/(1 + cos)."""
    cosine = torch.tensor([-0.9, -0.2, 0.0, 0.7, 1.0], requires_grad=True)
    found = log_form(1 - cosine)
    torch.testing.assert_close(found, -((1 + cosine) / 2).log())
    (slope,) = torch.autograd.grad(found.sum(), cosine)
    torch.testing.assert_close(slope, -1 / (1 + cosine.detach()))


def test_the_sign_of_the_slope_pulls_along_the_direction():
    before = F.normalize(noise(3, 5, seed=1), dim=1)
    after = (before + 0.1 * noise(3, 5, seed=2)).requires_grad_()
    direction = noise(5, seed=3)
    loss = directional_loss(before, after, direction)
    (slope,) = torch.autograd.grad(loss.sum(), after)
    step = directional_loss(before, after - 1e-3 * slope, direction)
    assert (step < loss).all()


def test_the_direction_of_texts(models):
    _, guide = models
    labels = ["red", "fox", "hat"]
    found = text_direction(guide, labels, "a flat {}", "{} in gold")
    away = guide.encode_text([f"{x} in gold" for x in labels])
    away = (away - guide.encode_text([f"a flat {x}" for x in labels])).mean(0)
    torch.testing.assert_close(found, F.normalize(away, dim=0), atol=1e-5, rtol=0)
    assert found.norm().item() == pytest.approx(1, abs=1e-5)
    back = text_direction(guide, labels, "{} in gold", "a flat {}")
    torch.testing.assert_close(back, -found, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the way back


@pytest.mark.parametrize("checkpointed", [True, False])
def test_the_way_back_is_lesson_11s(models, checkpointed):
    model, _ = models
    x, times = noise(2, 3, SIDE, SIDE, seed=1), model.times(4, 20)
    with torch.no_grad():
        found = decode(model, x, times, checkpointed)
    *_, (wanted, _) = walk(model, x, times, clamp=False)
    torch.testing.assert_close(found, wanted / 2 + 0.5, atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient_and_keeps_hardly_anything(models):
    model, _ = models
    unet, x = model.unet.requires_grad_(True), noise(2, 3, SIDE, SIDE, seed=1)
    grads, held = {}, {}
    for checkpointed in (True, False):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x
        )
        with hooks:
            out = decode(model, x, model.times(5, 20), checkpointed)
        held[checkpointed] = sum(sizes)
        weights = [w for name, w in unet.named_parameters() if "condition" not in name]
        grads[checkpointed] = torch.autograd.grad(out.square().sum(), weights)
    for one, other in zip(grads[True], grads[False], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert sum(g.abs().sum() for g in grads[True]) > 0
    assert held[True] < held[False] / 20


# ---------------------------------------------------------------- tuning


def tuned(models, **how):
    model, guide = models
    how = {"steps": 3, "batch": 2, "inner": 2, "first": 20, "lr": 1e-2} | how
    direction = text_direction(guide, ["red", "fox"], "flat {}", "{} in gold")
    return list(fine_tune(model, guide, pictures(4), direction, **how))


def test_tuning_changes_a_copy_and_nothing_else(models):
    model, guide = models
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in models]
    changed, _ = tuned(models)[-1]
    for net, state in zip(models, before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
    assert changed.clip is model.clip and changed.unet is not model.unet
    pairs = zip(changed.unet.parameters(), model.unet.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert not any(p.requires_grad for p in guide.parameters())


def test_one_seed_is_one_tuning(models):
    one, same, other = (tuned(models, seed=s)[-1][0].unet.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_tuning_goes_the_way_it_is_told(models):
    """On the pictures that it is tuned on, and against what L1 alone gives."""
    model, guide = models
    direction = text_direction(guide, ["red", "fox"], "flat {}", "{} in gold")
    images = pictures(4)
    latents = invert(model, images, 20, first=20)
    before = image_vectors(guide, images)

    def loss_after(network):
        with torch.no_grad():
            after = decode(network, latents, model.times(2, 20))
        large = F.interpolate(after, (guide.image_size,) * 2, mode="bilinear")
        return directional_loss(before, guide.encode_image(large), direction).mean().item()

    told, _ = tuned(models, steps=25, batch=4, keep=0.0, identity=0.0)[-1]
    still, _ = tuned(
        models, steps=25, batch=4, identity=0.0, loss=lambda rows, after: 0 * after.sum(1)
    )[-1]
    assert loss_after(told) < loss_after(model) - 0.05
    assert loss_after(told) < loss_after(still) - 0.05


def test_what_holds_pixels_holds_them(models):
    model, _ = models
    images = pictures(4)
    latents = invert(model, images, 20, first=20)
    moved = {}
    for keep in (0.0, 30.0):
        network, _ = tuned(models, steps=25, batch=4, keep=keep, identity=0.0)[-1]
        with torch.no_grad():
            after = decode(network, latents, model.times(2, 20))
        moved[keep] = (after - images).abs().mean().item()
    assert moved[30.0] < moved[0.0]


# ---------------------------------------------------------------- mixing


def test_between_two_networks(models):
    model, _ = models
    other = copy_of(model)
    for p in other.unet.parameters():
        p.data += 1.0
    for s in (0.0, 0.5, 1.0, -1.0):
        found = mixed(model, other, s)
        for new, old in zip(found.unet.parameters(), model.unet.parameters(), strict=True):
            torch.testing.assert_close(new, old + s)
        assert found.clip is model.clip
    x = noise(1, 3, SIDE, SIDE, seed=1)
    ends = [last(walk(m, x, model.times(3), clamp=False)) for m in (model, mixed(model, other, 0))]
    assert torch.equal(*ends)


def test_an_edit_at_strength_0_is_the_way_there_and_back(models):
    model, _ = models
    other, images = copy_of(model), pictures(2)
    for p in other.unet.parameters():
        p.data += 0.05
    how = {"model": model, "tuned": other}
    x = invert(model, images, 20, first=model.steps // 2)
    *_, (back, _) = walk(model, x, model.times(5, model.steps // 2), clamp=False)
    torch.testing.assert_close(
        edit(images, "noto", strength=0.0, **how), (back / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0
    )
    whole = edit(images, "noto", **how)
    assert whole.min() >= 0 and whole.max() <= 1 and not whole.requires_grad
    assert (whole - back).abs().max() > 0.01
    alone = edit(images[1:], "noto", **how)
    torch.testing.assert_close(alone, whole[1:], atol=1e-3, rtol=0)


def test_a_style_is_tuned_to_once_and_another_is_refused(models, monkeypatch):
    model, guide = models
    named = {"diffusion": model, "clip_resnet": guide}
    monkeypatch.setattr(diffusion_clip.checkpoints, "load", named.__getitem__)
    short = functools.partial(fine_tune, steps=1, first=20, inner=2)
    monkeypatch.setattr(diffusion_clip, "fine_tune", short)
    tuned_to.cache_clear()
    try:
        one, other = tuned_to("fluent"), tuned_to("twemoji")
        assert tuned_to("fluent") is one and other is not one
        assert helpers.refusal(lambda: tuned_to("oils")).startswith("there is no style 'oils'; ch")
        assert helpers.refusal(lambda: edit(pictures(1), "3D")).startswith("there is no style '3D'")
        refused = helpers.refusal(lambda: edit(torch.rand(1, 3, 5, 5), "fluent"))
        assert refused.startswith("pictures are 5×5 pixels; scale them")
        assert helpers.refusal(lambda: edit(pictures(1), "fluent", strength=math.nan))
    finally:
        tuned_to.cache_clear()


# ---------------------------------------------------------------- bad input

WRONG = {
    "pictures": ("cat.png", torch.rand(2, 3, 5, 7), torch.rand(3, 8, 8), torch.zeros(0, 3, 16, 16)),
    "first": (0, -1, 40, 2.5, None),
    "inner": (0, 99, "five"),
    "steps": (0, 1.5),
    "batch": (0, -2),
    "lr": (math.nan, "fast"),
    "keep": (math.inf,),
    "identity": (math.nan,),
    "seed": (1.5, "one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_one_sentence(models, name):
    model, guide = models
    direction = torch.ones(guide.config["dim"])
    for value in WRONG[name]:
        given = {"pictures": pictures(2), "first": 20, "inner": 2} | {name: value}
        with pytest.raises(ValueError) as error:
            next(iter(fine_tune(model, guide, given.pop("pictures"), direction, **given)))
        assert "\n" not in str(error.value) and len(str(error.value)) < 200
