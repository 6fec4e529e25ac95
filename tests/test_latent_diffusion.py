"""Latent diffusion: the autoencoder, cross-attention, words, walks from pictures, maps."""

import functools

import pytest
import torch
from torch import nn

from tests import helpers, tiny
from tests.helpers import noise
from utils import device
from utils.bricks.diffusion import Mixer, add_noise, target
from utils.bricks.latent_diffusion import (
    CrossAttention,
    KLAutoencoder,
    TextMixer,
    Watching,
    inpaint,
    kl_to_normal,
    latent_loss,
    padded,
    redraw,
    word_maps,
    word_places,
)
from utils.recipes import latent

SIDE = 32
close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=0)
refusal = helpers.refusal


@pytest.fixture(scope="module")
def model():
    """A tiny one, whose network has learnt nothing, but says something."""
    made = tiny.model("latent_diffusion").eval().requires_grad_(False)
    made.fit_scale(3 * noise(64, *made.shape, seed=5) + 1)
    return made


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=device.generator(seed))


def end(frames) -> torch.Tensor:
    *_, (x, _) = frames
    return x


# ---------------------------------------------------------------- the autoencoder


def test_kl_by_hand():
    """Of N(2, e²) and N(0, 1) in one number: ½(4 + e² − 1 − 2)."""
    found = kl_to_normal(torch.tensor([[2.0]]), torch.tensor([[2.0]]))
    close(found, torch.tensor([0.5 * (4 + torch.e**2 - 3)]))
    assert kl_to_normal(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_kl_is_that_of_diffusers_and_of_torch():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    mean, log_variance = noise(3, 4, 2, 2, seed=1), noise(3, 4, 2, 2, seed=2)
    found = kl_to_normal(mean, log_variance)
    theirs = DiagonalGaussianDistribution(torch.cat([mean, log_variance], 1)).kl()
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-5)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    each = torch.distributions.kl_divergence(normal, standard)
    torch.testing.assert_close(found, each.flatten(1).sum(1), atol=1e-4, rtol=1e-5)


def test_encoding_takes_the_mean_and_decoding_ends_in_pictures():
    model = KLAutoencoder(8, 16, 4).eval()
    shown = pictures(2)
    mean, log_variance = model.distribution(shown)
    assert mean.shape == log_variance.shape == (2, 4, 4, 4)
    close(model.encode(shown), mean)
    drawn = model.decode(20 * noise(2, 4, 4, 4))
    assert drawn.shape == shown.shape and drawn.min() >= 0 and drawn.max() <= 1
    assert not drawn.requires_grad and model.draw(mean).requires_grad


def test_a_variance_stays_a_number(monkeypatch):
    model = KLAutoencoder(8, 16, 4)
    monkeypatch.setattr(model.encoder, "forward", lambda x: torch.full((len(x), 8, 2, 2), 1e4))
    assert model.distribution(pictures(1))[1].max() == 20


def test_pictures_that_do_not_divide_are_refused():
    assert "multiple" in refusal(KLAutoencoder(8, 16, 4).encode, torch.rand(1, 3, 30, 32))


# ---------------------------------------------------------------- cross-attention


def test_cross_attention_is_that_of_diffusers_with_its_gradients():
    from diffusers.models.attention_processor import Attention

    ours, theirs = CrossAttention(24, 10, 3), Attention(24, 10, heads=3, dim_head=8)
    nn.init.normal_(ours.out.weight)
    with torch.no_grad():
        for name, other in {"q": "to_q", "k": "to_k", "v": "to_v"}.items():
            getattr(theirs, other).weight.copy_(getattr(ours, name).weight)
        theirs.to_out[0].load_state_dict(ours.out.state_dict())
    assert ours.q.bias is ours.k.bias is ours.v.bias is None and ours.out.bias is not None
    x, states = noise(2, 6, 24, seed=1), noise(2, 4, 10, seed=2)
    mask = torch.tensor([[0, 0, 0, 0], [0, 0, -torch.inf, -torch.inf]])
    slopes = []
    for call, bias in ((ours, mask), (theirs, mask[:, None])):
        given = x.clone().requires_grad_(), states.clone().requires_grad_()
        said = call(*given, bias)
        slopes.append([said, *torch.autograd.grad(said.sin().sum(), given)])
    for one, other in zip(*slopes, strict=True):
        close(one, other)
    assert (slopes[0][2][1, 2:] == 0).all(), "a masked state has no gradient"


