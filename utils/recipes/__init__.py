"""How each shipped model is trained and measured: one engine, one module a model family."""

from utils.recipes import autoencoders, clip, dalle, diffusion, dvae, latent, unclip, vqgan

RECIPES = {
    **clip.RECIPES,
    **autoencoders.RECIPES,
    **dvae.RECIPES,
    **vqgan.RECIPES,
    **dalle.RECIPES,
    **diffusion.RECIPES,
    **latent.RECIPES,
    **unclip.RECIPES,
}
