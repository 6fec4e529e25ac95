"""unCLIP: a prior over vectors, a decoder that is told one, ways between vectors."""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from tests import helpers, tiny
from tests.helpers import noise
from utils import device
from utils.bricks.latent_diffusion import latent_loss
from utils.bricks.unclip import (
    imagine,
    noise_of,
    slerp,
    text_difference,
    variations,
)
from utils.bricks.zero_shot import image_vectors
from utils.recipes import unclip as recipes

SIDE = 32
close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=0)
refusal = helpers.refusal


@pytest.fixture(scope="module")
def prior():
    return tiny.model("prior").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return tiny.model("unclip").eval().requires_grad_(False)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=device.generator(seed))


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


# ---------------------------------------------------------------- round a sphere


def test_half_a_right_angle_by_hand():
    """From east to north; a third of 90° is 30°."""
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    close(slerp(east, north, 0.5), torch.full((1, 2), 0.5**0.5))
    close(slerp(east, north, 1 / 3), torch.tensor([[math.cos(math.pi / 6), 0.5]]))


def test_the_way_has_its_ends_length_1_and_an_even_pace():
    start, end = units(5, 7, seed=1), units(5, 7, seed=2)
    close(slerp(start, end, 0.0), start)
    close(slerp(start, end, 1.0), end)
    stops = torch.stack([slerp(start, end, i / 8) for i in range(9)])
    close(stops.norm(dim=-1), torch.ones(9, 5))
    steps = (stops[1:] * stops[:-1]).sum(-1).clamp(-1, 1).acos()
    torch.testing.assert_close(steps, steps[:1].expand(8, -1), atol=1e-3, rtol=0)
    close(slerp(start, end, 0.25), slerp(end, start, 0.75))


def test_every_row_may_have_its_own_share_and_no_way_is_no_trouble():
    start, end = units(3, 4, seed=1), units(3, 4, seed=2)
    shares = torch.tensor([[0.0], [0.3], [1.0]])
    rows = [slerp(start[i : i + 1], end[i : i + 1], shares[i].item()) for i in range(3)]
    close(slerp(start, end, shares), torch.cat(rows))
    close(slerp(start, start, 0.4), start, atol=1e-3)
    assert slerp(start, -start, 0.5).isfinite().all()


def test_a_text_difference_turns_the_way_of_the_texts(model):
    vectors, clip = units(3, model.latent.dim), model.latent.clip
    one, two = clip.encode_text(["a red fox", "snow"])
    way = F.normalize(two - one, dim=0)
    close(text_difference(model, vectors, "a red fox", "snow", 0.0), vectors)
    close(text_difference(model, vectors, "a red fox", "snow", 1.0), way.expand(3, -1))
    cosines = [
        (text_difference(model, vectors, "a red fox", "snow", s) @ way) for s in (0.0, 0.3, 0.6)
    ]
    assert (cosines[0] < cosines[1]).all() and (cosines[1] < cosines[2]).all()


# ---------------------------------------------------------------- the prior


def test_the_prior_answers_with_vectors_and_padding_is_not_seen(prior):
    text = prior.encode_text(["a red fox in the snow", "fox"])
    x, t = noise(2, prior.dim), torch.tensor([3, 700])
    said = prior(x, t, text)
    assert said.shape == (2, prior.dim)
    vectors, states, mask = text
    states = torch.where(mask.isinf()[..., None], torch.tensor(9.0), states)
    close(prior(x, t, (vectors, states, mask)), said)
    alone = prior(x[1:], t[1:], prior.encode_text(["fox"]))
    close(alone, said[1:])


@pytest.mark.parametrize("part", ["words", "vector", "time", "noise"])
def test_the_prior_heeds_all_that_it_is_told(part, prior):
    vectors, states, mask = prior.encode_text(["a red fox"])
    x, t = noise(1, prior.dim), torch.tensor([300])
    said = prior(x, t, (vectors, states, mask))
    other = {
        "words": lambda: prior(x, t, (vectors, states + 1, mask)),
        "vector": lambda: prior(x, t, (-vectors, states, mask)),
        "time": lambda: prior(x, t - 290, (vectors, states, mask)),
        "noise": lambda: prior(-x, t, (vectors, states, mask)),
    }[part]()
    assert (other - said).abs().max() > 1e-3


def test_the_prior_reads_x0_off_and_the_noise_beside_it(prior, in_float32):
    x, t = noise(2, prior.dim), torch.tensor([10, 500])
    text = prior.encode_text(["fox", "snow"])
    x0, eps = prior.read(x, t, text)
    close(x0, prior(x, t, text))
    left = prior.signal[t][:, None]
    torch.testing.assert_close(left.sqrt() * x0 + (1 - left).sqrt() * eps, x, atol=1e-4, rtol=0)