def test_one_place_and_two_words_by_hand():
    """Scores 2/√2 and 0: shares of .804 and .196, so 10 and 20 give 11.96."""
    layer = CrossAttention(2, 2, 1)
    with torch.no_grad():
        for part in (layer.q, layer.k, layer.out):
            part.weight.copy_(torch.eye(2))
        layer.v.weight.copy_(torch.tensor([[5.0, 10.0], [0.0, 0.0]]))
        layer.out.bias.zero_()
    states = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    said = layer(torch.tensor([[[1.0, 0.0]]]), states, torch.zeros(1, 2))
    assert said[0, 0, 0].item() == pytest.approx(11.956, abs=1e-3)


def test_a_new_mixer_changes_nothing_by_its_words():
    torch.manual_seed(0)
    layer = TextMixer(32, 10)
    plain = Mixer(32)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in plain.state_dict()})
    nn.init.zeros_(layer.cross.out.bias)
    x = noise(2, 32, 4, 4)
    close(layer(x, noise(2, 3, 10), torch.zeros(2, 3)), plain(x))


# ---------------------------------------------------------------- latents


def test_latents_have_mean_0_and_variance_1_and_come_back(model):
    raw = model.autoencoder.encode(pictures(40))
    mean, deviation = model.mean.clone(), model.deviation.clone()
    model.fit_scale(raw)
    z = model.encode(pictures(40))
    close(z.mean((0, 2, 3)), torch.zeros(8))
    close(z.std((0, 2, 3)), torch.ones(8))
    close(model.decode(z), model.autoencoder.decode(raw))
    model.mean.copy_(mean), model.deviation.copy_(deviation)


# ---------------------------------------------------------------- words


def test_every_token_up_to_end_counts_and_no_more(model):
    prompts = ["red fox", "fox", ""]
    vectors, states, mask = model.encode_text(prompts)
    tokenizer = model.clip.tokenizer
    counts = [len(tokenizer.encode(prompt)) + 2 for prompt in prompts]
    assert (mask == 0).sum(1).tolist() == counts and mask[1, counts[1] :].isinf().all()
    assert states.shape == (3, max(counts), model.clip.text_tower.width)
    assert vectors[2].abs().max() == 0 and vectors[0].norm() > 1
    close(vectors[:2], model.clip.encode_text(prompts[:2]) * model.dim**0.5)
    alone = model.encode_text(["fox"])
    close(states[1, : counts[1]], alone[1][0])


def test_what_stands_behind_the_mask_is_not_seen(model):
    text = model.encode_text(["red fox in the snow", "fox"])
    vectors, states, mask = padded(text, text[2].shape[1] + 5)
    assert mask[:, -5:].isinf().all() and states.shape[1] == mask.shape[1]
    states = torch.where(mask.isinf()[..., None], torch.tensor(7.0), states)
    x, t = noise(2, *model.shape), torch.tensor([3, 40])
    close(model(x, t, text), model(x, t, (vectors, states, mask)))
    with_mask_off = model(x, t, (vectors, states, torch.zeros_like(mask)))
    assert (with_mask_off - model(x, t, text)).abs().max() > 1e-3


def test_words_count_one_by_one(model):
    """Another word changes the answer, even with the same vector."""
    vectors, states, mask = model.encode_text(["red fox", "fox red"])
    x, t = noise(1, *model.shape).repeat(2, 1, 1, 1), torch.tensor([9, 9])
    said = model(x, t, (vectors[:1].repeat(2, 1), states, mask))
    assert (said[0] - said[1]).abs().max() > 1e-4


