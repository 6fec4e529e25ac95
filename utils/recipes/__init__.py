"""How each shipped model is trained and measured: one engine, one module a model family."""

from utils.recipes import clip

RECIPES = {**clip.RECIPES}