def test_vectors_are_scaled_and_come_back_with_length_1(prior):
    shown = pictures(3)
    z = prior.encode(shown)
    close(z.norm(dim=1), torch.full((3,), prior.dim**0.5), atol=1e-3)
    close(prior.decode(z), image_vectors(prior.clip, shown))


def test_of_two_candidates_the_one_nearer_to_the_caption_is_taken(prior):
    prompts = ["a red fox", "snow", "red"]
    texts = prior.clip.encode_text(prompts)
    one = imagine(prior, prompts, candidates=1, steps=3)
    other = imagine(prior, prompts, candidates=1, seed=1000, steps=3)
    both = imagine(prior, prompts, candidates=2, steps=3)
    first = (one * texts).sum(1) > (other * texts).sum(1)
    assert torch.equal(both, torch.where(first[:, None], one, other))
    close(both.norm(dim=1), torch.ones(3))
    assert not torch.equal(one, other)
    assert "candidates" in refusal(lambda: imagine(prior, prompts, candidates=0))


# ---------------------------------------------------------------- the decoder


def test_a_vector_speaks_in_words(model):
    vectors = units(3, model.latent.dim)
    said, states, mask = model.says(vectors)
    width = model.latent.clip.text_tower.width
    assert said.shape == vectors.shape and states.shape == (3, model.words, width)
    assert mask.shape == (3, model.words) and not mask.any()
    states = states.flatten(1)
    assert torch.linalg.matrix_rank(states - states.mean(0)) > 1  # each says something else


def test_a_new_decoder_hears_a_vector_as_a_caption_s():
    from utils.bricks.unclip import UnCLIP

    latent = tiny.model("latent_diffusion").eval()
    text = latent.clip.encode_text(["fox"])
    close(UnCLIP(latent, 2).says(text)[0], latent.encode_text(["fox"])[0])


def test_drawing_is_repeatable_and_heeds_its_vector_and_its_seed(model):
    vectors = units(2, model.latent.dim)
    drawn = model.draw(vectors, seed=[3, 4], steps=3)
    assert drawn.shape == (2, 3, SIDE, SIDE) and 0 <= drawn.min() and drawn.max() <= 1
    close(model.draw(vectors[1:], seed=4, steps=3), drawn[1:])
    assert not torch.equal(model.draw(vectors[1:], seed=5, steps=3), drawn[1:])
    assert not torch.equal(model.draw(-vectors, seed=[3, 4], steps=3), drawn)


def test_the_noise_of_a_picture_leads_back_to_it(model):
    shown = pictures(2)
    x = noise_of(model, shown, steps=50)
    vectors = image_vectors(model.latent.clip, shown)
    *_, (z, _) = model.stream(vectors, noise=x, guidance=1.0, steps=50)
    right = model.latent.encode(shown)
    other = noise(*x.shape, seed=4)
    *_, (astray, _) = model.stream(vectors, noise=other, guidance=1.0, steps=50)
    assert (z - right).square().mean() < 0.2 * (astray - right).square().mean()


def test_variations_are_others_of_the_same(model):
    shown = pictures(2)
    first, second = (variations(model, shown, seed=seed, steps=3) for seed in (0, 7))
    assert first.shape == (2, 3, SIDE, SIDE) and not torch.equal(first, second)
    vectors = image_vectors(model.latent.clip, shown)
    close(first, model.draw(vectors, seed=range(2), steps=3))