def test_guidance_of_0_and_1_and_the_line_between(model, in_float32):
    prompts = ["red fox", "a picture of a fox"]
    text, free = model.encode_text(prompts), model.encode_text(["", ""])
    x, t = noise(2, *model.shape), torch.tensor([10, 30])
    asked, alone = model.read(x, t, text), model.read(x, t, free)
    for w in (0.0, 1.0, 3.5):
        for both in (text, model.beside(text)):
            for seen, one, other in zip(model.read(x, t, both, w), asked, alone, strict=True):
                close(seen, other + w * (one - other))
    for seen, other in zip(model.read(x, t), alone, strict=True):
        close(seen, other)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model):
    text, unwanted = model.encode_text(["red fox"]), model.encode_text(["a very long snow"])
    x, t = noise(1, *model.shape), torch.tensor([20])
    asked, other = model.read(x, t, text), model.read(x, t, unwanted)
    both = model.beside(text, "a very long snow")
    for seen, one, two in zip(model.read(x, t, both, 2.0), asked, other, strict=True):
        close(seen, two + 2 * (one - two))


def test_a_negative_prompt_of_the_prompt_leaves_it_alone(model):
    how = {"seed": 3, "steps": 4}
    plain = model.generate(["fox"], guidance=1.0, **how)
    close(model.generate(["fox"], guidance=5.0, unwanted="fox", **how), plain)
    assert not torch.equal(model.generate(["fox"], guidance=5.0, **how), plain)


# ---------------------------------------------------------------- sampling


def test_a_seed_is_one_picture_alone_or_among_others(model):
    three = model.generate(["fox", "red fox", "snow"], seed=[4, 5, 6], steps=3)
    assert three.shape == (3, 3, SIDE, SIDE) and 0 <= three.min() and three.max() <= 1
    close(model.generate(["red fox"], seed=5, steps=3), three[1:2])
    assert not torch.equal(model.generate(["red fox"], seed=6, steps=3), three[1:2])
    assert torch.equal(model.generate(["red fox"], seed=5, steps=3),
                       model.generate(["red fox"], seed=5, steps=3))  # fmt: skip


def test_dice_and_no_prompts(model):
    assert len([*model.stream(seed=[1, 2], steps=3)]) == 4
    one, other = (model.generate(["fox"], seed=1, steps=4, eta=eta) for eta in (0.0, 1.0))
    assert not torch.equal(one, other)


