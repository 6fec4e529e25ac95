# ---
# jupyter:
#   brick: diffusion_clip
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · DiffusionCLIP: change one word and keep the rest
#
# ![A flat drawing is walked to its half-noise; the way back goes through a copy of the
# network that was tuned until pictures move as the words do, from flat to
# 3D](../assets/figures/13_diffusion_clip.svg)
#
# Guides so far bent one walk and were gone. Now CLIP changes the *network*, once, and
# afterwards it draws everything another way: flat drawings come out in 3D. All it is
# told is two words. **How do you say "change this and nothing else" to a network?**
# (DiffusionCLIP, Kim et al. 2022; the loss is that of StyleGAN-NADA, Gal et al. 2022.)

# %%
from utils import checkpoints, data, plots, widgets
from utils.bricks import sampling

model = checkpoints.load("diffusion")  # asked without captions
guide, judge = checkpoints.load("clip_resnet"), checkpoints.load("clip")
here = model.signal.device
train = data.load_emoji("train").where(skin_tone="none")

# %% [markdown]
# What the bricks of this lesson are made of:

# %% tags=["brick"]
import copy
import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from utils import checkpoints, data, device
from utils.bricks.clip import CLIP
from utils.bricks.diffusion import Diffusion
from utils.bricks.sampling import ddim_step, invert, look, signal_at, walk
from utils.bricks.vqgan import PerceptualDistance
from utils.bricks.zero_shot import class_vectors, image_vectors
from utils.given import takes

# %% [markdown]
# ## A toy: two ways to say it
#
# Six pictures are points in the plane, and a text is a point, too: *flat* lies at
# (0, 0), *3D* at (2, 1). The **global** loss says: be near the text. The
# **directional** one says: move the way the text moves,
#
# $$L_{dir} = 1 - \frac{\Delta I\cdot\Delta T}{\lVert\Delta I\rVert\,\lVert\Delta
#   T\rVert},\qquad \Delta I = E_I(\text{after})-E_I(\text{before}),\quad
#   \Delta T = E_T(\text{3D})-E_T(\text{flat})$$
#
# **Predict first.** What will the six have in common after following the one, and the
# other?


# %%
points = torch.tensor([[-10, 0], [-5, 10], [0, -10], [5, 5], [10, -3], [3, 15]]) / 10
flat, solid = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])


def follow(loss, steps: int = 60) -> Tensor:
    """Points (6, 2) that were moved down a slope, from a nudge aside."""
    moved = (points + torch.tensor([0.1, -0.1])).requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = (moved - 0.05 * slope).detach().requires_grad_()
    return moved.detach()


def near_the_text(after: Tensor) -> Tensor:
    return (after - solid).square().sum(1)


def the_way_of_the_text(after: Tensor) -> Tensor:
    away = after - points
    straight = 1 - F.cosine_similarity(away, (solid - flat).expand_as(away))
    return straight + 0.3 * (away.norm(dim=1) - 1.5).square()  # and some way, not far


ways = {"global": follow(near_the_text), "directional": follow(the_way_of_the_text)}
fig, axes = plots.figure(columns=2, width=9, height=2.8)
for ax, (name, after) in zip(axes, ways.items(), strict=True):
    for a, b in zip(points.tolist(), after.tolist(), strict=True):
        ax.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": "#2f6fde"})
    ax.plot(*points.T, "o", color=plots.COLOURS["noise"])
    ax.plot(*solid, "s", color=plots.COLOURS["text"])
    ax.set(title=f"{name} loss", xlim=(-1.6, 3), ylim=(-1.6, 2.8))
plots.show(fig, "Global: all arrows end in the text; directional: parallel arrows")
for name, after in ways.items():
    print(f"{name}: still six different pictures:", bool(after.std(0).min() > 0.3))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Everything. The global loss has one best picture, and all pictures are pulled to it.
# The directional one has none: it asks for a *difference*, and what the pictures do not
# share stays theirs.
#
# </details>
#
# ## Is there such a direction?
#
# Emoji-4 can tell, for it has the same things in four styles. ΔT: from "a flat drawing
# of …" to "a 3D drawing of …", averaged over labels. ΔI: from Twemoji's drawing of a
# thing to Fluent's. Nobody needs such pairs to tune; they are here to look.


