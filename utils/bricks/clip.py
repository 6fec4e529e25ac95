"""The bricks of lesson 03_contrastive_loss.

Built by `make build` from lessons/03_contrastive_loss.py: edit them there.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import checkpoints, hub
from utils.bricks.image_encoders import ResNet, ViT
from utils.bricks.text_encoders import (
    BagOfWords,
    TextTransformer,
    Tokenizer,
    end_positions,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(pictures: Tensor, size: int) -> Tensor:
    """Pictures of any size → what the image tower sees.

    (B, 3, H, W) in [0, 1] → (B, 3, size, size): bicubic resize of the shorter side,
    centre crop, CLIP's mean and deviation. Raises ValueError for another shape.
    """
    fits = pictures.ndim == 4 and pictures.shape[1] == 3 and 0 not in pictures.shape
    if not fits or not pictures.is_floating_point():
        seen = f"{pictures.dtype} {tuple(pictures.shape)}"
        raise ValueError(f"pictures are float (B, 3, H, W) in [0, 1]; these are {seen}")
    height, width = pictures.shape[2:]
    if (height, width) != (size, size):
        ratio = size / min(height, width)
        shape = max(size, round(height * ratio)), max(size, round(width * ratio))
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True).clamp(
            0, 1
        )
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        pictures = pictures[:, :, top : top + size, left : left + size]
    mean = torch.tensor(MEAN, device=pictures.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pictures.device).view(3, 1, 1)
    return (pictures - mean) / std


IMAGE_TOWERS = {"vit": ViT, "resnet": ResNet}
TEXT_TOWERS = {"transformer": TextTransformer, "bag_of_words": BagOfWords}


class CLIP(nn.Module):
    """Two towers, one space: pictures and prompts become unit vectors of `dim` numbers.

    image, text: which tower, and its arguments, e.g. {"tower": "vit", "patch_size": 8};
    merges: the tokenizer's. Projections have no bias; logit_scale is the log of the
    inverse temperature and starts at ln(1/0.07). Radford et al. 2021, sec. 2.3–2.5.
    """

    def __init__(self, image: dict, text: dict, merges: list, dim: int = 256):
        super().__init__()
        self.config = {"image": image, "text": text, "merges": merges, "dim": dim}
        self.tokenizer = Tokenizer(merges, text.get("context", 32))
        self.image_size = image.get("image_size", 64)
        arguments = {k: v for k, v in image.items() if k != "tower"}
        if image["tower"] == "resnet":
            arguments.pop("image_size", None)  # a convolution does not mind
        self.image_tower = IMAGE_TOWERS[image["tower"]](**arguments)
        arguments = {k: v for k, v in text.items() if k != "tower"}
        self.text_tower = TEXT_TOWERS[text["tower"]](len(self.tokenizer), **arguments)
        self.image_projection = nn.Linear(self.image_tower.width, dim, bias=False)
        self.text_projection = nn.Linear(self.text_tower.width, dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=self.image_tower.width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=self.text_tower.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pictures: Tensor, size: int = 0) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size → unit vectors (B, dim).

        size: what the tower sees, image_size by default; only a ResNet takes others.
        """
        features = self.image_tower(preprocess(pictures, size or self.image_size))
        return F.normalize(self.image_projection(features).float(), dim=-1)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (B, L), with END → unit vectors (B, dim)."""
        ends = end_positions(ids, self.tokenizer.end)
        order = ends.argsort()
        # short prompts go together, so that they do not wait for long ones
        parts = order.chunk(4 if len(ids) >= 64 else 1)
        features = torch.cat(
            [self.text_tower(ids[p, : int(ends[p[-1]]) + 1]) for p in parts]
        )
        vectors = F.normalize(self.text_projection(features).float(), dim=-1)
        return vectors[order.argsort()]  # back in the order given

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Plain strings → unit vectors (B, dim). Raises ValueError for other things."""
        if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(
                "prompts are a list of strings, e.g. ['a picture of a cat']"
            )
        if not len(prompts):
            raise ValueError("there are no prompts; give at least one string")
        return self.encode_tokens(self.tokenizer(prompts).to(self.logit_scale.device))

    def forward(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Logits (B, P): picture–prompt cosines, times exp(logit_scale)."""
        images, texts = self.encode_image(pictures), self.encode_text(prompts)
        return self.logit_scale.exp() * images @ texts.T

    def clamp_scale(self) -> None:
        """Keep exp(logit_scale) within [1, 100]; call it after every optimizer step."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(100))

    @classmethod
    def from_pretrained(cls, source) -> "CLIP":
        """A CLIP from a folder in transformers' format or a hub name, in eval mode.

        Raises ValueError (CheckpointError) in one sentence when it cannot be had.
        """
        return read_pretrained(cls, hub.folder(source)).eval()

    def save_pretrained(self, folder) -> None:
        """Write a folder that transformers.CLIPModel and CLIPProcessor load.

        Raises ValueError for towers that transformers has no counterpart of.
        """
        write_pretrained(self, Path(folder))


class PairLoss(torch.autograd.Function):
    """The symmetric loss of pairs with its gradient by hand; keeps one (N, N) matrix.

    ∂L/∂logits = (softmax of rows + softmax of columns − 2 on the diagonal) / 2N.
    """

    @staticmethod
    def forward(ctx, images, texts, scale):
        logits = scale * images @ texts.T  # (N, N)
        columns = torch.cat([part.logsumexp(0) for part in logits.split(512, 1)])
        # cross-entropy is logsumexp − the right logit; the diagonal is right
        loss = (columns - logits.diagonal()).mean() / 2
        for start in range(0, len(logits), 512):
            part = logits[start : start + 512]
            rows = part.log_softmax(1)  # (512, N)
            loss -= rows.diagonal(start).sum() / (2 * len(logits))
            # from here on the slopes take the place of the logits
            torch.add(rows.exp_(), (part - columns).exp_(), out=part)
        logits.diagonal().sub_(2)
        ctx.save_for_backward(images, texts, scale, logits)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, texts, scale, slopes = ctx.saved_tensors
        to_images, to_texts = slopes @ texts, slopes.T @ images  # (N, d)
        share = grad / (2 * len(images))
        to_scale = share * to_images.flatten().dot(images.flatten())
        return to_images.mul_(share * scale), to_texts.mul_(share * scale), to_scale


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss: picture i belongs to text i, and to no other of the batch.

    images, texts: (N, d) unit vectors; scale: exp(logit_scale). Returns a scalar, the
    mean of two cross-entropies, by row and by column. Radford et al. 2021, fig. 3.
    """
    if images.shape != texts.shape:
        shapes = f"{tuple(images.shape)} and {tuple(texts.shape)}"
        raise ValueError(
            f"images and texts come in pairs, but their shapes are {shapes}"
        )
    # bfloat16 keeps 8 bits: at a scale of 100 a logit would be off by up to 0.25
    with torch.autocast(images.device.type, enabled=False):
        return PairLoss.apply(images.float(), texts.float(), scale)


# our name → transformers' name, by beginning
NAMES = {
    "image_tower.class_token": "vision_model.embeddings.class_embedding",
    "image_tower.positions": "vision_model.embeddings.position_embedding.weight",
    "image_tower.patch": "vision_model.embeddings.patch_embedding",
    "image_tower.norm_pre": "vision_model.pre_layrnorm",  # spelt so there
    "image_tower.norm_post": "vision_model.post_layernorm",
    "image_tower.blocks": "vision_model.encoder.layers",
    "text_tower.tokens": "text_model.embeddings.token_embedding",
    "text_tower.positions": "text_model.embeddings.position_embedding.weight",
    "text_tower.norm": "text_model.final_layer_norm",
    "text_tower.blocks": "text_model.encoder.layers",
    "image_projection": "visual_projection",
    "text_projection": "text_projection",
    "logit_scale": "logit_scale",
}
INNER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def their_name(name: str) -> str:
    """Our parameter name as transformers writes it (`attention.qkv` stays as it is)."""
    ours = next(n for n in NAMES if name == n or name.startswith(n + "."))
    theirs = NAMES[ours] + name[len(ours) :]
    for inner, other in INNER.items():
        theirs = theirs.replace(f".{inner}.", f".{other}.")
    return theirs


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names; the one qkv matrix becomes three."""
    theirs = {}
    for name, value in state.items():
        name = their_name(name)
        if ".attention.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                theirs[name.replace("attention.qkv", f"self_attn.{part}_proj")] = third
        else:
            theirs[name] = value
    return theirs


def from_transformers(theirs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """transformers' weights under our `names`. KeyError names a missing one."""
    state = {}
    for ours in names:
        name = their_name(ours)
        if ".attention.qkv." in name:
            parts = [
                name.replace("attention.qkv", f"self_attn.{p}_proj") for p in "qkv"
            ]
            state[ours] = torch.cat([theirs[part] for part in parts])
        else:
            state[ours] = theirs[name]
    return state


# our tower's argument → the key in transformers' config
ARGUMENTS = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
}


VIT_B_32 = {
    "vision_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "image_size": 224,
        "patch_size": 32,
    },
    "text_config": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
    },
}


