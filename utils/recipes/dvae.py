"""The discrete variational autoencoder, `dvae`: as many codes and bits as `vq_vae`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from utils import training
from utils.bricks.dvae import DVAE, annealed, gumbel_softmax, negative_elb, roles
from utils.data import Pairs
from utils.recipes import autoencoders, engine


@dataclass(frozen=True, kw_only=True)
class Recipe(autoencoders.Coded):
    """Measured as `vq_vae` is; after `continuous` steps the codes start from latents."""

    beta: float = 0.5  # of the KL, in the end; 1 is the bound
    grow: float = 0.5  # the share of the run in which it gets there, from 0
    tau: float = 1 / 16  # the temperature in the end
    cool: float = 0.5  # the share of the run in which it gets there, from 1

    def build(self, train: Pairs, others: dict[str, nn.Module]) -> DVAE:
        return DVAE(self.factor, self.codes, self.width, self.latent)

    def optimizers(self, learner: nn.Module) -> list[training.MuonAdamW]:
        return [self.muon(learner, roles(learner))]

    def losses(
        self, model: nn.Module, train: Pairs, others: dict[str, nn.Module]
    ) -> list[Callable[[int], Tensor]]:
        device = autoencoders.device_of(model)

        def loss(step: int) -> Tensor:
            pictures = autoencoders.batch(train, self.batch, self.seed, step, device)
            if step == self.continuous:
                model.start_from(pictures)
            pictures = pictures[engine.share(self.batch)]
            z = model.latents(pictures)
            logits = model.closeness(z)
            drawn, beta = z, 0.0
            if step >= self.continuous:
                tau = annealed(step, 1.0, self.tau, self.cool * self.steps)
                beta = annealed(step, 0.0, self.beta, self.grow * self.steps)
                drawn = gumbel_softmax(logits, tau) @ model.codebook()
            return negative_elb(pictures, *model.draw(drawn), logits, beta)

        return [loss]


RECIPES = {"dvae": Recipe(factor=4, codes=1024, steps=4000)}