BAD = {
    "no pictures": lambda m: variations(m, torch.zeros(0, 3, SIDE, SIDE)),
    "0 to 255": lambda m: variations(m, 255 * pictures(1)),
    "no steps": lambda m: variations(m, pictures(1), steps=0),
    "10,000 steps": lambda m: variations(m, pictures(1), steps=10_000),
    "no number": lambda m: variations(m, pictures(1), guidance=float("nan")),
    "a seed of half": lambda m: variations(m, pictures(1), seed=0.5),
    "steps back": lambda m: noise_of(m, pictures(1), steps=0),
    "pictures of another size": lambda m: noise_of(m, torch.rand(1, 3, 2 * SIDE, 2 * SIDE)),
    "vectors of another width": lambda m: m.draw(torch.ones(2, 5)),
    "one vector alone": lambda m: m.draw(torch.ones(m.latent.dim)),
    "no vectors": lambda m: m.draw(torch.zeros(0, m.latent.dim)),
    "vectors without numbers": lambda m: m.draw(torch.full((1, m.latent.dim), torch.nan)),
    "a seed too many": lambda m: m.draw(units(1, m.latent.dim), seed=[0, 1]),
    "a seed too few": lambda m: m.draw(units(3, m.latent.dim), seed=[0, 1], guidance=1.0),
    "noise for two": lambda m: m.draw(units(1, m.latent.dim), noise=noise(2, *m.latent.shape)),
    "captions that say the same": lambda m: text_difference(
        m, units(1, m.latent.dim), "a fox", "a fox"
    ),
    "a share without number": lambda m: text_difference(
        m, units(1, m.latent.dim), "a fox", "red", float("nan")
    ),
    "ends of another width": lambda m: slerp(units(1, 4), units(1, 5), 0.5),
}
ASKED = {
    "one text": {"prompts": "a fox"},
    "no texts": {"prompts": []},
    "an empty text": {"prompts": [" "]},
    "half a candidate": {"candidates": 1.5},
    "no candidates": {"candidates": 0},
    "several seeds": {"seed": [1, 2]},
    "guidance without number": {"guidance": float("nan")},
    "no steps": {"steps": 0},
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_prior_answers_bad_input_in_one_sentence(kind, prior):
    refusal(lambda: imagine(prior, **{"prompts": ["a fox"], **ASKED[kind]}))


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(kind, model):
    refusal(lambda: BAD[kind](model))


# ---------------------------------------------------------------- training and measuring


def test_training_moves_the_way_in_and_nothing_else():
    made = tiny.model("unclip")
    text = made.says(units(2, made.latent.dim))
    latent_loss(made.latent, noise(2, *made.latent.shape), text).backward()
    moved = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None}
    assert moved == {"tokens", "vector"}


RECIPE = tiny.MODELS["unclip"].recipe


def test_a_variation_is_held_against_other_concepts_of_its_group(monkeypatch):
    """Four pictures, two groups; vectors by hand: the variation of 0 beats 1, that of 1 not 0."""
    given = tiny.pairs("unseen", 4)
    given.table["group"] = ["animals", "animals", "food", "food"]
    known = torch.eye(4)
    known[1] = F.normalize(torch.tensor([3.0, 4.0, 0.0, 0.0]), dim=0)  # .6 from picture 0
    seen = known.clone()
    seen[0, :2] = torch.tensor([0.8, 0.6])  # nearer to 0 than 1 is
    seen[1] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # farther from 1 than 0 is
    monkeypatch.setattr(recipes, "variations", lambda model, part: part + 2)
    monkeypatch.setattr(
        recipes, "image_vectors", lambda judge, p: seen if p.min() >= 2 else known
    )
    recipe = dataclasses.replace(RECIPE, questions=4)
    figures, _ = recipe.look(None, {"unseen": given}, {"judge": None})
    assert figures == {"nearer_than_its_group": 75.0}


def test_with_and_without_the_prior_are_told_apart(monkeypatch):
    """Each way is drawn from its own vectors, in every figure of it."""
    given, told = tiny.pairs(), []
    dim = 8
    captions, imagined = torch.zeros(12, dim), torch.ones(12, dim)

    class Model:
        latent = clip = None

        def draw(self, vectors, seed):
            told.append((vectors.unique().tolist(), seed))
            return vectors.mean(1).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    model = Model()
    model.latent, model.clip = model, model
    model.encode_text = lambda labels: captions
    monkeypatch.setattr(recipes, "imagine", lambda prior, labels: imagined)
    monkeypatch.setattr(RECIPE.__class__, "look", lambda *_: ({}, None))
    real = torch.eye(dim)[0]
    monkeypatch.setattr(
        recipes,
        "image_vectors",
        lambda judge, p: real.expand(len(p), -1) * (1 if len(p) > 12 else p[:, 0, 0, :1]),
    )
    monkeypatch.setattr(recipes, "found_among", lambda judge, p, *_: p[:, 0, 0, 0] > 0.5)
    monkeypatch.setattr(recipes, "frechet_distance", lambda part, known: 1 - part.mean().item())
    figures = RECIPE.evaluate(model, {"train": given}, {"judge": None, "prior": None})
    assert told == [([1.0], list(range(12))), ([0.0], list(range(12)))]
    assert figures == {
        "found": 100.0,
        "like_real": 1.0,
        "frechet": 875.0,
        "found_without_prior": 0.0,
        "like_real_without_prior": 0.0,
        "frechet_without_prior": 1000.0,
    }