def read_config(folder: Path) -> dict:
    """config.json of a folder, as our `image`, `text` and `dim` arguments."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vision, text = config["vision_config"], config["text_config"]
        # what a config leaves out has the value of ViT-B/32
        vision = {**VIT_B_32["vision_config"], **vision}
        text = {**VIT_B_32["text_config"], **text}
        image = {ours: vision[theirs] for ours, theirs in ARGUMENTS.items()}
        image |= {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        }
        words = {ours: text[theirs] for ours, theirs in ARGUMENTS.items()}
        words |= {"context": text["max_position_embeddings"]}
        return {
            "image": {"tower": "vit", **image},
            "text": {"tower": "transformer", **words},
            "dim": config.get("projection_dim", 512),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise checkpoints.CheckpointError(
            f"config.json in {folder.name}/ is missing or not a CLIP's; fetch it again."
        ) from None


def read_merges(folder: Path) -> list:
    """merges.txt of a folder: one pair a line after the version line."""
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise checkpoints.CheckpointError(
            f"merges.txt in {folder.name}/ is missing or not text; fetch it again."
        ) from None
    merges = [
        line.split() for line in lines if line and not line.startswith("#version")
    ]
    if any(len(pair) != 2 for pair in merges):
        raise checkpoints.CheckpointError(
            f"merges.txt in {folder.name}/ has a line that is no pair; fetch it again."
        )
    return merges


def read_vocab(folder: Path) -> dict | None:
    """vocab.json of a folder, token → id; None when there is none."""
    path = folder / "vocab.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError, RecursionError):
        raise checkpoints.CheckpointError(
            f"vocab.json in {folder.name}/ is not JSON; fetch it again."
        ) from None


def read_pretrained(kind: type, folder: Path):
    """A CLIP with the weights and the tokenizer of a folder in transformers' format."""
    config, merges = read_config(folder), read_merges(folder)
    weights = folder / "model.safetensors"
    theirs, _ = checkpoints.read(weights)
    try:
        clip = kind(merges=merges, **config)
    except Exception:  # a wrong number can fail anywhere in a model
        raise checkpoints.CheckpointError(
            f"config.json in {folder.name}/ describes no CLIP; fetch it again."
        ) from None
    try:
        state = from_transformers(theirs, list(clip.state_dict()))
    except KeyError as missing:
        raise checkpoints.CheckpointError(
            f"{weights.name} lacks {missing}; use the config.json that belongs to it."
        ) from None
    except RuntimeError:
        raise checkpoints.CheckpointError(
            f"{weights.name} holds parts that do not fit together; fetch it again."
        ) from None
    checkpoints.fill(clip, state, weights.name)
    # old files hold position_ids, which no model needs
    extra = theirs.keys() - to_transformers(state)
    left = sorted(name for name in extra if "position_ids" not in name)
    if left:
        raise checkpoints.CheckpointError(
            f"{weights.name} has {left[0]!r}, which config.json does not describe; "
            "use the config.json that belongs to it."
        )
    if read_vocab(folder) not in (None, clip.tokenizer.ids):
        raise checkpoints.CheckpointError(
            f"vocab.json and merges.txt in {folder.name}/ give words other ids; "
            "fetch both again."
        )
    return clip


