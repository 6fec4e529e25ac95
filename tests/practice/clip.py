"""Lesson 03: answers that must be refused, and others that are right."""

LESSON = "03"
GIVEN = {}

LOSS = """
logits = scale * images @ texts.T
labels = torch.arange(len(logits))
return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
"""
LONG = """
logits = scale * (images @ texts.T)
rows = logits.exp() / logits.exp().sum(1, keepdim=True)
columns = logits.exp() / logits.exp().sum(0, keepdim=True)
return -(rows.diagonal().log().mean() + columns.diagonal().log().mean()) / 2
"""
PREPARED = """
h, w = pictures.shape[-2:]
if (h, w) != (size, size):
    ratio = size / min(h, w)
    h, w = max(size, round(h * ratio)), max(size, round(w * ratio))
    pictures = F.interpolate(pictures, (h, w), mode="bicubic", antialias=True).clamp(0, 1)
    y, x = (h - size) // 2, (w - size) // 2
    pictures = pictures[..., y : y + size, x : x + size]
return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
"""
IMAGE = """
x = self.image_tower(preprocess(pictures, size or self.image_size))
x = self.image_projection(x).float()
return x / x.norm(dim=-1, keepdim=True)
"""
TOKENS = "return F.normalize(self.text_projection(self.text_tower(ids)).float(), dim=-1)"
LOGITS = """
a, b = self.encode_image(pictures), self.encode_text(prompts)
return self.logit_scale.exp() * (a @ b.T)
"""
CLAMP = "self.logit_scale.clamp_(0, math.log(100))"
BACKWARD = """
images, texts, scale, slopes = ctx.saved_tensors
slopes = slopes * grad_loss / (2 * len(images))
to_scale = (slopes * (images @ texts.T)).sum()
return scale * slopes @ texts, scale * slopes.T @ images, to_scale
"""