# %% tags=["brick", "blank"]
@torch.no_grad()
def text_direction(
    clip: CLIP, labels: Sequence[str], source: str, target: str
) -> Tensor:
    """From one way to draw to another, as the text tower has it: (d,), of length 1.

    source, target: templates such as "a flat drawing of {}". The mean, over labels, of
    the difference of their vectors, which have length 1. Gal et al. 2022, sec. 4.2.
    """
    ends = [class_vectors(clip, list(labels), [text]) for text in (source, target)]
    return F.normalize((ends[1] - ends[0]).mean(0), dim=0)


# %%
FLAT, SOLID = "a flat drawing of {}", "a 3D drawing of {}"


def shrink(pairs: data.Pairs) -> Tensor:
    """Pictures (N, 3, 32, 32) in [0, 1]."""
    return F.adaptive_avg_pool2d(pairs.pictures / 255, 32)


by_label = {
    style: dict(zip(pairs.table["label_en"], shrink(pairs), strict=True))
    for style in ("twemoji", "fluent")
    for pairs in [train.where(style=style)]
}
both = sorted(by_label["twemoji"].keys() & by_label["fluent"].keys())
some = both[::20][:60]
pair = [torch.stack([by_label[s][label] for label in some]) for s in by_label]
directions = {
    name: text_direction(clip, some, FLAT, SOLID)
    for name, clip in {"guide": guide, "judge": judge}.items()
}


def along(clip, one: Tensor, other: Tensor, direction: Tensor) -> Tensor:
    """cos(ΔI, ΔT) of pairs of pictures: (N,)."""
    away = image_vectors(clip, other) - image_vectors(clip, one)
    return F.cosine_similarity(away, direction, dim=-1).cpu()


kinds = {
    "flat → 3D, same thing": pair,
    "flat → 3D, other thing": [pair[0], pair[1].roll(1, 0)],
    "flat → flat, other thing": [pair[0], pair[0].roll(1, 0)],
    "3D → flat, same thing": pair[::-1],
}
found = {
    name: {k: along(clip, *p, directions[name]) for k, p in kinds.items()}
    for name, clip in {"guide": guide, "judge": judge}.items()
}
fig, axes = plots.figure(columns=2, width=10, height=2.4)
for ax, (name, values) in zip(axes, found.items(), strict=True):
    means = {k: v.mean().item() for k, v in values.items()}
    plots.bars(ax, means, "shared", f"The {name}", "cos(ΔI, ΔT)")
plots.show(fig, "The same thing from flat to 3D moves with the words, other things "
           "less, flat to flat not at all, backwards against them")  # fmt: skip
for name, values in found.items():
    same, other, none, back = (v.mean().item() for v in values.values())
    print(f"{name}: same thing above other things: {same > other + 0.03};",
          f"flat to flat about 0: {abs(none) < 0.05}; back: {back < -0.1}")  # fmt: skip

# %% [markdown]
# A difference of texts points where a difference of pictures points, for the same thing
# most. Lesson 03 found that pictures and texts lie in two clouds with a gap between
# them. Both ends of a *step* lie in one cloud, so the gap cancels, and a step between
# pictures may be compared with a step between texts.
#
# ## The loss
#
# **By hand.** ΔT points east. A picture that moves north-east has L = 1 − cos 45°.


# %% tags=["brick", "blank"]
def directional_loss(before: Tensor, after: Tensor, direction: Tensor) -> Tensor:
    """1 − cos(ΔI, ΔT): 0 for the very way of the texts, 2 for the opposite: → (B,).

    before, after: vectors of length 1 of the pictures, (B, d); direction: ΔT, (d,).
    Kim et al. 2022, eq. 8.
    """
    return 1 - F.cosine_similarity(after - before, direction, dim=-1)


# %% tags=["brick", "blank"]
def log_form(loss: Tensor) -> Tensor:
    """−log((2 − L)/2), as in DiffusionCLIP's released code: 0 at 0, endless at 2."""
    return -((2 - loss) / 2).log()


# %%
east = torch.tensor([1.0, 0.0])
before = torch.tensor([[0.6, 0.8]] * 4)
moves = {"east": [1, 0], "north-east": [1, 1], "north": [0, 1], "west": [-1, 0.1]}
after = before + 0.1 * torch.tensor([*moves.values()])
loss = directional_loss(before, after, east)
for way, value, pulled in zip(moves, loss, log_form(loss), strict=True):
    print(f"{way:10} L = {value:.2f}   −log((2 − L)/2) = {pulled + 0:.2f}")

