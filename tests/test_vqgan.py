"""VQGAN: the perceptual distance, the critic, the weight between them, codes one by one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import TopKLogitsWarper, TopPLogitsWarper

from tests import tiny
from utils import checkpoints, device, tensors, training
from utils.bricks.clip import CLIP, MEAN, STD
from utils.bricks.vq_vae import VQVAE
from utils.bricks.vqgan import (
    CodeTransformer,
    PatchCritic,
    PerceptualDistance,
    adaptive_weight,
    choose,
    corrupted,
    critic_loss,
    fooling_loss,
    keep_nucleus,
    keep_top_k,
    next_code_loss,
    sample,
    shifted,
    window,
)
from utils.recipes import engine, vqgan


def small_clip(name: str = "clip_resnet") -> CLIP:
    """A random CLIP whose norms have seen something."""
    clip = tiny.model(name)
    for module in clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return clip.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def distance() -> PerceptualDistance:
    return PerceptualDistance(small_clip())


# ---------------------------------------------------------------- the perceptual distance


def by_loops(clip: CLIP, one: torch.Tensor, other: torch.Tensor) -> list[float]:
    """LPIPS without weights, one place of one map at a time, for the tower of small_clip."""
    first, second = clip.image_tower.layers[:4], clip.image_tower.layers[4:]
    maps = []
    for pictures in (one, other):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        stage = first((pictures - mean) / std)
        maps.append([stage, second(stage)])
    values = []
    for b in range(len(one)):
        value = 0.0
        for left, right in zip(*maps, strict=True):
            _, channels, height, width = left.shape
            for y in range(height):
                for x in range(width):
                    u, v = left[b, :, y, x], right[b, :, y, x]
                    for c in range(channels):
                        gap = u[c] / u.norm().clamp(min=1e-6) - v[c] / v.norm().clamp(min=1e-6)
                        value += gap.item() ** 2 / (height * width)
        values.append(value)
    return values


def test_the_distance_is_that_of_the_paper_with_weights_of_one():
    clip = small_clip()
    one, other = noise(2, 3, 16, 24), noise(2, 3, 16, 24, seed=1)
    with torch.no_grad():
        found = PerceptualDistance(clip)(one, other)
        wanted = by_loops(clip, one, other)
    assert found.shape == (2,)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_the_distance_is_a_distance(distance):
    one, other = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
    assert distance(one, one).abs().max() == 0
    assert torch.equal(distance(one, other), distance(other, one))
    assert (distance(one, other) > 0.01).all()
    assert (distance(one, other) <= 2 * 2).all()  # unit vectors at two stages


def test_every_place_counts_alike_whatever_the_strength_of_its_features(distance):
    features = distance.features(noise(2, 3, 16, 16))
    for x in features:
        assert torch.allclose(x.norm(dim=1), torch.ones(()), atol=1e-5)


def test_it_sees_pictures_from_0_to_1_with_the_mean_of_its_clip(distance):
    """LPIPS wants [−1, 1]: here that is another picture."""
    one, other = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    assert not torch.allclose(distance(one, other), distance(2 * one - 1, 2 * other - 1))


def test_a_parent_in_training_does_not_wake_the_tower(distance):
    """`.eval()` once is undone by the next `.train()` of whatever holds it."""
    parent = nn.ModuleDict({"distance": distance, "dropout": nn.Dropout()})
    parent.train()
    assert parent["dropout"].training
    assert not any(module.training for module in distance.modules())
    before = {k: v.clone() for k, v in distance.state_dict().items()}
    distance(noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1))
    for name, value in distance.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_gradient_reaches_the_picture_and_not_the_tower(distance):
    one = noise(2, 3, 16, 16).requires_grad_()
    distance(one, noise(2, 3, 16, 16, seed=1)).sum().backward()
    assert (one.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())


def test_a_black_place_has_a_finite_gradient(distance):
    """A ReLU can make all features of a place 0, which has no direction."""
    for layer in distance.tower.layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, -9.0)
            break
    one = noise(1, 3, 16, 16).requires_grad_()
    value = distance(one, noise(1, 3, 16, 16, seed=1))
    value.sum().backward()
    assert value.isfinite().all() and one.grad.isfinite().all()


def test_only_a_tower_with_stages_will_do():
    with pytest.raises(ValueError, match="^a ViT has no stages; give a CLIP with a ResNet tower$"):
        PerceptualDistance(small_clip("clip"))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 18, 16)])
def test_what_is_no_picture_is_refused_by_the_distance(shape, distance):
    with pytest.raises(ValueError, match=r"^(pictures are float|a side of)"):
        distance(torch.rand(shape), torch.rand(shape))


# ---------------------------------------------------------------- the critic


@pytest.mark.parametrize("halvings, field", [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch(halvings, field):
    """Without the norms, whose mean and deviation come from the whole map."""
    torch.manual_seed(0)
    critic = PatchCritic(8, halvings)
    for i, layer in enumerate(critic.layers):
        if isinstance(layer, nn.GroupNorm):
            critic.layers[i] = nn.Identity()
    pictures = noise(1, 3, 96, 96).requires_grad_()
    scores = critic(pictures)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    for way in (0, 1):
        seen = pictures.grad[0].abs().sum((0, way + 1)).nonzero().flatten()
        assert len(seen) == seen[-1] - seen[0] + 1 == field


def test_a_score_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    critic = PatchCritic(8)
    pictures = noise(4, 3, 32, 32)
    together = critic(pictures)
    for i in range(4):
        assert torch.allclose(critic(pictures[i : i + 1])[0], together[i], atol=1e-6)


def test_the_critic_is_a_patchgan():
    torch.manual_seed(0)
    layers = PatchCritic(64, 3).layers
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1, 1]
    assert [c.bias is None for c in convolutions] == [False, True, True, True, False]
    for c in convolutions:
        assert c.weight.std().item() == pytest.approx(0.02, rel=0.1)
    # no norm after the first layer, none after the last
    assert isinstance(layers[1], nn.LeakyReLU) and layers[1].negative_slope == 0.2
    assert layers[-1] is convolutions[-1]
    assert PatchCritic(64, 3)(noise(1, 3, 64, 64)).shape == (1, 1, 6, 6)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # real: 0, 0.5, 2 → 2.5/3; fake: 0, 1, 2 → 3/3; their mean
    assert critic_loss(real, fake).item() == pytest.approx((2.5 / 3 + 1) / 2)
    assert fooling_loss(fake).item() == pytest.approx(2 / 3)


def test_hinge_losses_pull_the_right_way_and_no_further_than_the_margin():
    real = torch.tensor([2.0, 0.5]).requires_grad_()
    fake = torch.tensor([-3.0, 0.0]).requires_grad_()
    critic_loss(real, fake).backward()
    assert real.grad.tolist() == [0.0, -0.25]  # descent raises it
    assert fake.grad.tolist() == [0.0, 0.25]
    fake.grad = None
    fooling_loss(fake).backward()
    assert fake.grad.tolist() == [-0.5, -0.5]  # the generator is never satisfied


# ---------------------------------------------------------------- the adaptive weight


def pulls(a: float, b: float) -> tuple:
    """Two losses whose gradients at `last` have lengths 5a and 13b, and `last`."""
    last = nn.Parameter(torch.tensor([1.0, 2.0]))
    return a * (last @ torch.tensor([3.0, 4.0])), b * (last @ torch.tensor([5.0, -12.0])), last


def test_the_weight_is_the_ratio_of_the_pulls():
    assert adaptive_weight(*pulls(2, 1)).item() == pytest.approx(10 / (13 + 1e-4))


def test_a_louder_critic_pulls_no_harder():
    for loudness in (0.1, 1, 100):
        nll, fooling, last = pulls(1, loudness)
        weight = adaptive_weight(nll, fooling, last)
        pull = torch.autograd.grad(weight * fooling, last)[0].norm()
        assert pull.item() == pytest.approx(5, rel=1e-3)


def test_the_weight_is_clamped():
    assert adaptive_weight(*pulls(1e3, 0)).item() == 1e4  # 5e3/1e-4 otherwise
    assert adaptive_weight(*pulls(1, 0), ceiling=7).item() == 7
    assert adaptive_weight(*pulls(0, 1)).item() == 0


def test_the_weight_has_no_gradient_and_leaves_the_graph_alone():
    nll, fooling, last = pulls(2, 1)
    weight = adaptive_weight(nll, fooling, last)
    assert not weight.requires_grad and last.grad is None
    (nll + weight * fooling).backward()  # the graph is still there
    wanted = 2 * torch.tensor([3.0, 4.0]) + weight * torch.tensor([5.0, -12.0])
    assert torch.allclose(last.grad, wanted)


# ---------------------------------------------------------------- the recipe


TINY = {"factor": 8, "codes": 16, "width": 16, "latent": 4, "batch": 4, "warmup": 2}
TINY |= {"steps": 6, "continuous": 2, "critic_start": 4, "critic_width": 8}
RECIPE = vqgan.Recipe(**TINY)


@pytest.fixture
def exact(monkeypatch, in_float32):
    """On the CPU and without bfloat16, which makes large differences of small ones."""
    monkeypatch.setenv("WIP_DEVICE", "cpu")


@pytest.fixture
def others() -> dict[str, CLIP]:
    return {"guide": small_clip(), "judge": small_clip("clip")}


def begin(recipe, others) -> tuple:
    torch.manual_seed(0)
    learner = recipe.build(tiny.pairs(), others)
    return learner, recipe.optimizers(learner), recipe.losses(learner, tiny.pairs(), others)


def copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(module: nn.Module, before: dict) -> list[str]:
    return [k for k, v in module.state_dict().items() if not torch.equal(v, before[k])]


def test_the_critic_is_idle_before_its_start(exact, others):
    learner, optimizers, losses = begin(RECIPE, others)
    learner.train()
    critic, model = copy(learner["critic"]), copy(learner["model"])
    for step, _ in training.run(optimizers, losses, RECIPE.steps):
        if step < RECIPE.critic_start:
            assert not changed(learner["critic"], critic)
            assert not optimizers[1].tensors()  # no moments of gradients of 0 either
            assert changed(learner["model"], model)
    learnt = changed(learner["critic"], critic)
    # real and drawn scores pull at the last bias in opposite ways, equally hard within the margin
    last = f"layers.{len(learner['critic'].layers) - 1}.bias"
    assert critic.keys() - {last} <= set(learnt)
    assert optimizers[1].tensors()


def test_each_loss_trains_its_own_side(exact, others):
    learner, _, (generator, criticism) = begin(RECIPE, others)
    learner.train()
    generator(RECIPE.critic_start).backward()
    assert all(p.grad is None for p in learner["critic"].parameters())
    assert all(p.grad is not None for p in learner["model"].parameters())
    assert all(p.requires_grad for p in learner["critic"].parameters())
    learner.zero_grad()
    criticism(RECIPE.critic_start).backward()
    assert all(p.grad is not None for p in learner["critic"].parameters())
    assert all(p.grad is None for p in learner["model"].parameters())


def test_the_critic_judges_what_the_generator_just_drew(exact, others, monkeypatch):
    learner, _, (generator, criticism) = begin(RECIPE, others)
    learner.eval()
    judged = []
    real = PatchCritic.forward
    monkeypatch.setattr(PatchCritic, "forward", lambda self, x: judged.append(x) or real(self, x))
    generator(RECIPE.critic_start)
    criticism(RECIPE.critic_start)
    drawn, both = judged
    assert torch.equal(both[RECIPE.batch :], drawn) and drawn.requires_grad
    assert not both.requires_grad
    pictures = vqgan.batch(tiny.pairs(), RECIPE.batch, 0, RECIPE.critic_start, drawn.device)
    assert torch.equal(both[: RECIPE.batch], pictures)


def test_the_critic_pulls_as_hard_as_the_picture_loss_times_its_weight(exact, others, monkeypatch):
    """At the weight of the decoder's last layer, and commitment does not count."""
    learner, _, (generator, _) = begin(RECIPE, others)
    learner.eval()
    last = learner["model"].decoder.layers[-2].weight
    assert last.shape[0] == 12  # what becomes three colours of 2×2 pixels
    slopes = []

    def grad(loss, step):
        return torch.autograd.grad(loss(step), last)[0]

    both = grad(generator, RECIPE.critic_start)
    monkeypatch.setattr(vqgan, "adaptive_weight", lambda *_: torch.zeros(()))
    alone = grad(generator, RECIPE.critic_start)
    slopes = (both - alone).norm(), alone.norm()
    # commitment does not reach the decoder, so `alone` is the pull of the picture loss
    assert slopes[0].item() == pytest.approx(RECIPE.critic_weight * slopes[1].item(), rel=1e-2)


