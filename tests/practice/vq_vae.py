"""Lesson 05: answers that must be refused, and others that are right."""

LESSON = "05"
GIVEN = {}

DISTANCES = "return torch.cdist(z, codebook).argmin(-1)"
SQUARES = """
distances = (z.unsqueeze(-2) - codebook).square().sum(-1)
return distances.argmin(-1)
"""

WRONG = [
    ("psnr", "-10 *", "10 *", "sign is turned"),
    ("psnr", "-10 *", "-20 *", "squared already"),
    ("psnr", "log10", "log", "natural one"),
    ("psnr", ".square()", ".abs()", "absolute one"),
    ("psnr", ".flatten(1).mean(1)", ".mean()", "whole batch"),
    ("psnr", ".mean(1)", ".sum(1)", "take their mean"),
    ("nearest_code", ".argmax(-1)", ".argmin(-1)", "farthest code"),
    ("nearest_code", " - codebook.square().sum(-1) / 2", "", "‖e‖² is missing"),
    ("nearest_code", ".sum(-1) / 2", ".sum(-1)", "halve it"),
    ("nearest_code", "- codebook.square()", "+ codebook.square()", "take it away"),
    ("Codebook.forward", "z + (chosen - z).detach()", "z", "must get the codes"),
    ("Codebook.forward", "z + (chosen - z).detach()", "chosen", "gradient of `z`"),
    ("Codebook.forward", "if self.training:", "if False:", "does not move"),
    ("Codebook.forward", "F.mse_loss(z, chosen)", "F.mse_loss(z, chosen, reduction='sum')",
     "take the mean"),
    ("Codebook.forward", "F.mse_loss(z, chosen)", "F.mse_loss(z.detach(), chosen)", "gradient"),
    ("Codebook.update", "1 - self.decay)", "self.decay)", "the other way round"),
    ("Codebook.update", "self.sums / share / sizes", "self.sums / share", "divide them"),
    ("Codebook.update", "index_add_(0, indices, z)",
     "index_add_(0, indices, z / torch.bincount(indices)[indices].unsqueeze(1))", "holds means"),
    ("Codebook.update", "self.updates += 1\n", "self.updates += 2\n", "updates"),
]  # fmt: skip
RIGHT = [
    ("nearest_code", DISTANCES),
    ("nearest_code", SQUARES),
    ("psnr", "error = (pictures - reconstructions) ** 2\n"
     "return 10 * torch.log10(1 / error.mean((1, 2, 3)))"),
]  # fmt: skip