def their_config(clip: CLIP) -> dict:
    """config.json for transformers."""

    def tower(ours: nn.Module, arguments: dict) -> dict:
        block = ours.blocks[0]
        values = {
            "width": ours.width,
            "depth": len(ours.blocks),
            "heads": block.attention.heads,
            "hidden": block.fc1.out_features,
            "activation": arguments.get("activation", "quick_gelu"),
        }
        return {ARGUMENTS[k]: v for k, v in values.items()} | {"projection_dim": dim}

    dim, words = clip.config["dim"], clip.tokenizer
    vision = tower(clip.image_tower, clip.config["image"])
    vision |= {
        "image_size": clip.image_size,
        "patch_size": clip.image_tower.patch.stride[0],
    }
    text = tower(clip.text_tower, clip.config["text"])
    text |= {"vocab_size": len(words), "max_position_embeddings": words.context}
    text |= {
        "bos_token_id": words.start,
        "eos_token_id": words.end,
        "pad_token_id": words.end,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": dim,
        "logit_scale_init_value": 2.6592,
        "vision_config": {"model_type": "clip_vision_model", **vision},
        "text_config": {"model_type": "clip_text_model", **text},
    }


def their_preprocessor(size: int) -> dict:
    """preprocessor_config.json: what `preprocess` does, in transformers' words."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def write_pretrained(clip: CLIP, folder: Path) -> None:
    """Weights, config, tokenizer and preprocessor, as transformers reads them."""
    towers = clip.config["image"]["tower"], clip.config["text"]["tower"]
    if towers != ("vit", "transformer"):
        raise ValueError(
            f"transformers' CLIPModel has no counterpart of the towers {towers[0]} and "
            f"{towers[1]}; only a vit with a transformer can be saved in its format"
        )
    words = clip.tokenizer
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "bos_token": words.tokens[words.start],
        "eos_token": words.tokens[words.end],
        "unk_token": words.tokens[words.end],
        "pad_token": words.tokens[words.end],
        "model_max_length": words.context,
    }
    files = {
        "config.json": json.dumps(their_config(clip), indent=1),
        "preprocessor_config.json": json.dumps(
            their_preprocessor(clip.image_size), indent=1
        ),
        "tokenizer_config.json": json.dumps(tokenizer, indent=1),
        "vocab.json": json.dumps(words.ids, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, words.merges)]),
    }
    state = {k: v.detach().cpu() for k, v in clip.state_dict().items()}
    # first what can fail for want of space
    checkpoints.write(
        to_transformers(state), folder / "model.safetensors", {"format": "pt"}
    )
    for name, content in files.items():
        checkpoints.write_text(content + "\n", folder / name)