BAD = {
    "no prompt": (([""],), {}),
    "no prompts": (([],), {}),
    "two seeds for one prompt": ((["fox"],), {"seed": [1, 2]}),
    "no step": ((["fox"],), {"steps": 0}),
    "too many steps": ((["fox"],), {"steps": 10_000}),
    "half a step": ((["fox"],), {"steps": 2.5}),
    "no number": ((["fox"],), {"guidance": float("nan")}),
    "endless guidance": ((["fox"],), {"guidance": float("inf")}),
    "too many dice": ((["fox"],), {"eta": 2.0}),
    "a negative prompt that is a number": ((["fox"],), {"unwanted": 3}),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(kind, model):
    given, how = BAD[kind]
    refusal(lambda: model.generate(*given, **how))


def test_a_stop_in_the_middle_leaves_nothing(model):
    before = model.generate(["fox"], seed=2, steps=3)
    frames = model.stream(["fox"], seed=7, steps=5)
    next(frames)
    frames.close()
    assert torch.equal(model.generate(["fox"], seed=2, steps=3), before)


# ---------------------------------------------------------------- from pictures


def oracle(model, z, monkeypatch):
    """The model sees the latents z in everything."""

    def read(x, t, text=None, guidance=1.0):
        left = model.signal[t].view(-1, 1, 1, 1)
        return z, (x - left.sqrt() * z) / (1 - left).sqrt()

    monkeypatch.setattr(model, "read", read)


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_a_model_that_knows_the_picture_comes_back_to_it(model, strength, monkeypatch):
    shown = pictures(2)
    z = model.encode(shown)
    oracle(model, z, monkeypatch)
    frames = [*redraw(model, shown, ["fox", "snow"], strength=strength, steps=10)]
    torch.testing.assert_close(frames[-1][0], z, atol=1e-3, rtol=1e-3)
    assert len(frames) == max(1, round(10 * strength)) + 1


def test_the_walk_begins_at_the_picture_with_the_noise_of_its_time(model):
    shown, first = pictures(1), round(0.4 * model.steps) - 1
    x, _ = next(redraw(model, shown, ["fox"], strength=0.4, seed=3))
    grain = torch.randn(model.shape, generator=device.generator(3))[None]
    close(x, add_noise(model.encode(shown), grain, model.signal[[first]]))


def test_a_small_strength_keeps_more_of_the_picture(model):
    shown = pictures(2)
    z = model.encode(shown)
    off = [
        (end(redraw(model, shown, ["fox", "snow"], strength=s)) - z).square().mean().item()
        for s in (0.02, 0.3, 0.9)
    ]
    assert off == sorted(off) and off[0] < off[2] / 4


def test_what_may_not_change_is_the_picture_and_the_rest_is_the_walk(model):
    shown, mask = pictures(2), torch.zeros(2, 1, SIDE, SIDE)
    mask[0, :, :9] = 1  # of places of eight pixels: the upper two rows
    x = end(inpaint(model, shown, mask, ["fox", "snow"], steps=4))
    z = model.encode(shown)
    assert torch.equal(x[0, :, 2:], z[0, :, 2:]) and torch.equal(x[1], z[1])
    assert (x[0, :, :2] - z[0, :, :2]).abs().min() > 0
    whole = end(inpaint(model, shown, torch.ones_like(mask), ["fox", "snow"], steps=4))
    close(whole, end(model.stream(["fox", "snow"], steps=4)))


def test_on_the_way_the_rest_has_the_noise_of_the_time(model):
    shown, mask = pictures(1), torch.zeros(1, 1, SIDE, SIDE)
    frames = [*inpaint(model, shown, mask, ["fox"], seed=2, steps=5)]
    grain = torch.randn(model.shape, generator=device.generator(2))[None]
    for (x, _), t in list(zip(frames, model.times(5), strict=True))[1:-1]:
        close(x, add_noise(model.encode(shown), grain, model.signal[[t]]))


MASK = torch.ones(1, 1, SIDE, SIDE)
BAD_PICTURES = {
    "strength 0": lambda m: redraw(m, pictures(1), ["fox"], strength=0.0),
    "strength 2": lambda m: redraw(m, pictures(1), ["fox"], strength=2.0),
    "no number": lambda m: redraw(m, pictures(1), ["fox"], strength=float("nan")),
    "another size": lambda m: redraw(m, torch.rand(1, 3, 64, 64), ["fox"]),
    "two prompts": lambda m: redraw(m, pictures(1), ["fox", "snow"]),
    "no steps": lambda m: redraw(m, pictures(1), ["fox"], steps=0),
    "too large": lambda m: redraw(m, 255 * pictures(1), ["fox"]),
    "a mask of another size": lambda m: inpaint(m, pictures(1), MASK[..., :16], ["fox"]),
    "one mask for two": lambda m: inpaint(m, pictures(2), MASK, ["fox", "snow"]),
    "a mask without a channel": lambda m: inpaint(m, pictures(1), MASK[0], ["fox"]),
    "a mask with nan": lambda m: inpaint(m, pictures(1), MASK * torch.nan, ["fox"]),
    "10,000 steps": lambda m: inpaint(m, pictures(1), MASK, ["fox"], steps=10_000),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures_and_masks_are_one_sentence(kind, model):
    refusal(lambda: end(BAD_PICTURES[kind](model)))


def test_a_mask_of_truth_values_and_of_numbers_are_one(model):
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., :8] = 1
    given = pictures(1), ["fox"]
    ends = [end(inpaint(model, given[0], m, given[1], steps=2)) for m in (mask, mask.bool())]
    assert torch.equal(*ends)


# ---------------------------------------------------------------- which word is where


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = nn.Module()
        self.unet.cross = CrossAttention(6, 4, 1)
        nn.init.eye_(self.unet.cross.out.weight)


def test_a_map_is_what_the_answer_was_mixed_by():
    """With one head and an identity at the end, map · values is the answer."""
    toy = OneLayer()
    layer, x, states = toy.unet.cross, noise(2, 9, 6), noise(2, 3, 4)
    mask = torch.tensor([[0, 0, 0], [0, 0, -torch.inf]])
    with torch.no_grad(), Watching(toy) as seen:
        said = layer(x, states, mask)
        close(seen.maps[0] @ layer.v(states) + layer.out.bias, said)
    assert seen.maps[0].shape == (2, 9, 3) and (seen.maps[0][1, :, 2] == 0).all()
    close(seen.maps[0].sum(-1), torch.ones(2, 9))


def test_watching_ends_with_its_block_and_changes_nothing(model):
    plain = model.generate(["fox"], steps=2)
    with Watching(model) as seen:
        assert torch.equal(model.generate(["fox"], steps=2), plain)
    calls = len(seen.maps)
    assert calls == 2 * len(seen.layers) > 0
    with pytest.raises(ZeroDivisionError), Watching(model):
        _ = 1 / 0
    model.generate(["fox"], steps=2)
    assert len(seen.maps) == calls
    assert not any(layer._forward_hooks for layer in seen.layers)


def test_maps_by_hand():
    """Two calls: a map of four places as it is, and one of a single place, the same everywhere."""
    four = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]]])
    one = torch.tensor([[[0.4, 0.6]]])
    unasked = torch.full_like(four, 9), torch.full_like(one, 9)
    maps = [torch.cat(pair) for pair in zip((four, one), unasked, strict=True)]
    first = torch.tensor([[0.7, 0.45], [0.2, 0.325]])
    close(word_maps(maps, 1, 2), torch.stack([first, 1 - first])[None])
    assert word_maps(maps, 1, 8).shape == (1, 2, 8, 8)