# %% [markdown]
# How *far* a picture moves does not matter to L, only where. The −log form, which the
# paper does not mention, pulls ever harder at pictures that go the wrong way: its slope
# is 1/(2 − L).
#
# ## Half-noise
#
# Lesson 11 walked a picture to its noise and back. Here it goes only part of the way,
# to time t₀. There it has lost its texture and kept its shape, and on the way back the
# tuned network may draw the texture anew. **Predict first:** what changes if t₀ grows?


# %%
FIRST, INNER = 500, 5  # t₀, and the steps of the way back from there
some_flat = torch.stack([by_label["twemoji"][x] for x in both[5::90][:8]]).to(here)
rows, errors = {"pictures": some_flat.cpu()}, {}
for first in (200, 500, 800):
    x = sampling.invert(model, some_flat, 20, first=first)
    *_, (again, _) = walk(model, x, model.times(6, first), clamp=False)
    rows[f"x at {first}"] = (x.cpu() / 4 + 0.5).clamp(0, 1)
    rows[f"back in 6 steps from {first}"] = (again.cpu() / 2 + 0.5).clamp(0, 1)
    errors[first] = (again / 2 + 0.5 - some_flat).square().mean().sqrt().item()
alt = "At 200 a picture with grain, at 500 and 800 edges in noise; all come back"
plots.picture_rows(rows, alt=alt)
print("the farther, the less exact the way back:",
      errors[200] < errors[500] < errors[800])  # fmt: skip

# %% [markdown]
# ## A way back with a slope, in flat memory
#
# Tuning needs the gradient of the loss with respect to the weights, through *all* the
# steps of the way back. For that, autograd keeps every intermediate map of every step.
# **Checkpointing** keeps only the x between the steps; on the way back each step is
# computed once more, and its maps live only as long as that takes (Chen et al. 2016).


# %% tags=["brick"]
def decode(
    model: Diffusion, x: Tensor, times: Sequence[int], checkpointed: bool = True
) -> Tensor:
    """`walk` without dice, with a gradient to the weights: → pictures (B, 3, S, S).

    x: at times[0]; times: see `Diffusion.times`; checkpointed: keep only what lies
    between the steps. Values are about in [0, 1], not clamped: a clamp has no slope.
    """

    def step(x: Tensor, now: int, then: int) -> Tensor:
        levels = signal_at(model, now, len(x)), signal_at(model, then, len(x))
        return ddim_step(*look(model, x, now, clamp=False), *levels)

    for now, then in zip(times, times[1:], strict=False):
        if checkpointed:
            x = checkpoint(step, x, now, then, use_reentrant=False)
        else:
            x = step(x, now, then)
    return x / 2 + 0.5


