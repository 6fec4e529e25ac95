"""Lesson 06: answers that must be refused, and others that are right."""

LESSON = "06"
GIVEN = {}

WRONG = [
    ("gumbel_max", " + gumbel_noise(logits)", "", "always the likeliest"),
    ("gumbel_max", " + gumbel_noise", " - gumbel_noise", "wrong sign"),
    ("gumbel_max", "argmax", "argmin", "rings last"),
    ("gumbel_softmax", " + gumbel_noise(logits)", "", "no draw"),
    ("gumbel_softmax", "((logits + gumbel_noise(logits)) / tau)",
     "(logits / tau + gumbel_noise(logits))", "*and* noise"),
    ("gumbel_softmax", "/ tau", "* tau", "grow hard"),
    ("gumbel_softmax", "logits + gumbel", "logits - gumbel", "wrong sign"),
    ("gumbel_softmax", ".softmax(-1)", ".softmax(0)", "along the last axis"),
    ("gumbel_softmax", "one_hot - weights.detach() + weights", "one_hot", "no gradient"),
    ("kl_from_uniform", "+ math.log(logits.shape[-1])", "", "ln K is missing"),
    ("kl_from_uniform", "return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])",
     "return -(log_q.exp() * log_q).sum(-1)", "this is the entropy"),
    ("kl_from_uniform", "return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])",
     "return ((log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])) / math.log(2)",
     "in bits"),
    ("kl_from_uniform", "return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])",
     "return -log_q.mean(-1) - math.log(logits.shape[-1])", "changed places"),
    ("logit_laplace", "- stretch ", "", "does not integrate"),
    ("logit_laplace", "- stretch", "+ stretch", "below the line"),
    ("logit_laplace", "-math.log(2) ", "", "the 2 of 2b"),
    ("logit_laplace", " - log_b -", " -", "a wide distribution"),
    ("logit_laplace", "x.logit() - mu", "x - mu", "logit of x"),
    ("logit_laplace", ".abs()", ".square()", "not with its square"),
    ("unmap_pixels", ".clamp(0, 1)", "", "clamp it"),
    ("unmap_pixels", "/ (1", "* (1", "divides by"),
    ("unmap_pixels", "2 * EDGE", "EDGE", "two edges"),
    ("unmap_pixels", "values - EDGE", "values", "take it away first"),
    ("annealed", "min(1.0, step / steps)", "step / steps", "cap the share"),
    ("annealed", "(1 + math.cos(math.pi * share)) / 2", "(1 - share)", "straight line"),
    ("annealed", "math.pi * share", "2 * math.pi * share", "whole cosine"),
    ("annealed", "end + (start - end)", "start + (end - start)", "changed places"),
]  # fmt: skip
RIGHT = [
    ("gumbel_max", "return gumbel_softmax(logits, 1.0).argmax(-1)"),
    ("gumbel_softmax", "return F.gumbel_softmax(logits, tau, hard)"),
    ("kl_from_uniform", "q = logits.softmax(-1)\n"
     "return math.log(logits.shape[-1]) - torch.special.entr(q).sum(-1)"),
    ("logit_laplace", "b = log_b.exp()\nreturn torch.distributions.Laplace(mu, b).log_prob("
     "x.logit()) - (x * (1 - x)).log()"),
    ("annealed", "share = min(step, steps) / steps\n"
     "return start + (end - start) * math.sin(math.pi * share / 2) ** 2"),
]  # fmt: skip