def test_where_a_word_stands(model):
    tokenizer = model.clip.tokenizer
    prompt = "Red fox, red!"
    spans, place = {}, 1
    for i, word in enumerate(["red", "fox", ",", "red", "!"]):
        count = len(tokenizer.encode(word))
        spans[i] = list(range(place, place + count))
        place += count
    assert word_places(tokenizer, prompt, "red") == spans[0] + spans[3]
    assert word_places(tokenizer, prompt, "FOX") == spans[1]
    message = refusal(word_places, tokenizer, prompt, "snow")
    assert "'snow'" in message and "fox" in message
    refusal(word_places, tokenizer, prompt, "")


def test_a_word_beyond_the_context_is_not_there(model):
    tokenizer = model.clip.tokenizer
    long = "fox " * 40
    assert max(word_places(tokenizer, long, "fox")) == tokenizer.context - 2
    refusal(word_places, tokenizer, long + "snow", "snow")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("predicts", ["v", "eps", "x0"])
def test_the_loss_of_the_right_answer_is_0_and_that_of_zero_is_its_size(predicts, model):
    x0 = noise(5, *model.shape, seed=3)

    class Told:
        steps, signal = model.steps, model.signal

        def __init__(self, right: bool):
            self.predicts, self.right = predicts, right

        def __call__(self, x, t, text):
            left = self.signal[t].view(-1, 1, 1, 1)
            eps = (x - left.sqrt() * x0) / (1 - left).sqrt()
            self.wanted = target(predicts, x0, eps, self.signal[t])
            return self.wanted if self.right else torch.zeros_like(x)

    assert latent_loss(Told(True), x0, None).item() < 1e-4
    silent = Told(False)
    loss = latent_loss(silent, x0, None)
    torch.testing.assert_close(loss, silent.wanted.square().mean())


def test_the_loss_moves_the_network_and_nothing_that_is_borrowed():
    made = tiny.model("latent_diffusion")
    text = made.encode_text(["fox", "snow"])
    latent_loss(made, noise(2, *made.shape), text).backward()
    moved = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None}
    assert moved == {"unet"}
    assert all(p.grad is not None for p in made.unet.parameters())


def test_copies_are_counted(model):
    shown = pictures(6)
    known = model.autoencoder.encode(shown)[None]
    near = pictures(6, seed=1)
    assert latent.copies(model, shown, known) == 100
    assert latent.copies(model, near, known) == 0