# %%
def held_and_slope(checkpointed: bool, steps: int) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the way back, and the gradient of one weight."""
    held, unet = [0], model.unet.requires_grad_(True)

    def keep(x: Tensor) -> Tensor:
        held[0] += x.numel() * x.element_size()
        return x

    x = sampling.invert(model, some_flat[:2], 20, first=FIRST)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = decode(model, x, model.times(steps, FIRST), checkpointed)
    (slope,) = torch.autograd.grad(out.square().sum(), unet.enter.weight)
    unet.requires_grad_(False)
    return held[0], slope


KINDS, COUNTS = {"kept": False, "checkpointed": True}, (1, 2, 4, 6)
found = {k: [held_and_slope(v, n) for n in COUNTS] for k, v in KINDS.items()}
fig, ax = plots.figure(width=5.5, height=2.4)
for (name, pairs), colour in zip(found.items(), ("image", "text"), strict=True):
    sizes = [held / 2**20 for held, _ in pairs]
    ax.plot(COUNTS, sizes, "o-", color=plots.COLOURS[colour], label=name)
ax.set(title="What a gradient has to remember", xlabel="steps", ylabel="MB")
ax.legend()
plots.show(fig, "Kept, it grows with every step; checkpointed, hardly anything is kept")
slopes = {name: torch.stack([slope for _, slope in found[name]]) for name in KINDS}
apart = (slopes["kept"] - slopes["checkpointed"]).norm() / slopes["kept"].norm()
print("the same gradient:", bool(apart < 0.02))
(one, *_, six), (*_, small) = ([held for held, _ in found[name]] for name in KINDS)
print(f"6 steps hold {six / one:.0f} times as much as 1;",
      "checkpointed less than a hundredth:", small < six / 100)  # fmt: skip

# %% [markdown]
# ## Tuning
#
# Take a copy of the network, the half-noise of a few dozen flat drawings, and follow
#
# $$L = -\log\tfrac{2-L_{dir}}{2}\;+\;\lambda_1\,\lvert\text{after}-\text{before}\rvert
#   \;+\;\lambda_{id}\,L_{id}$$
#
# L1 holds the pixels, L_id the identity: DiffusionCLIP asks a network that recognises
# faces. Ours is lesson 07's perceptual distance.


# %% tags=["brick"]
def copy_of(model: Diffusion) -> Diffusion:
    """Another U-Net with the same weights; CLIP is shared."""
    return copy.deepcopy(model, {id(model.clip): model.clip})


def enlarged(pictures: Tensor, guide: CLIP) -> Tensor:
    """Pictures (B, 3, S, S) in the size that a guide reads."""
    return F.interpolate(pictures, (guide.image_size,) * 2, mode="bilinear")


# %% tags=["brick"]
@takes(pictures="pictures", first="from 1", inner="from 1", steps="from 1")
@takes(batch="from 1", lr="finite", keep="finite", identity="finite", seed="whole")
def fine_tune(
    model: Diffusion,
    guide: CLIP,
    pictures: Tensor,
    direction: Tensor,
    *,
    first: int = 500,
    inner: int = 5,
    steps: int = 20,
    batch: int = 6,
    lr: float = 4e-4,
    keep: float = 0.3,
    identity: float = 0.1,
    seed: int = 0,
    loss=None,
) -> Iterator[tuple[Diffusion, float]]:
    """A copy of the model that is tuned, and the loss, after each step.

    pictures: of the source, (N, 3, S, S) in [0, 1]; direction: see `text_direction`;
    first: t₀; inner: steps of the way back; keep, identity: weights of L1 and of the
    perceptual distance; loss: another one than the directional, (rows, vectors) → (B,).
    Raises ValueError in one sentence. Kim et al. 2022, alg. 1 and 2.
    """
    if not 1 <= first < model.steps:
        raise ValueError(f"first is {first}; choose a time from 1 to {model.steps - 1}")
    times, tuned = model.times(inner, first), copy_of(model)
    tuned.unet.requires_grad_(True)
    here, size = model.signal.device, min(batch, len(pictures))
    pictures = pictures.to(here)
    latents = invert(model, pictures, 20, first=first)
    before = image_vectors(guide, pictures)
    distance, draw = PerceptualDistance(guide), device.generator(seed)
    optimizer = torch.optim.Adam(tuned.unet.parameters(), lr)

    def directional(rows: Tensor, after: Tensor) -> Tensor:
        return log_form(directional_loss(before[rows], after, direction))

    for _ in range(steps):
        rows = torch.randperm(len(pictures), generator=draw)[:size].to(here)
        with torch.enable_grad():
            after = decode(tuned, latents[rows], times)
            large, old = enlarged(after, guide), enlarged(pictures[rows], guide)
            told = (loss or directional)(rows, guide.encode_image(large)).mean()
            whole = told + keep * (after - pictures[rows]).abs().mean()
            whole = whole + identity * distance(large, old).mean()
            weights = [*tuned.unet.parameters()]  # captions' own weights are not used
            grads = torch.autograd.grad(whole, weights, allow_unused=True)
        for parameter, grad in zip(weights, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        yield tuned, told.item()


# %% [markdown]
# **Predict first.** Twenty-four flat drawings, twenty steps. Then the same with the
# global loss: be near the text "a 3D drawing of …" of your own label.

# %%
order = torch.randperm(len(both), generator=device.generator(0)).tolist()
names = [both[i] for i in order]
fit, new = names[:24], names[24:74]  # 50 pictures that are not tuned on
start = {
    kind: torch.stack([by_label["twemoji"][x] for x in labels]).to(here)
    for kind, labels in {"fit": fit, "new": new}.items()
}
goals = class_vectors(guide, fit, [SOLID])


def near_its_text(rows: Tensor, after: Tensor) -> Tensor:
    return 1 - (after * goals[rows]).sum(1)


STEPS, HALF = 20, 10
tuned = {}
for name, loss in {"directional": None, "global": near_its_text}.items():
    how = {"steps": STEPS, "loss": loss}
    run = fine_tune(model, guide, start["fit"], directions["guide"], **how)
    turns = zip(widgets.progress(range(STEPS), name), run, strict=True)
    for step, (_, (network, _)) in enumerate(turns):
        tuned[name] = network
        if step + 1 == HALF:
            tuned[f"{name}, half"] = copy_of(network)  # for the end of the lesson

# %%
latents = sampling.invert(model, start["new"], 20, first=FIRST)
back = model.times(INNER, FIRST)
with torch.no_grad():
    edits = {"walked back, not tuned": decode(model, latents, back)}
    for name in ("directional", "global"):
        edits[name] = decode(tuned[name], latents, back)
edits = {name: x.clamp(0, 1).cpu() for name, x in edits.items()}
goal = torch.stack([by_label["fluent"][x] for x in new])
rows = {"flat": start["new"].cpu()} | edits | {"3D, as drawn by people": goal}
alt = "Flat drawings; as they were; light and shade; hardly changed; 3D"
plots.picture_rows({name: x[:10] for name, x in rows.items()}, alt=alt)

# %% [markdown]
# ## Measured
#
# On the fifty pictures that nobody tuned on, by the judge. Is the **style** the target?
# A linear probe on the judge's features, fitted to real drawings of the four styles. Is
# the **thing** still right? Found among a hundred labels. And the **direction**, in the
# judge's space. Compared with what? With the picture as it was, with the walk back of
# the network that was not tuned, with lesson 11's captions, and with Fluent's drawing.

# %%
from utils.bricks.dalle import found_among
from utils.bricks.zero_shot import linear_probe, probe_scores

features, styles = [], []
for number, style in enumerate(data.STYLES):
    drawn = shrink(train.where(style=style))[::10]
    features.append(image_vectors(judge, drawn))
    styles += [number] * len(drawn)
probe = linear_probe(torch.cat(features), torch.tensor(styles).to(here), 4)
with_words = model.encode_text([SOLID.format(x) for x in new])
captioned = sampling.last(
    walk(model, latents, back, with_words, guidance=2.0)
).cpu()  # no tuning, but each picture needs its caption
rows = {"flat": rows["flat"], "not tuned": edits["walked back, not tuned"],
        "captions": captioned, "global": edits["global"],
        "directional": edits["directional"], "3D": goal}  # fmt: skip
pool = sorted({*both[::10], *new})
table = {}
for name, x in rows.items():
    vectors = image_vectors(judge, x)
    seen = probe_scores(vectors, probe).argmax(1).cpu()
    table[name] = {
        "style": (seen == data.STYLES.index("fluent")).float().mean().item(),
        "thing": found_among(judge, x, new, pool).float().mean().item(),
        "direction": along(judge, rows["flat"], x, directions["judge"]).mean().item(),
    }
fig, axes = plots.figure(columns=3, width=12, height=2.6)
titles = {"style": "looks 3D", "thing": "is the thing", "direction": "cos(ΔI, ΔT)"}
for ax, (key, title) in zip(axes, titles.items(), strict=True):
    form = "{:.2f}" if key == "direction" else "{:.0%}"
    values = {name: found[key] for name, found in table.items()}
    plots.bars(ax, values, "shared", title, numbers=form)
plots.show(fig, "Style: directional far above not tuned; thing: nearly as before")
direct, none, whole = (table[k] for k in ("directional", "not tuned", "global"))
print("tuned, far more look 3D:", direct["style"] > none["style"] + 0.2)
print("and more than by the global loss:", direct["style"] > whole["style"] + 0.2)
print("and are what they were:", direct["thing"] > 0.7)
print("the judge sees the direction, too:",
      direct["direction"] > none["direction"] + 0.1)  # fmt: skip

# %% [markdown]
# To the probe about as many edits look 3D as drawings made so by people, and most are
# still found. **Look for yourself, too:** edges are shaded, colours deeper, the ghost
# is round. But there is a faint grid over all, and nobody would take it for Fluent's
# hand. The judge is another tower than the guide, trained on the same pictures: what
# fools the one may well fool the other a little.
#
# ### What the global loss does
#
# Its pictures shall be near *texts*, and lesson 09 showed what a gradient finds then:
# whatever pleases the guide. How alike are the edits among each other?


# %%
def alike(pictures: Tensor) -> float:
    """The mean cosine between the pictures' steps away from their starts."""
    away = image_vectors(judge, pictures) - image_vectors(judge, rows["flat"])
    away = F.normalize(away, dim=1)
    return (away @ away.T)[~torch.eye(len(away), dtype=torch.bool)].mean().item()


