"""Lesson 05: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import vq_vae

LESSON = "05"
GIVEN = vars(vq_vae)

PERPLEXITY = """
def perplexity(indices, K):
    shares = torch.bincount(indices.flatten(), minlength=K) / indices.numel()
    shares = shares[shares > 0]
    return 2 ** -(shares * shares.log2()).sum().item()
"""
RESIDUAL = """
def residual_codes(z, books):
    rest, columns = z, []
    for book in books:
        chosen = nearest_code(rest, book)
        columns.append(chosen)
        rest = rest - book[chosen]
    return torch.stack(columns, 1)
"""
FSQ = """
def fsq(z, levels):
    half = (levels - 1) / 2
    bounded = z.tanh()
    rounded = (bounded * half).round() / half
    return bounded + (rounded - bounded).detach()
"""
KL = """
def kl(mean1, log_variance1, mean2, log_variance2):
    gap = log_variance2 - log_variance1
    distance = (mean1 - mean2).square() / log_variance2.exp()
    return (gap + (-gap).exp() + distance - 1).sum(1) / 2
"""

WRONG = [
    ("perplexity", PERPLEXITY, "2 ** -", "-", "entropy in bits"),
    ("perplexity", PERPLEXITY, "2 ** -(shares * shares.log2())", "-(shares * shares.log())",
     "entropy in nats"),
    ("perplexity", PERPLEXITY, "log2", "log", "goes with 2 to"),
    ("perplexity", PERPLEXITY, "    shares = shares[shares > 0]\n", "", "0·log 0"),
    ("perplexity", "def perplexity(indices, K):\n    return len(indices.unique())",
     "however unevenly"),
    ("perplexity", "def perplexity(indices, K):\n    return [4.0]", "one number"),
    ("residual_codes", RESIDUAL, "nearest_code(rest, book)", "nearest_code(z, book)",
     "still missing"),
    ("residual_codes", RESIDUAL, "rest - book", "rest + book", "taken away, not added"),
    ("residual_codes", RESIDUAL, "rest - book[chosen]", "book[chosen] - rest", "z − chosen"),
    ("residual_codes", RESIDUAL, "columns, 1", "columns", "not one row"),
    ("residual_codes", RESIDUAL, "columns, 1)", "columns, 1).float()", "int64"),
    ("residual_codes", RESIDUAL, "rest = rest - book[chosen]", "rest -= book[chosen]",
     "changed what you were given"),
    ("fsq", FSQ, "z.tanh()", "z", "outside of −1 to 1"),
    ("fsq", FSQ, "z.tanh()", "z.clamp(-1, 1)", "squash it with tanh"),
    ("fsq", FSQ, "bounded + (rounded - bounded).detach()", "rounded", "the gradient is 0"),
    ("fsq", FSQ, "bounded + (rounded - bounded).detach()", "rounded.detach()", "no gradient"),
    ("fsq", FSQ, "bounded + (rounded - bounded).detach()", "z + (rounded - z).detach()",
     "jumps over tanh"),
    ("fsq", FSQ, "(levels - 1) / 2", "levels / 2", "5 levels are"),
    ("kl", KL, ".sum(1) / 2", ".sum(1)", "factor of ½"),
    ("kl", KL, ".sum(1)", ".mean(1)", "sum them"),
    ("kl", KL, ".sum(1) / 2", "/ 2", "the shape is"),
    ("kl", KL, "log_variance2 - log_variance1", "-log_variance1", "not ½("),
    ("kl", "def kl(a, b, c, d):\n    return (a.square() + b.exp() - 1 - b).sum(1) / 2",
     "taken as standard"),
    ("kl", KL.replace("mean1, log_variance1, mean2, log_variance2):",
                      "mean2, log_variance2, mean1, log_variance1):"), "changed places"),
    ("kl", KL.replace("    gap", "    log_variance1, log_variance2 = 2 * log_variance1, "
                      "2 * log_variance2\n    gap"), "log σ², not log σ"),
]  # fmt: skip
RIGHT = [
    ("perplexity", PERPLEXITY.replace(".item()", "")),  # a tensor of no dimension
    ("perplexity", "def perplexity(i, K):\n    p = torch.bincount(i.flatten()) / i.numel()\n"
     "    return torch.special.entr(p).sum().exp()"),
    ("residual_codes", RESIDUAL.replace("nearest_code(rest, book)",
                                        "torch.cdist(rest, book).argmin(1)")),
    ("fsq", FSQ.replace("bounded + (rounded - bounded).detach()",
                        "rounded.detach() + bounded - bounded.detach()")),
    ("kl", "def kl(a, b, c, d):\n    N = torch.distributions.Normal\n    return "
     "torch.distributions.kl_divergence(N(a, (b / 2).exp()), N(c, (d / 2).exp())).sum(1)"),
]  # fmt: skip
