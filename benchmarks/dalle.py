"""Drawing with a cache against without one; sparse attention against all pairs with a mask."""

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, agree, race
from utils import device as devices
from utils.bricks.attention import attend
from utils.bricks.dalle import DALLE, convolution_mask, places_of, row_mask, sparse_attend
from utils.data import Pairs, load_emoji
from utils.recipes import RECIPES, engine
from utils.recipes import dalle as recipes

TITLE = "DALL·E"
LIBRARIES = ("torch",)
METHOD = """\
- DALL·E has the shape of the recipe `dalle` in `utils/recipes/dalle.py`, on the quantiser of
  `vqgan`, with random weights: speed does not depend on them. A picture is drawn with guidance,
  which guesses twice for each code, and decoded.
- Theirs is the same model: without a cache, where each code goes through the whole stream again;
  and for candidates with the cache, but one picture after the other.
- Equal means the same codes: every one of them.
- Attention is that of all heads of a layer over the codes alone, forward. Theirs computes all
  pairs with `F.scaled_dot_product_attention` and adds the mask; ours fetches those that the mask
  allows. Equal means within 0.0001. Below 1 the mask is not yet sparse enough to pay.
"""
PROMPT = "a 3D drawing of red apple"
FEW = 1, 4  # pictures drawn together
CANDIDATES = recipes.CANDIDATES
SIDES = (16, 32, 64)
MASKS = {"row": row_mask, "convolution": convolution_mask}


def moved(recipe: recipes.Recipe, autoencoder: engine.Recipe, pairs: Pairs) -> DALLE:
    """A model of the recipe; its weights are moved, or its blocks would change nothing."""
    devices.seed(recipe.seed)
    quantiser = autoencoder.build(pairs, {}).requires_grad_(False)
    model = recipe.build(pairs, {"quantiser": quantiser}).requires_grad_(False)
    for parameter in model.blocks.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


def drawing(model: DALLE, candidates: int, device: torch.device, seconds: float) -> Iterator[Row]:
    def pictures(count: int, cached: bool):
        return lambda: model.generate([PROMPT] * count, seed=range(count), cached=cached)

    def one_by_one():
        return torch.cat([model.generate([PROMPT], seed=seed) for seed in range(candidates)])

    for count in FEW:
        how = {"seed": range(count), "guidance": 2.0}
        codes = [model.codes([PROMPT] * count, cached=c, **how) for c in (True, False)]
        agree("codes with and without a cache", *codes, 0)
        what = f"{count} picture{'s' * (count > 1)} of DALL·E, against no cache"
        yield race(what, pictures(count, True), pictures(count, False), device, seconds)
    several = model.codes([PROMPT] * candidates, seed=range(candidates), guidance=2.0)
    alone = [model.codes([PROMPT], seed=seed, guidance=2.0) for seed in range(candidates)]
    agree("codes of candidates", several, torch.cat(alone), 0)
    what = f"{candidates} candidates of DALL·E, against one by one"
    yield race(what, pictures(candidates, True), one_by_one, device, seconds)


def attention(
    width: int, heads: int, sides: tuple[int, ...], device: torch.device, seconds: float
) -> Iterator[Row]:
    for kind, make in MASKS.items():
        for side in sides:
            mask, draw = make(side), devices.generator(0, side)
            shape = 1, heads, side * side, width // heads
            q, k, v = (torch.randn(shape, generator=draw).to(device) for _ in range(3))
            places = places_of(mask).to(device)
            added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).to(device)

            def fetch(q=q, k=k, v=v, places=places):
                return sparse_attend(q, k, v, places)

            def all_pairs(q=q, k=k, v=v, added=added):
                return attend(q, k, v, added)

            what = f"attention of {side} × {side} codes, {kind} mask"
            agree(what, fetch(), all_pairs())
            yield race(what, fetch, all_pairs, device, seconds)


def rows(
    device: torch.device,
    seconds: float,
    recipe: recipes.Recipe = RECIPES["dalle"],
    autoencoder: engine.Recipe = RECIPES["vqgan_l2"],  # the network of vqgan, without its critic
    pairs: Pairs | None = None,
    candidates: int = CANDIDATES,
    sides: tuple[int, ...] = SIDES,
) -> Iterator[Row]:
    """A picture, candidates, and attention as the grid grows."""
    model = moved(recipe, autoencoder, pairs or load_emoji("train")).to(device)
    yield from drawing(model, candidates, device, seconds)
    with torch.no_grad():
        yield from attention(recipe.width, recipe.heads, sides, device, seconds)
