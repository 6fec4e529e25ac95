"""Lesson 14: answers that must be refused, and others that are right."""

LESSON = "14"
GIVEN = {}

CROSS = """
parts = self.q(x), self.k(states), self.v(states)
q, k, v = (split_heads(part, self.heads) for part in parts)
return self.out(join_heads(attend(q, k, v, mask[:, None, None])))
"""

WRONG = [
    ("kl_to_normal", " / 2", "", "the half is missing"),
    ("kl_to_normal", ".sum(1)", ".mean(1)", "do not take their mean"),
    ("kl_to_normal", ".sum(1)", ".sum()", "for each picture"),
    ("kl_to_normal", " - 1", "", "the −1 is missing"),
    ("kl_to_normal", "- log_variance", "+ log_variance", "the sign of log σ²"),
    ("kl_to_normal", "mean.square()", "mean.abs()", "μ counts squared"),
    ("kl_to_normal", "log_variance.exp()", "(2 * log_variance).exp()", "no square is needed"),
    ("CrossAttention.forward", CROSS.replace("mask[:, None, None]", "None"), "is left out"),
    ("CrossAttention.forward", CROSS.replace("self.heads", "1"), "split into heads"),
    ("CrossAttention.forward", CROSS.replace("self.v(", "self.k("), "values come from"),
    ("CrossAttention.forward", CROSS.replace("self.out(", "(x + self.out("
     ).replace("None])))", "None]))))"), "added later"),
    ("CrossAttention.forward", CROSS.replace("self.out(", "("), "`self.out`, is missing"),
    ("latent_loss", "target(model.predicts,", "target(\"eps\",", "with the noise"),
    ("latent_loss", "target(model.predicts,", "target(\"x0\",", "with the latents"),
    ("latent_loss", "noise, signal), t,", "noise, signal), 0 * t,", "told the time"),
    ("latent_loss", "add_noise(x0, noise, signal)", "add_noise(x0, noise, signal.sqrt())",
     "takes its roots"),
    ("word_maps", "part[:rows]", "part[rows:]", "without the caption"),
    ("word_maps", ".mean(0)", ".sum(0)", "not their sum"),
    ("word_maps", "torch.stack(scaled).mean(0)", "scaled[-1]", "the last call alone"),
    ("word_maps", "mode=\"bilinear\"", "mode=\"nearest\"", "bilinearly"),
]  # fmt: skip

RIGHT = [
    ("kl_to_normal", """
normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
return torch.distributions.kl_divergence(normal, standard).flatten(1).sum(1)
"""),
    ("CrossAttention.forward", """
q, k, v = (split_heads(part, self.heads) for part in (self.q(x), self.k(states), self.v(states)))
scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + mask[:, None, None]
return self.out(join_heads(scores.softmax(-1) @ v))
"""),
    ("word_maps", """
total = 0
for part in maps:
    b, n, m = part[:rows].shape
    grid = part[:rows].reshape(b, int(n**0.5), -1, m).permute(0, 3, 1, 2)
    total = total + F.interpolate(grid, size=side, mode="bilinear", align_corners=False)
return total / len(maps)
"""),
]  # fmt: skip
