"""The VQGAN-CLIP loop: rounding, walls, angles, cut-outs, wishes, starts, and its promises."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import tiny
from utils.bricks import vqgan_clip
from utils.bricks.vq_vae import nearest_code
from utils.bricks.vqgan_clip import (
    ClampWithGrad,
    cut_boxes,
    cutouts,
    optimise,
    prompt_loss,
    quantised,
    random_codes,
    score,
    spherical_distance,
    starting_pictures,
    targets,
    views,
    weighted_parts,
    within,
)
from utils.bricks.zero_shot import class_vectors


def noise(*shape: int, seed: int = 0, **how) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), **how)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """A tiny guide with a BatchNorm, and a tiny decoder, for pictures of 32 × 32."""
    return {"guide": tiny.model("clip_resnet").eval(), "vqgan": tiny.model("vqgan").eval()}


def last(prompts, networks, **how) -> torch.Tensor:
    *_, pictures = optimise(prompts, **networks, **{"least": 12, "cuts": 4} | how)
    return pictures


# ---------------------------------------------------------------- straight through


def test_what_goes_on_is_the_nearest_code_and_the_gradient_that_of_z():
    z = noise(2, 3, 4).requires_grad_()
    codebook = noise(7, 4, seed=1).requires_grad_()
    out = quantised(z, codebook)
    distances = (z.detach().unsqueeze(2) - codebook.detach()).square().sum(-1)
    assert torch.allclose(out, codebook[distances.argmin(2)], atol=1e-6)
    weights = noise(2, 3, 4, seed=2)
    slopes = torch.autograd.grad((out * weights).sum(), [z, codebook], allow_unused=True)
    assert torch.equal(slopes[0], weights)  # not a code's own, not 0
    assert slopes[1] is None  # the codebook stands still


# ---------------------------------------------------------------- the wall with a door


@pytest.mark.parametrize(
    "x, grad, passes",
    [
        (-0.5, 1.0, False),  # descent leads further down
        (-0.5, -1.0, True),  # back in
        (1.5, -1.0, False),  # further up
        (1.5, 1.0, True),
        (0.5, 1.0, True),
        (0.5, -1.0, True),
        (0.0, 1.0, True),  # on the wall nothing is outside yet
        (1.0, -1.0, True),
    ],
)
def test_a_gradient_passes_unless_it_leads_out(x, grad, passes):
    value = torch.tensor([x], requires_grad=True)
    out = ClampWithGrad.apply(value, 0.0, 1.0)
    assert out.item() == min(max(x, 0.0), 1.0)
    (slope,) = torch.autograd.grad(out, value, torch.tensor([grad]))
    assert slope.item() == (grad if passes else 0.0)


def test_descent_brings_back_what_plain_clamp_leaves_outside():
    ends = []
    for clamp in (lambda x: ClampWithGrad.apply(x, 0.0, 1.0), lambda x: x.clamp(0, 1)):
        x = torch.tensor([-0.4, 1.4])
        for _ in range(50):
            x.requires_grad_()
            (slope,) = torch.autograd.grad((clamp(x) - 0.5).square().sum(), x)
            x = (x - 0.1 * slope).detach()
        ends.append(x)
    assert torch.allclose(ends[0], torch.full((2,), 0.5), atol=0.01)
    assert ends[1].tolist() == pytest.approx([-0.4, 1.4])


def test_other_walls():
    x = torch.tensor([-3.0, 3.0], requires_grad=True)
    out = ClampWithGrad.apply(x, -2.0, 2.0)
    assert out.tolist() == [-2.0, 2.0]
    (slope,) = torch.autograd.grad(out.sum(), x)  # both are told to go down
    assert slope.tolist() == [0.0, 1.0]


# ---------------------------------------------------------------- angles


@pytest.mark.parametrize("degrees", [0, 1, 30, 90, 135, 179])
def test_the_distance_is_half_the_squared_angle(degrees):
    theta = math.radians(degrees)
    u = 3.0 * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    v = 0.2 * torch.tensor([math.cos(theta), math.sin(theta), 0.0], dtype=torch.float64)
    assert spherical_distance(u, v).item() == pytest.approx(theta**2 / 2, abs=1e-9)


def test_its_gradient_is_the_angle_along_the_sphere():
    u = F.normalize(torch.randn(20, 5, generator=generator(), dtype=torch.float64), dim=-1)
    v = F.normalize(torch.randn(20, 5, generator=generator(1), dtype=torch.float64), dim=-1)
    u.requires_grad_()
    (slope,) = torch.autograd.grad(spherical_distance(u, v).sum(), u)
    cosine = (u * v).sum(-1, keepdim=True).detach()
    theta = cosine.acos()
    towards = (v - cosine * u.detach()) / theta.sin()  # of length 1, along the sphere
    assert torch.allclose(slope, -theta * towards, atol=1e-9)
    assert torch.allclose((slope * u).sum(-1), torch.zeros(20).double(), atol=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_and_opposite_vectors_have_finite_gradients(sign):
    u = torch.tensor([[0.6, 0.8]], requires_grad=True)
    value = spherical_distance(u, sign * u.detach())
    (slope,) = torch.autograd.grad(value.sum(), u)
    assert value.isfinite().all() and slope.isfinite().all()
    assert value.item() == pytest.approx(0 if sign > 0 else math.pi**2 / 2, abs=5e-3)


# ---------------------------------------------------------------- cut-outs


@pytest.mark.parametrize("size, least, power", [(64, 24, 1.0), (32, 8, 0.5), (50, 50, 2.0)])
def test_sizes_follow_the_power_law_and_squares_lie_inside(size, least, power):
    draws = noise(3000, 3, dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1 - 1e-12
    boxes = cut_boxes(draws, size, least, power)
    right = [int(u**power * (size - least) + least) for u in draws[:, 0].tolist()]
    side, top, left = boxes.T
    assert side.tolist() == right and boxes.dtype == torch.long
    assert top.min() >= 0 and left.min() >= 0
    assert (top + side).max() <= size and (left + side).max() <= size
    if least < size:  # every place is drawn
        assert (top + side).max() == size and (left + side).max() == size


def mixed(picture: torch.Tensor, box: list[int], out: int) -> torch.Tensor:
    """One square by its definition: each new pixel mixes four old ones, weighed by distance."""
    side, top, left = box
    cut = picture.new_zeros(3, out, out)
    for y in range(out):
        for x in range(out):
            places = [min(max((i + 0.5) * side / out - 0.5, 0), side - 1) for i in (y, x)]
            for row in range(side):
                for column in range(side):
                    weight = max(0, 1 - abs(places[0] - row)) * max(0, 1 - abs(places[1] - column))
                    cut[:, y, x] += weight * picture[0, :, top + row, left + column]
    return cut


@pytest.mark.parametrize("size, out", [(9, 9), (6, 11)])
def test_cut_outs_are_squares_enlarged_with_their_gradient(size, out):
    picture = noise(1, 3, size, size, dtype=torch.float64).requires_grad_()
    boxes = cut_boxes(noise(4, 3, seed=1, dtype=torch.float64), size, 3)
    turn = torch.tensor([True, False, True, False])
    ours = cutouts(picture, boxes, out, turn)
    theirs = torch.stack([mixed(picture, box, out) for box in boxes.tolist()])
    theirs = torch.where(turn.view(-1, 1, 1, 1), theirs.flip(3), theirs)
    assert torch.allclose(ours, theirs, atol=1e-9)
    weights = noise(4, 3, out, out, seed=2, dtype=torch.float64)
    slopes = [torch.autograd.grad((x * weights).sum(), picture)[0] for x in (ours, theirs)]
    assert torch.allclose(*slopes, atol=1e-9)


def test_views_have_noise_up_to_its_strength_and_are_those_of_their_generator():
    grey = torch.full((1, 3, 32, 32), 0.5)
    seen = views(grey, generator(), 32, cuts=400, least=8, noise=0.2)
    strengths = (seen - 0.5).flatten(1).std(1)
    assert 0.19 < strengths.max() < 0.21 and strengths.min() < 0.01
    assert strengths.mean().item() == pytest.approx(0.1, abs=0.01)  # uniform
    again = views(grey, generator(), 32, cuts=400, least=8, noise=0.2)
    assert torch.equal(seen, again)
    silent = views(grey, generator(), 32, cuts=3, noise=0.0)
    assert torch.allclose(silent, torch.full_like(silent, 0.5), atol=1e-6)


# ---------------------------------------------------------------- wishes


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("a red heart", [("a red heart", 1.0)]),
        ("a heart | a face:-0.5", [("a heart", 1.0), ("a face", -0.5)]),
        ("a:2|b: 3|c:.25", [("a", 2.0), ("b: 3", 1.0), ("c", 0.25)]),
        ("flag: France", [("flag: France", 1.0)]),
        ("keycap: 1", [("keycap: 1", 1.0)]),
        ("half past 7:30:1", [("half past 7:30", 1.0)]),
        ("a:+1.5 | b:0", [("a", 1.5), ("b", 0.0)]),
        ("a:nan", [("a:nan", 1.0)]),
        ("只猫:2", [("只猫", 2.0)]),
    ],
)
def test_parts_and_weights(prompt, parts):
    assert weighted_parts(prompt) == parts


@pytest.mark.parametrize("prompt", ["a |", "| a", "a || b", "a:0", "a:0 | b:0"])
def test_a_prompt_that_asks_nothing_is_refused(prompt):
    with pytest.raises(ValueError, match="empty|is 0"):
        weighted_parts(prompt)


def test_the_loss_is_the_weighted_sum_of_half_squared_angles(networks):
    guide = networks["guide"]
    seen = noise(5, 3, 32, 32)
    vectors, weights = targets(guide, "a fox | red:2 | a cat:-0.5")
    assert torch.equal(vectors, class_vectors(guide, ["a fox", "red", "a cat"]))
    cosines = guide.encode_image(seen) @ vectors.T
    right = (cosines.double().clamp(-1, 1).acos().square() / 2).mean(0) @ weights.double()
    loss = prompt_loss(guide, seen, vectors, weights)
    assert loss.item() == pytest.approx(right.item(), abs=1e-4)


def test_a_negative_weight_turns_the_pull_around(networks):
    guide, seen = networks["guide"], noise(2, 3, 32, 32).requires_grad_()
    vectors, weights = targets(guide, "a fox")
    slopes = [
        torch.autograd.grad(prompt_loss(guide, seen, vectors, sign * weights), seen)[0]
        for sign in (1, -1)
    ]
    assert torch.allclose(slopes[0], -slopes[1], atol=1e-7) and slopes[0].any()


# ---------------------------------------------------------------- starts


def test_latents_are_clamped_to_each_channel_of_the_codebook():
    codebook = torch.tensor([[0.0, -1.0], [2.0, 3.0]])
    z = torch.tensor([[-5.0, 5.0], [1.0, 1.0]])
    assert within(z, codebook).tolist() == [[0.0, 3.0], [1.0, 1.0]]


def test_random_codes_are_those_of_their_seed():
    grids = random_codes(9, 4, [3, 5])
    assert grids.shape == (2, 4, 4) and 0 <= grids.min() and grids.max() < 9
    assert torch.equal(random_codes(9, 4, [5])[0], grids[1]) and not grids[0].equal(grids[1])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 9, 70), (2, 3, 1, 1), (3, 200, 3)])
def test_a_start_of_any_size_becomes_a_square_with_white_at_its_sides(shape):
    start = torch.zeros(shape)
    out = starting_pictures(start, 2, 32)
    assert out.shape == (2, 3, 32, 32)
    height, width = shape[-2:]
    share = min(height, width) / max(height, width)
    dark = (out < 0.5).float().mean().item()
    assert dark == pytest.approx(max(share, 1 / 32), abs=1 / 32)
    assert out.min() >= 0 and out.max() <= 1


def test_a_picture_of_the_right_size_is_kept():
    start = noise(2, 3, 32, 32)
    assert torch.allclose(starting_pictures(start, 2, 32), start, atol=1e-5)


BAD = [
    ({"prompts": "a fox"}, "list of strings"),
    ({"prompts": []}, "no prompts"),
    ({"prompts": ["a fox", " "]}, "prompt 1 is empty"),
    ({"prompts": [3]}, "list of strings"),
    ({"prompts": ["a fox |"]}, "is empty"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"seed": [1, 2]}, "2 seeds"),
    ({"cuts": 0}, "at least one"),
    ({"least": 99}, "sides from 1 to 32"),
    ({"start": "fox.png"}, "start is a str"),
    ({"start": torch.zeros(32, 32)}, r"\(32, 32\)"),
    ({"start": torch.zeros(4, 32, 32)}, r"\(4, 32, 32\)"),
    ({"start": torch.zeros(3, 0, 32)}, r"\(3, 0, 32\)"),
    ({"start": torch.zeros(3, 3, 32, 32)}, "3 pictures"),
    ({"start": torch.zeros(3, 32, 32, dtype=torch.uint8)}, "uint8"),
    ({"start": torch.full((3, 32, 32), 7.0)}, r"outside of \[0, 1\]"),
    ({"start": torch.full((3, 32, 32), math.nan)}, r"outside of \[0, 1\]"),
]


@pytest.mark.parametrize("given, said", BAD)
def test_bad_input_is_one_sentence_before_the_first_step(networks, given, said):
    given = {"prompts": ["a fox"]} | given
    with pytest.raises(ValueError, match=said) as error:
        optimise(given.pop("prompts"), **networks, **given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


# ---------------------------------------------------------------- the loop


def test_one_picture_a_step_each_made_of_codes(networks, monkeypatch):
    seen, vqgan = latents_of(monkeypatch), networks["vqgan"]
    frames = list(optimise(["a fox", "a cat"], steps=4, cuts=2, least=8, lr=0.5, **networks))
    assert [frame.shape for frame in frames] == 4 * [(2, 3, 32, 32)]
    assert all(0 <= x.min() and x.max() <= 1 and not x.requires_grad for x in frames)
    for step, frame in enumerate(frames[:-1], 1):  # drawn of what the next step begins with
        codes = nearest_code(torch.cat(seen[2 * step : 2 * step + 2]), vqgan.codebook.vectors)
        assert torch.equal(frame, vqgan.decode(codes))
    assert not torch.equal(frames[0], frames[-1])


def test_the_loss_falls(networks):
    wish = targets(networks["guide"], "a fox")
    frames = list(optimise(["a fox"], steps=60, cuts=4, least=12, **networks))
    seen = [views(x, generator(9), 32, cuts=32, least=12) for x in frames]
    losses = [prompt_loss(networks["guide"], x, *wish).item() for x in seen]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_no_network_changes_and_no_weight_gets_a_gradient(networks):
    before = {k: {n: t.clone() for n, t in x.state_dict().items()} for k, x in networks.items()}
    networks["guide"].train()  # a caller may have left it so
    last(["a fox"], networks, steps=3)
    for name, network in networks.items():
        assert not network.training
        assert all(p.grad is None for p in network.parameters())
        for key, tensor in network.state_dict().items():  # BatchNorm's buffers, too
            assert torch.equal(tensor, before[name][key])


@pytest.mark.parametrize("mode", [torch.no_grad, contextlib.nullcontext])
def test_it_moves_also_where_gradients_are_switched_off(networks, mode):
    with mode():
        frames = list(optimise(["a fox"], steps=12, lr=0.5, cuts=2, least=8, **networks))
    assert not torch.equal(frames[0], frames[-1])


def test_the_same_seed_gives_the_same_picture_alone_or_among_others(networks):
    prompts, seeds = ["a fox", "a cat | red:-0.3", "a fox"], [4, 5, 6]
    how = {"steps": 8, "lr": 0.5}
    together = last(prompts, networks, seed=seeds, **how)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = last([prompt], networks, seed=seed, **how)
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-2)  # other seeds
    again = last(prompts, networks, seed=seeds, **how)
    assert torch.equal(again, together)


def latents_of(monkeypatch) -> list[torch.Tensor]:
    """Every z that the loop rounds in a step, in order."""
    seen = []

    def note(z, codebook):
        seen.append(z.detach().clone())
        return quantised(z, codebook)

    monkeypatch.setattr(vqgan_clip, "quantised", note)
    return seen


def test_latents_stay_in_the_range_of_the_codebook(networks, monkeypatch):
    seen = latents_of(monkeypatch)
    last(["a fox"], networks, steps=12, lr=5.0)
    codebook = networks["vqgan"].codebook.vectors
    z = torch.cat(seen)
    assert (z >= codebook.amin(0)).all() and (z <= codebook.amax(0)).all()
    assert (z == codebook.amin(0)).any() and (z == codebook.amax(0)).any()  # some were stopped


def test_it_starts_at_codes_of_the_start_or_of_the_seed(networks, monkeypatch):
    seen, vqgan = latents_of(monkeypatch), networks["vqgan"]
    start = noise(3, 32, 32)
    last(["a fox"], networks, steps=1, start=start)
    last(["a fox"], networks, steps=1, seed=7)
    codes = vqgan.encode(start.unsqueeze(0)), random_codes(vqgan.codes, 4, [7])
    for z, right in zip(seen, codes, strict=True):
        assert torch.equal(z, vqgan.codebook.vectors[right])


def test_the_pull_leads_to_the_start_not_to_zero(networks, monkeypatch):
    seen = latents_of(monkeypatch)
    start = noise(3, 32, 32)
    for pull in (0.0, 1e3):
        last(["a fox"], networks, steps=10, start=start, pull=pull)
    first, free, held = seen[0], seen[9], seen[19]
    away = [(z - first).square().mean().item() for z in (free, held)]
    assert away[1] < 0.1 * away[0]
    assert held.square().mean() > 0.5 * first.square().mean()  # at zero it would be small


def test_what_is_drawn_is_what_the_guide_sees(networks, monkeypatch):
    """The picture goes through the wall with a door, and every cut is of that picture."""
    pictures = []

    def note(picture, *rest, **how):
        pictures.append(picture.detach())
        return views(picture, *rest, **how)

    monkeypatch.setattr(vqgan_clip, "views", note)
    frames = list(optimise(["a fox"], steps=4, cuts=2, least=8, **networks))
    for drawn, seen in zip(frames, pictures[1:], strict=False):  # drawn after step i, seen at i+1
        assert torch.allclose(drawn, seen, atol=1e-5)


# ---------------------------------------------------------------- the best


def test_the_score_is_the_same_each_time_and_for_each_picture_alone(networks):
    guide, pictures = networks["guide"], noise(3, 3, 32, 32)
    scores = score(guide, pictures, "a fox | red:-0.5")
    assert scores.shape == (3,) and not scores.requires_grad
    for picture, value in zip(pictures, scores, strict=True):
        assert score(guide, picture.unsqueeze(0), "a fox | red:-0.5").item() == pytest.approx(
            value.item(), abs=1e-5
        )
    assert torch.equal(scores, score(guide, pictures, "a fox | red:-0.5"))


def test_who_stops_in_the_middle_has_the_best_so_far(networks):
    """As the film does: pictures and score; what is stopped is closed, and does no more."""
    loop, shots = optimise(["a fox"], steps=40, lr=0.5, cuts=2, least=8, **networks), []
    for pictures in loop:
        shots.append((score(networks["guide"], pictures, "a fox").item(), pictures))
        if len(shots) == 9:
            loop.close()
    assert len(shots) == 9 and next(loop, None) is None
    best = max(shots, key=lambda shot: shot[0])
    assert score(networks["guide"], best[1], "a fox").item() == pytest.approx(best[0], abs=1e-6)
    assert any(not torch.equal(best[1], pictures) for _, pictures in shots)
    whole = list(optimise(["a fox"], steps=40, lr=0.5, cuts=2, least=8, **networks))
    assert torch.equal(whole[8], shots[8][1])  # watching has not changed it


def test_the_nearest_code_of_a_code_is_itself(networks):
    codebook = networks["vqgan"].codebook.vectors
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(len(codebook)))