def test_the_guide_stands_still_and_sees_both_pictures_moved_alike(exact, others, monkeypatch):
    learner, optimizers, losses = begin(RECIPE, others)
    guide = copy(others["guide"])
    engine.set_training(learner, others)
    for _ in training.run(optimizers, losses, RECIPE.steps):
        pass
    assert not changed(others["guide"], guide)
    for seed in range(20):
        one, other = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
        moved = shifted(one, other, torch.Generator().manual_seed(seed))
        found = [
            (y, x)
            for y in range(4)
            for x in range(4)
            if torch.equal(moved[0], one.roll((y, x), (2, 3)))
            and torch.equal(moved[1], other.roll((y, x), (2, 3)))
        ]
        assert len(found) == 1


def test_a_run_ships_the_autoencoder_alone_and_can_resume(exact, others, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "load_emoji", tiny.pairs)
    for name, clip in (("clip", others["judge"]), ("clip_resnet", others["guide"])):
        checkpoints.save(clip, name, {}, tmp_path)
    card = engine.pretrain("vqgan", RECIPE, tmp_path, tmp_path / "runs", save_every=0)
    assert {"psnr", "codes_used", "judge_distance", "judge_found"} <= card["metrics"].keys()
    assert set(card["helpers"]) == {"guide", "judge"}
    stored = tensors.read(tmp_path / "vqgan.safetensors")[0]
    assert not any("critic" in name or "tower" in name for name in stored)
    model = checkpoints.load("vqgan", folder=tmp_path)
    assert isinstance(model, VQVAE) and model.codes == 16
    # the same weights after a stop at the worst place: between idle and awake
    half = tmp_path / "half"
    half.mkdir()
    for name in ("clip", "clip_resnet"):
        for end in ("json", "safetensors"):
            (half / f"{name}.{end}").write_bytes((tmp_path / f"{name}.{end}").read_bytes())
    run, stopped = training.run, []

    def stop(*arguments, **settings):
        for step, loss in run(*arguments, **settings):
            if step == RECIPE.critic_start and not stopped:
                stopped.append(step)
                raise KeyboardInterrupt
            yield step, loss

    monkeypatch.setattr(training, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        engine.pretrain("vqgan", RECIPE, half, half / "runs", save_every=0)
    engine.pretrain("vqgan", RECIPE, half, half / "runs", save_every=0)
    again = tensors.read(half / "vqgan.safetensors")[0]
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_the_pixel_recipe_differs_in_its_losses_alone():
    one, other = (vqgan.RECIPES[name] for name in ("vqgan", "vqgan_l2"))
    shared = {field: getattr(one, field) for field in other.__dataclass_fields__}
    assert replace(other, **shared) == other


def test_the_judge_by_hand(others):
    class Same(nn.Module):
        """Draws every picture as it is, and the last as the first."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def encode(self, pictures):
            return pictures

        def decode(self, codes):
            return torch.cat([codes[:-1], codes[:1]])

    pictures, judge = tiny.pairs().pictures[:5], others["judge"]
    found = vqgan.judged(Same(), judge, pictures)
    with torch.no_grad():
        vectors = judge.encode_image(pictures.float() / 255)
    wanted = (1 - vectors[0] @ vectors[-1]).item() / 5
    assert found == {"judge_distance": round(wanted, 4), "judge_found": 80.0}


# ---------------------------------------------------------------- stage two: codes one by one


def small_transformer(codes: int = 11, side: int = 3, classes: int = 2) -> CodeTransformer:
    torch.manual_seed(0)
    model = CodeTransformer(codes, side, classes, width=16, depth=2, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def test_entry_i_sees_what_came_before_i_and_nothing_else():
    model = small_transformer()
    codes, classes = torch.randint(11, (1, 8)), torch.tensor([0])
    logits = model(codes, classes)
    assert logits.shape == (1, 9, 11)
    for place in range(8):
        other = codes.clone()
        other[0, place] = (codes[0, place] + 1) % 11
        moved = (model(other, classes) - logits).abs().amax(-1)[0] > 1e-6
        assert moved.tolist() == [i > place for i in range(9)]
    assert ((model(codes, classes + 1) - logits).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_fewer_codes_give_the_same_logits():
    model, codes = small_transformer(), torch.randint(11, (2, 8))
    classes = torch.tensor([0, 1])
    whole = model(codes, classes)
    for length in range(9):
        part = model(codes[:, :length], classes)
        assert torch.allclose(part, whole[:, : length + 1], atol=1e-5)


@torch.no_grad()
def test_the_loss_is_minus_log_chance_of_every_code():
    model, codes, classes = small_transformer(), torch.randint(11, (2, 9)), torch.tensor([0, 1])
    total = 0.0
    for b in range(2):
        for place in range(9):
            logits = model(codes[b : b + 1, :place], classes[b : b + 1])[0, -1]
            total -= logits.log_softmax(-1)[codes[b, place]].item()
    assert next_code_loss(model, codes, classes).item() == pytest.approx(total / 18, rel=1e-5)


@torch.no_grad()
def test_corruption_changes_inputs_and_leaves_targets_and_class(monkeypatch):
    model, codes, classes = small_transformer(), torch.randint(11, (2, 9)), torch.tensor([0, 1])
    seen = []
    forward = CodeTransformer.forward
    monkeypatch.setattr(
        CodeTransformer, "forward", lambda self, *x: seen.append(x) or forward(self, *x)
    )
    kept = codes.clone()
    torch.manual_seed(3)
    loss = next_code_loss(model, codes, classes, keep=0.5)
    ((inputs, first),) = seen
    assert torch.equal(codes, kept) and first is classes
    assert not torch.equal(inputs, codes[:, :-1])
    wanted = F.cross_entropy(model(inputs, classes).transpose(1, 2), codes)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_share_that_stays():
    codes = torch.full((200, 200), 3)
    torch.manual_seed(0)
    for keep in (0.0, 0.3, 1.0):
        share = (corrupted(codes, keep, 4) == 3).float().mean().item()
        # a random code is the old one once in four times
        assert share == pytest.approx(keep + (1 - keep) / 4, abs=0.01)


def test_too_many_codes_are_refused():
    model = small_transformer()
    with pytest.raises(ValueError, match="^9 codes came before, but a picture has 9; leave out"):
        model(torch.zeros(1, 9, dtype=torch.long), torch.tensor([0]))


# ---------------------------------------------------------------- sampling


def test_top_k_and_nucleus_are_those_of_transformers():
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    for k in (1, 3, 40):
        assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))
    for p in (0.01, 0.3, 0.9, 0.999):
        assert torch.equal(keep_nucleus(logits, p), TopPLogitsWarper(p)(None, logits))
    assert torch.equal(keep_nucleus(logits, 1.0), logits)


def test_equals_do_not_make_k_larger():
    kept = keep_top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)
    assert kept.isfinite().sum() == 2 and (kept[kept.isfinite()] == 2).all()


@pytest.mark.parametrize(
    "p, kept", [(0.1, 1), (0.499, 1), (0.501, 2), (0.74, 2), (0.76, 3), (0.99, 4)]
)
def test_the_nucleus_by_hand(p, kept):
    """The one that crosses p stays: 0.1 keeps the chance of one half."""
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    found = keep_nucleus(logits, p)
    wanted = torch.tensor([2, 0, 3, 1]) < kept  # the ranks of the chances
    assert found.isfinite().tolist() == wanted.tolist()
    assert torch.equal(found[wanted], logits[wanted])


def count(logits, n: int = 8000, **how) -> list[float]:
    """The share of every code when the noise takes every place of the line in turn."""
    line = (torch.arange(n) + 0.5) / n
    drawn = choose(logits.expand(n, -1), line, **how)
    return (torch.bincount(drawn, minlength=len(logits)) / n).tolist()


def test_codes_are_drawn_as_often_as_their_chance():
    logits = torch.tensor([0.5, 0.125, 0.25, 0.125]).log()
    assert count(logits) == pytest.approx([0.5, 0.125, 0.25, 0.125], abs=1e-3)
    squared = [16 / 22, 1 / 22, 4 / 22, 1 / 22]  # temperature ½ squares the chances
    assert count(logits, temperature=0.5) == pytest.approx(squared, abs=1e-3)
    assert count(logits, top_k=2) == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=1e-3)
    assert count(logits, top_p=0.6) == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=1e-3)
    # the temperature comes first: at ½ the first code alone holds 16/22
    assert count(logits, temperature=0.5, top_p=0.7) == [1, 0, 0, 0]


def test_no_noise_draws_what_has_no_chance():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    ends = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert choose(logits.expand(3, -1), ends).tolist() == [1, 3, 3]
    flat = torch.zeros(4096).expand(1, -1)
    assert choose(flat, torch.tensor([1 - 2**-24])).item() == 4095


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0}, "the temperature is 0; choose one above 0"),
        ({"temperature": float("nan")}, "the temperature is nan; choose one above 0"),
        ({"top_k": 5}, "k is 5; choose from 1 to 4"),
        ({"top_k": -1}, "k is -1; choose from 1 to 4"),
        ({"top_p": 0}, "p is 0; choose above 0 and at most 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose(torch.zeros(1, 4), torch.zeros(1), **settings)


@torch.no_grad()
def test_a_picture_is_drawn_code_by_code():
    model, classes = small_transformer(), torch.tensor([1, 0, 1])
    found = sample(model, classes, seed=5, temperature=0.8, top_k=6)
    assert found.shape == (3, 3, 3)
    for i in range(3):
        line = torch.rand(9, generator=device.generator(5 + i))
        codes = torch.zeros(1, 0, dtype=torch.long)
        for place in range(9):
            logits = model(codes, classes[i : i + 1])[:, -1]
            code = choose(logits, line[place : place + 1], temperature=0.8, top_k=6)
            codes = torch.cat([codes, code.unsqueeze(1)], 1)
        assert torch.equal(codes.view(3, 3), found[i])


def test_a_picture_is_the_same_alone_and_in_a_batch():
    model = small_transformer()
    together = sample(model, torch.tensor([0, 1, 0]), seed=7)
    assert torch.equal(sample(model, torch.tensor([1]), seed=8)[0], together[1])
    assert not torch.equal(together[0], together[2])


def test_the_window_holds_its_place_and_stays_inside():
    for height, width, side in ((3, 3, 3), (5, 9, 3), (8, 13, 4)):
        for row in range(height):
            for column in range(width):
                top, left = window(row, column, height, width, side)
                assert 0 <= top <= row < top + side <= height
                assert 0 <= left <= column < left + side <= width
    assert window(6, 6, 13, 13, 4) == (4, 4)  # as much before as after, or one more


@torch.no_grad()
def test_a_larger_picture_is_drawn_through_a_window():
    model, classes = small_transformer(), torch.tensor([1])
    found = sample(model, classes, seed=2, height=4, width=5)
    line = torch.rand(4, 5, generator=device.generator(2))
    codes = torch.full((1, 4, 5), -1)  # what is not drawn yet would be refused
    for row in range(4):
        for column in range(5):
            top, left = window(row, column, 4, 5, 3)
            before = [
                codes[0, y, x].item()
                for y in range(top, top + 3)
                for x in range(left, left + 3)
                if (y, x) < (row, column)
            ]
            assert -1 not in before
            before = torch.tensor(before, dtype=torch.long).view(1, -1)
            logits = model(before, classes)[:, -1]
            codes[0, row, column] = choose(logits, line[row, column].view(1))
    assert torch.equal(codes, found)


def test_a_grid_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="^a grid of 2×3 codes is smaller than the window of 3×3"):
        sample(small_transformer(), torch.tensor([0]), height=2)