WRONG = [
    ("contrastive_loss", LOSS.replace(" / 2", ""), "sum of both"),
    ("contrastive_loss", LOSS.replace("logits.T", "logits"), "only the rows"),
    (
        "contrastive_loss",
        LOSS.replace("(logits, labels) +", "(logits.T, labels) +"),
        "only the columns",
    ),
    ("contrastive_loss", LOSS.replace("scale * ", ""), "the scale is missing"),
    ("contrastive_loss", LOSS.replace("scale * ", "scale.exp() * "), "already"),
    ("contrastive_loss", LOSS.replace("scale * images", "images / scale"), "temperature"),
    ("contrastive_loss", LOSS.replace("labels)", 'labels, reduction="sum")'), "take the mean"),
    ("contrastive_loss", LOSS.replace(") / 2", ").item() / 2"), "a float comes back"),
    (
        "contrastive_loss",
        LOSS.replace("images @", "images.detach() @"),
        "no gradient reaches `images`",
    ),
    (
        "contrastive_loss",
        LOSS.replace("scale * ", "scale.item() * "),
        "no gradient reaches `scale`",
    ),
    ("contrastive_loss", LOSS.replace("return (", "return -("), "the sign is turned"),
    ("contrastive_loss", LOSS.replace("labels)", 'labels, reduction="none")'), "the shape is"),
    (
        "preprocess",
        PREPARED.replace("ratio = size / min(h, w)", "h = w = size; ratio = 1"),
        "squeezes",
    ),
    ("preprocess", PREPARED.replace("(h - size) // 2, (w - size) // 2", "0, 0"), "from the middle"),
    ("preprocess", PREPARED.replace(".clamp(0, 1)", ""), "clamp"),
    ("preprocess", PREPARED.replace(", antialias=True", ""), "antialias"),
    ("preprocess", PREPARED.replace('"bicubic"', '"bilinear"'), "bilinearly"),
    ("preprocess", "return F.interpolate(pictures, (size, size))", "preprocess: "),
    (
        "preprocess",
        PREPARED.replace("pictures - torch.tensor(MEAN)[:, None, None]", "pictures"),
        "preprocess: ",
    ),
    ("preprocess", PREPARED.replace(" / torch.tensor(STD)[:, None, None]", ""), "divided by STD"),
    ("preprocess", PREPARED.replace("[:, None, None]", ""), "RuntimeError"),
    ("CLIP.encode_image", IMAGE.replace(" / x.norm(dim=-1, keepdim=True)", ""), "no unit vectors"),
    ("CLIP.encode_image", IMAGE.replace("dim=-1", "dim=0"), "down the batch"),
    ("CLIP.encode_image", IMAGE.replace("size or ", ""), "`size` is ignored"),
    ("CLIP.encode_image", IMAGE.replace(".float()", ""), "the dtype is bfloat16"),
    ("CLIP.encode_image", IMAGE.replace("self.image_projection(x)", "x"), "the shape is"),
    ("CLIP.encode_tokens", "return self.text_projection(self.text_tower(ids)).float()", "no unit"),
    ("CLIP.encode_tokens", TOKENS.replace("dim=-1", "dim=0"), "down the batch"),
    ("CLIP.encode_tokens", TOKENS.replace("self.text_projection", ""), "the shape is"),
    ("CLIP.encode_tokens", TOKENS.replace(".float()", ""), "the dtype is bfloat16"),
    ("CLIP.forward", LOGITS.replace(".exp()", ""), "take `.exp()`"),
    ("CLIP.forward", LOGITS.replace("self.logit_scale.exp() * ", ""), "the scale is missing"),
    ("CLIP.forward", LOGITS.replace("a @ b.T", "b @ a.T"), "the transpose"),
    (
        "CLIP.forward",
        LOGITS.replace("self.logit_scale.exp() * (a @ b.T)", "(a @ b.T) / self.logit_scale.exp()"),
        "would divide",
    ),
    ("CLIP.forward", LOGITS.replace("return", "return -1 *"), "the sign is turned"),
    ("CLIP.clamp_scale", "self.logit_scale.clamp(0, math.log(100))", "`clamp_`"),
    ("CLIP.clamp_scale", "self.logit_scale.clamp_(1, 100)", "bounds of exp(logit_scale)"),
    (
        "CLIP.clamp_scale",
        "self.logit_scale = nn.Parameter(self.logit_scale.clamp(0, math.log(100)))",
        "new tensor",
    ),
    ("CLIP.clamp_scale", "self.logit_scale.clamp_(max=math.log(100))", "logit_scale = -1"),
    ("PairLoss.backward", BACKWARD.replace(" / (2 * len(images))", ""), "divide by 2N"),
    ("PairLoss.backward", BACKWARD.replace("scale * slopes", "slopes"), "passes the scale"),
    ("PairLoss.backward", BACKWARD.replace("slopes.T", "slopes"), "transposed"),
    ("PairLoss.backward", BACKWARD.replace(" * grad_loss", ""), "from above"),
    ("PairLoss.backward", BACKWARD.replace(", to_scale", ""), "three gradients"),
    (
        "PairLoss.backward",
        BACKWARD.replace("slopes = slopes * grad_loss", "slopes *= grad_loss"),
        "in place",
    ),
    (
        "PairLoss.backward",
        BACKWARD.replace("(slopes * (images @ texts.T)).sum()", "slopes.sum()"),
        "for the scale",
    ),
]
RIGHT = [
    ("contrastive_loss", LOSS),
    ("contrastive_loss", LONG),
    ("preprocess", PREPARED),
    ("CLIP.encode_image", IMAGE),
    ("CLIP.encode_tokens", TOKENS),
    (
        "CLIP.encode_tokens",
        TOKENS.replace("self.text_tower(", "encode_by_length(self.text_tower, "),
    ),
    ("CLIP.forward", LOGITS),
    ("CLIP.clamp_scale", CLAMP),
    ("CLIP.clamp_scale", f"return {CLAMP}"),
    ("CLIP.clamp_scale", "self.logit_scale.data = self.logit_scale.clamp(0, math.log(100))"),
    ("PairLoss.backward", BACKWARD),
]
