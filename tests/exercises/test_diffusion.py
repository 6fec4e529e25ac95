"""Lesson 10: answers that must be refused, each with its hint, and other right forms."""

from utils.bricks import diffusion

LESSON = "10"
GIVEN = vars(diffusion)

SHIFTED = """
def shifted(signal, scale):
    return signal / (signal + scale**2 * (1 - signal))
"""
VELOCITY = """
def as_velocity(eps, x, signal):
    signal = signal.view(-1, 1, 1, 1)
    return (eps - (1 - signal).sqrt() * x) / signal.sqrt()
"""
CAPPED = """
def capped_weight(signal, kind, most=5.0):
    snr = signal / (1 - signal)
    cost = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[kind]
    return snr.clamp(max=most) / cost
"""
KNOWN = """
def keep_known(x, picture, mask, noise, signal):
    return torch.where(mask == 1, add_noise(picture, noise, signal), x)
"""

WRONG = [
    ("shifted", SHIFTED, "scale**2", "scale", "divide by its square"),
    ("shifted", SHIFTED, "scale**2 * (1 - signal)", "(1 - signal) / scale**2", "you multiplied"),
    ("shifted", SHIFTED, "signal / (signal + scale**2 * (1 - signal))", "signal / scale**2",
     "you divided ᾱ"),
    ("shifted", SHIFTED, "signal / (signal + scale**2 * (1 - signal))",
     "signal / (1 - signal) / scale**2", "turn it into ᾱ again"),
    ("shifted", SHIFTED, "signal / (signal + scale**2 * (1 - signal))",
     "1 / (1 + 1 / (signal / (1 - signal) / scale**2)) + 0 / (1 - signal)", "divide by 0"),
    ("as_velocity", VELOCITY, "(eps - (1 - signal).sqrt() * x)",
     "((1 - signal).sqrt() * x - eps)", "the sign is turned"),
    ("as_velocity", VELOCITY, " / signal.sqrt()", "", "divide by √ᾱ"),
    ("as_velocity", VELOCITY, "(eps - (1 - signal).sqrt() * x) / signal.sqrt()",
     "(x - (1 - signal).sqrt() * eps) / signal.sqrt()", "this is the picture"),
    ("as_velocity", VELOCITY, "(eps - (1 - signal).sqrt() * x) / signal.sqrt()",
     "signal.sqrt() * eps - (1 - signal).sqrt() * x", "in the place of x₀"),
    ("as_velocity", VELOCITY, ".sqrt()", "", "roots are missing"),
    ("capped_weight", CAPPED, " / cost", "", "costs something there already"),
    ("capped_weight", CAPPED, " / cost", " * cost", "where you multiply"),
    ("capped_weight", CAPPED, "snr + 1", "snr", "v costs SNR + 1"),
    ("capped_weight", CAPPED, "max=most", "min=most", "at *most*"),
    ("capped_weight", CAPPED, ".clamp(max=most)", "", "nothing is capped"),
    ("capped_weight", CAPPED, "snr.clamp(max=most)", "signal.clamp(max=most)", "not the SNR"),
    ("keep_known", KNOWN, "mask == 1", "mask == 0", "turned round"),
    ("keep_known", KNOWN, "add_noise(picture, noise, signal)", "picture", "has no noise"),
    ("keep_known", KNOWN, "add_noise(picture, noise, signal)", "picture + noise",
     "ᾱ says how much"),
    ("keep_known", KNOWN, "torch.where(mask == 1, add_noise(picture, noise, signal), x)",
     "x + mask * add_noise(picture, noise, signal)", "there twice"),
    ("keep_known", KNOWN, "torch.where(mask == 1, add_noise(picture, noise, signal), x)",
     "add_noise(picture, noise, signal)", "must stay as it is"),
    ("keep_known", KNOWN, "add_noise(picture, noise, signal)",
     "add_noise(picture, noise, 1 - signal)", "it is another"),
]  # fmt: skip

RIGHT = [
    ("shifted", "shifted = lambda signal, scale: 1 / (1 + scale**2 * (1 / signal - 1))"),
    ("as_velocity", """
def as_velocity(eps, x, signal):
    return target("v", read_off("eps", eps, x, signal)[0], eps, signal)
"""),
    ("capped_weight", """
def capped_weight(signal, kind, most=5.0):
    snr = signal / (1 - signal)
    least = torch.minimum(snr, torch.tensor(most))
    if kind == "x0":
        return least
    return least / (snr if kind == "eps" else snr + 1)
"""),
    ("keep_known", """
def keep_known(x, picture, mask, noise, signal):
    return mask * add_noise(picture, noise, signal) + (1 - mask) * x
"""),
]  # fmt: skip