print("directional edits go the same way, global ones less:",
      alike(rows["directional"]) > alike(rows["global"]) + 0.05)  # fmt: skip

# %% [markdown]
# ## Play
#
# Weights can be mixed: s of the tuned network and 1 − s of the old one. **Predict
# first.** What comes at s = 0.5, and what at 1.5?


# %% tags=["brick"]
@torch.no_grad()
def mixed(model: Diffusion, tuned: Diffusion, strength: float) -> Diffusion:
    """A copy with the weights (1 − s)·old + s·tuned: 0 gives the old, 1 the tuned."""
    found = copy_of(model)
    ends = model.unet.parameters(), tuned.unet.parameters()
    for weight, old, new in zip(found.unet.parameters(), *ends, strict=True):
        weight.copy_(old + strength * (new - old))
    return found


# %%
cards = {label: row for row, label in enumerate(new[:12])}


def at_strength(label: str, strength: float) -> str:
    row = slice(cards[label], cards[label] + 1)
    network = mixed(model, tuned["directional"], strength)
    with torch.no_grad():
        after = decode(network, latents[row], back).clamp(0, 1)
    shown = torch.cat([start["new"][row], after]).cpu()
    return widgets.captioned(shown, ["before", f"strength {strength:.1f}"], size=128)


widgets.live(
    [
        widgets.choice("Picture", list(cards)),
        widgets.slider("Strength", 1.0, -1.0, 2.0),
    ],
    at_strength,
    "A drawing that nobody tuned on, before and after, and how far to go.",
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At 0.5 part of it: between the old weights and the tuned ones lies a straight road of
# networks that draw. Further on, and the other way, see below.
#
# </details>

# %%
with torch.no_grad():
    walked = {
        s: decode(mixed(model, tuned["directional"], s), latents[:12], back)
        for s in (-1.0, 0.0, 0.5, 1.0, 2.0)
    }
alt = "Strengths from less than none to double: the change grows from row to row"
plots.picture_rows({f"strength {s:g}": x[:10].clamp(0, 1).cpu()
                    for s, x in walked.items()}, alt=alt)  # fmt: skip
paces = {s: along(judge, start["new"][:12], x.clamp(0, 1), directions["judge"]).mean()
         for s, x in walked.items()}  # fmt: skip
lengths = {s: (x - walked[0.0]).square().mean().item() for s, x in walked.items()}
print("at 0 it is the old network:", lengths[0.0] == 0)
print("the farther, the more changes:", 0 < lengths[0.5] < lengths[1.0] < lengths[2.0])
print("in the direction of the words:", bool(paces[0.0] < paces[1.0]))

# %% [markdown]
# ## In one call
#
# Tuned once for a style and kept: from then on any drawing can be edited, and nobody
# asks CLIP again. Only two words have changed here: from *flat* to *outlined*.


# %% tags=["brick"]
@functools.cache
def tuned_to(style: str) -> Diffusion:
    """The model `diffusion`, tuned to draw in one of the data's styles; once for each.

    On 24 flat drawings of `train`, or, for the flat style, on as many in 3D.
    """
    if style not in data.STYLES:
        known = ", ".join(data.STYLES)
        raise ValueError(f"there is no style {style!r:.60}; choose one of {known}")
    model, clip = checkpoints.load("diffusion"), checkpoints.load("clip_resnet")
    source = "fluent" if style == "twemoji" else "twemoji"
    pairs = data.load_emoji("train").where(skin_tone="none", style=source)
    rows = torch.randperm(len(pairs.pictures), generator=device.generator(0))[:24]
    drawn = F.adaptive_avg_pool2d(pairs.pictures[rows] / 255, model.side)
    words = [data.STYLE_WORDS[name]["en"][0] for name in (source, style)]
    templates = [f"a {word} drawing of {{}}" for word in words]
    labels = [pairs.table["label_en"][row] for row in rows.tolist()]
    direction = text_direction(clip, labels, *templates)
    *_, (tuned, _) = fine_tune(model, clip, drawn, direction)
    return tuned


@takes(pictures="pictures", strength="finite")
def edit(
    pictures: Tensor,
    style: str,
    *,
    strength: float = 1.0,
    model: Diffusion | None = None,
    tuned: Diffusion | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1], drawn anew in one of the data's styles.

    strength: 0 for the way there and back alone, 1 for the tuned network; model, tuned:
    `diffusion` and what `tuned_to` makes of it by default. Raises ValueError in one
    sentence. Kim et al. 2022, sec. 3.2.
    """
    tuned = tuned or tuned_to(style)
    model = model or checkpoints.load("diffusion")
    first = model.steps // 2
    x = invert(model, pictures.to(model.signal.device), 20, first=first)
    with torch.no_grad():
        drawn = decode(mixed(model, tuned, strength), x, model.times(5, first))
    return drawn.clamp(0, 1)


# %%
drawings = start["new"].cpu()
told = {"outlined": edit(drawings, "openmoji").cpu(), "3D": edits["directional"]}
alt = "The same things: with darker edges and paler inside; with light and shade"
plots.picture_rows({name: x[:10] for name, x in told.items()}, alt=alt)
outline = text_direction(judge, some, FLAT, "an outlined drawing of {}")
ways = {"outlined": outline, "3D": directions["judge"]}
went = {
    f"told {name}, goes {way}": along(judge, drawings, x, ways[way]).mean().item()
    for name, x in told.items() for way in ways
}  # fmt: skip
fig, ax = plots.figure(width=6, height=2)
plots.bars(ax, went, "shared", "Each goes its own way most, in the judge's eyes",
           "cos(ΔI, ΔT)", numbers="{:.2f}")  # fmt: skip
plots.show(fig, "Told 3D, far more 3D than outlined; told outlined, the other way")
own, other, outer, solid = went.values()
print("each goes its own way most:", own > other, solid > outer)

# %% [markdown]
# It is not as clear-cut as from flat to 3D: by the third bar a network that was told
# "3D" goes about as far towards *outlined* as one that was told so. A word is a
# direction, and directions of words are not at right angles.
#
# ## Break it
#
# Each a tuning of its own, as short, or a walk, with one part replaced:
#
# 1. **ΔT turned round**, from 3D to flat, on flat drawings;
# 2. **nothing holds**: no L1, no identity;
# 3. **from nearly all noise**: the tuned network, t₀ = 950.
#
# **Predict first.** Which one still shows what was drawn?

# %%
given, way = (model, guide, start["fit"]), directions["guide"]
runs = {
    "ΔT turned": fine_tune(*given, -way, steps=HALF),
    "nothing holds": fine_tune(*given, way, steps=HALF, keep=0.0, identity=0.0),
}
networks = {"as long, whole": tuned["directional, half"]}
for name, run in runs.items():
    turns = zip(widgets.progress(range(HALF), name), run, strict=True)
    *_, (_, (networks[name], _)) = turns
far = sampling.invert(model, start["new"], 20, first=950)
with torch.no_grad():
    broken = {name: decode(net, latents, back) for name, net in networks.items()}
    broken["from 950"] = decode(tuned["directional"], far, model.times(INNER, 950))
broken = {name: x.clamp(0, 1).cpu() for name, x in broken.items()}

# %%
alt = "Light and shade; paler and flatter; a pink tint; blurred, half lost"
plots.picture_rows({name: x[:10] for name, x in broken.items()}, alt=alt)
before = start["new"].cpu()
score = {
    name: {
        "direction": along(judge, before, x, directions["judge"]).mean().item(),
        "thing": found_among(judge, x, new, pool).float().mean().item(),
        "moved": (x - before).abs().mean().item(),
    }
    for name, x in broken.items()
}
whole = score["as long, whole"]
print("turned, it goes the other way:",
      score["ΔT turned"]["direction"] < whole["direction"])  # fmt: skip
print("unheld, pixels move farther:", score["nothing holds"]["moved"] > whole["moved"])
print("from nearly all noise, things are lost:",
      score["from 950"]["thing"] < whole["thing"] - 0.1)  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# The first two: the walk back keeps the shapes, whatever the texture. Turned round,
# what little light there was goes, too. Where nothing holds, the cheapest way to please
# the guide is a tint over everything. From 950 in five steps most is lost, and not more
# only because the noise of an inverted picture still holds its edges (lesson 11). t₀
# decides what *can* change, the loss what *does*.
#
# </details>
#
# ## Exercises
#
# > **Exercise 1 · Two wishes in one direction** — difficulty 1 of 3, about 6 minutes.
# > Why it matters: one tuning may be told several things at once ("3D, and in gold"),
# > each as strongly as you like. Write `combined(directions, weights)`: the weighted
# > sum of directions (d,), each of them made of length 1 first, and the sum, too.


# %% tags=["exercise"]
def combined(directions: list[Tensor], weights: list[float]) -> Tensor:
    """Directions (d,) of any length, a weight for each → (d,), of length 1."""
    ...


# %%
from utils.exercises import diffusion_clip as exercises

exercises.check_combined(combined)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `F.normalize(direction, dim=0)` twice: for each one, and for the sum.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def combined(directions, weights):
#     units = [F.normalize(d, dim=0) for d in directions]
#     return F.normalize(sum(w * u for u, w in zip(units, weights)), dim=0)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · How hard the −log pulls** — difficulty 2 of 3, about 8 minutes. Why
# > it matters: the paper has 1 − cos, the code −log((1 + cos)/2), and only slopes
# > tune a network. Write `pulls(cosine)`: the size of both slopes with respect to the
# > cosine, of the paper's form and of the code's, worked out by hand.


# %% tags=["exercise"]
def pulls(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """cos(ΔI, ΔT), (B,), above −1 → |slope| of 1 − cos and of −log((1 + cos)/2)."""
    ...


# %%
exercises.check_pulls(pulls)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The slope of log u is 1/u times that of u. The halves cancel.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def pulls(cosine):
#     return torch.ones_like(cosine), 1 / (1 + cosine)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · Checkpointing by hand** — difficulty 3 of 3, about 15 minutes. Why it
# > matters: a hundred steps in the memory of one is the whole trick behind tuning a
# > sampler. `steps` are functions from x to x, one after the other; `loss` makes a
# > number of the last x. Write `slope_by_parts(steps, x, loss)`: the gradient of the
# > loss with respect to the first x, without ever holding the graph of two steps:
# > first go through without gradients and keep each x, then come back step by step.


# %% tags=["exercise"]
def slope_by_parts(steps: list, x: Tensor, loss) -> Tensor:
    """steps: functions (B, …) → (B, …); loss: (B, …) → a scalar. Returns as x."""
    ...


# %%
exercises.check_slope_by_parts(slope_by_parts)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.autograd.grad(after, before, slope)` turns the slope by what comes out of one
# step into that by what went in. For that, run the step again, on
# `kept.detach().requires_grad_()`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def slope_by_parts(steps, x, loss):
#     kept = [x.detach()]
#     with torch.no_grad():
#         for step in steps:
#             kept.append(step(kept[-1]))
#     last = kept.pop().requires_grad_()
#     (slope,) = torch.autograd.grad(loss(last), last)
#     for step in reversed(steps):
#         before = kept.pop().requires_grad_()
#         (slope,) = torch.autograd.grad(step(before), before, slope)
#     return slope
# ```
#
# </details>

# %% [markdown]
# ## Myth check
#
# **"DiffusionCLIP minimises the distance of a picture to a text."** That is the global
# loss, which it argues against. It tunes a *network* with the directional one, once
# for each wish; afterwards no picture needs CLIP.
#
# **"It needs pairs of before and after."** It needs pictures of the one kind, here 24,
# and two templates. Fluent's drawings were only looked at, to measure.
#
# **"The loss asks for a picture that looks 3D."** It asks for a *move* that is
# parallel to one between texts, and says nothing about how far. How far it goes is a
# matter of steps, rate and what holds it:

# %%
unit = F.normalize(directions["guide"], dim=0)
origin = F.normalize(torch.ones_like(unit), dim=0)
for length in (0.01, 1.0):
    loss = directional_loss(origin[None], (origin + length * unit)[None], unit)
    print(f"a move of {length:g} along ΔT costs", abs(round(loss.item(), 3)))

# %% [markdown]
# ## Differs from the paper
#
# | | DiffusionCLIP | here | why |
# |---|---|---|---|
# | model | one kind of picture, 256 px, ε | emoji, 32 px, v | our own |
# | t₀ | 300 to 600 of 1,000, 40 steps there | 500, 20 steps | small pictures |
# | way back while tuning | 6 steps | 5 | time |
# | pictures, rate | 50, Adam at 2e-6 to 8e-6 | 24, Adam at 4e-4 | minutes |
# | loss | paper: 1 − cos; code: 3 times −log | −log | its slope grows |
# | identity | ArcFace, for faces | perceptual distance, lesson 07 | no faces here |
# | guide | CLIP ViT-B/32 | our ResNet; our ViT judges | judge apart from guide |
#
# ## Where this goes next
#
# Everything so far was drawn in pixels, and 32 × 32 of them. **Lesson 14** walks in the
# latents of an autoencoder, asks a text's every word by cross-attention, and comes to
# 64 × 64: Stable Diffusion, built small.
#
# ## Read more
#
# - Kim, Kwon & Ye 2022, *DiffusionCLIP: Text-Guided Diffusion Models for Robust Image
#   Manipulation*.
# - Gal et al. 2022, *StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators*.
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*.
#
# **Glossary** · 方向损失 directional loss · 微调 fine-tuning · 反演 inversion ·
# 身份保持 identity preservation · 线性探针 linear probe · 梯度检查点 gradient
# checkpointing · 权重插值 weight interpolation
