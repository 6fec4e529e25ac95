"""The U-Net of latent diffusion against diffusers' of its size; latents against pixels."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.measure import Row, race
from utils import device as devices
from utils.bricks.diffusion import Diffusion
from utils.bricks.latent_diffusion import KLAutoencoder, LatentDiffusion, latent_loss
from utils.bricks.sampling import walk
from utils.data import Pairs, load_emoji
from utils.recipes import RECIPES, engine, latent
from utils.recipes import diffusion as pixels

TITLE = "Latent diffusion"
LIBRARIES = ("diffusers",)
METHOD = """\
- The U-Net has the shape of the recipe `latent_diffusion` in `utils/recipes/latent.py`, with random
  weights. Theirs is `UNet2DConditionModel` with as many levels and blocks, attention to the same
  token states at both levels, and widths at which it has as many parameters, within 5 %. The two
  are networks of one kind, not the same one: equal are the shapes of all that goes in and out.
- A training step is the noising, forward, loss, backward and a step of the same fused AdamW, in
  float32. A sample is 25 steps of DDIM with guidance, both captions in one batch; theirs by
  `DDIMScheduler`.
- Latents against pixels: one step on pictures of one size, in latents with this U-Net, in pixels
  (which stand under "theirs") with the one of the recipe `diffusion`. It has half as many weights.
"""
BATCH, DRAWN = 32, 8
SIDES = (32, 64, 128)
WIDTHS = (96, 152)  # of theirs
PROMPT = "a 3D drawing of red apple"


def build(
    recipe: latent.Recipe, clip: engine.Recipe, autoencoder: latent.Autoencoder, pairs: Pairs
) -> LatentDiffusion:
    """A model of the recipe on a CLIP and an autoencoder that have learnt nothing."""
    devices.seed(recipe.seed)
    parts = autoencoder.factor, autoencoder.width, autoencoder.latent
    others = {"clip": clip.build(pairs, {}), "autoencoder": KLAutoencoder(*parts)}
    for other in others.values():
        other.eval().requires_grad_(False)
    return recipe.build(pairs, others)


def theirs_of(model: LatentDiffusion, widths: tuple[int, ...], groups: int) -> nn.Module:
    """Theirs, of as many parameters. Raises ValueError if they are not."""
    channels, side, _ = model.shape
    levels = len(widths)
    other = UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=model.config["depth"],
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=model.clip.text_tower.width,
        attention_head_dim=2,  # which is how many heads there are
        norm_num_groups=groups,
    )
    ours, theirs = (sum(p.numel() for p in x.parameters()) for x in (model.unet, other))
    if not 0.95 < theirs / ours < 1.05:
        raise ValueError(f"ours has {ours:,} parameters, theirs {theirs:,}; choose other widths")
    return other


def training_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def against_theirs(
    model: LatentDiffusion, other: nn.Module, batch: int, drawn: int, device, seconds: float
) -> Iterator[Row]:
    scheduler = DDIMScheduler(
        model.steps, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
        clip_sample=False, timestep_spacing="linspace",
    )  # fmt: skip
    text = tuple(part.to(device) for part in model.encode_text([PROMPT] * batch))
    x0 = torch.randn(batch, *model.shape, generator=devices.generator(0)).to(device)

    def ours_loss() -> Tensor:
        return latent_loss(model, x0, text)

    def theirs_loss() -> Tensor:
        t, noise = torch.randint(model.steps, (batch,)).to(device), torch.randn_like(x0)
        said = other(scheduler.add_noise(x0, noise, t), t, text[1]).sample
        return F.mse_loss(said, scheduler.get_velocity(x0, noise, t))

    what = f"training step of the U-Net, {batch} latents, float32"
    steps = training_step(model.unet, ours_loss), training_step(other, theirs_loss)
    yield race(what, *steps, device, seconds)

    few = model.encode_text([PROMPT] * drawn)
    both, begun = model.beside(few), x0[:drawn]

    def ours_drawn() -> Tensor:
        *_, (x, _) = walk(model, begun, model.times(25), both, guidance=3.0, clamp=False)
        return x

    @torch.no_grad()
    def theirs_drawn() -> Tensor:
        scheduler.set_timesteps(25)
        x = begun
        for t in scheduler.timesteps.to(device):
            asked, free = other(torch.cat([x, x]), t, both[1]).sample.chunk(2)
            x = scheduler.step(free + 3 * (asked - free), t, x).prev_sample
        return x

    what = f"{drawn} latents drawn in 25 steps with guidance"
    yield race(what, ours_drawn, theirs_drawn, device, seconds)


@torch.no_grad()
def against_pixels(
    model: LatentDiffusion, pixel: Diffusion, sides, drawn: int, device, seconds: float
) -> Iterator[Row]:
    channels, _, _ = model.shape
    text, t = model.encode_text([PROMPT] * drawn), torch.full((drawn,), 500, device=device)
    for side in sides:
        small = side // model.autoencoder.factor
        z = torch.randn(drawn, channels, small, small, generator=devices.generator(side))
        x = torch.randn(drawn, 3, side, side, generator=devices.generator(side))
        z, x = z.to(device), x.to(device)
        what = f"a step on {drawn} pictures of {side} px, in latents against in pixels"

        def in_latents(z=z):
            return model(z, t, text)

        def in_pixels(x=x):
            return pixel(x, t, text[0])

        yield race(what, in_latents, in_pixels, device, seconds)


def rows(
    device: torch.device,
    seconds: float,
    recipe: latent.Recipe = RECIPES["latent_diffusion"],
    pixel: pixels.Recipe = RECIPES["diffusion"],
    clip: engine.Recipe = RECIPES["clip_resnet"],
    autoencoder: latent.Autoencoder = RECIPES["kl"],
    pairs: Pairs | None = None,
    widths: tuple[int, ...] = WIDTHS,
    groups: int = 8,
    sizes: tuple[int, int] = (BATCH, DRAWN),
    sides: tuple[int, ...] = SIDES,
) -> Iterator[Row]:
    """A training step, a sample, and a step as pictures grow."""
    pairs = pairs or load_emoji("train")
    model = build(recipe, clip, autoencoder, pairs).to(device)
    other = theirs_of(model, widths, groups).to(device)
    yield from against_theirs(model, other, *sizes, device, seconds)
    in_pixels = pixel.build(pairs, {"clip": model.clip}).to(device)
    yield from against_pixels(model, in_pixels, sides, sizes[1], device, seconds)
