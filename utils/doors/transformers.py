"""CLIPs in the format of `transformers`: names, config, tokenizer and weights, both ways.

Bookkeeping, not subject matter. Knows the attributes of the brick `CLIP` and imports no brick.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import files, tensors
from utils.tensors import CheckpointError

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
            parts = [name.replace("attention.qkv", f"self_attn.{p}_proj") for p in "qkv"]
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
    config = read_json(folder / "config.json")
    try:
        vision, text = config["vision_config"], config["text_config"]
        kind = config.get("model_type", "clip")
        # what a config leaves out has the value of ViT-B/32
        vision = {**VIT_B_32["vision_config"], **vision}
        text = {**VIT_B_32["text_config"], **text}
        image = {ours: vision[theirs] for ours, theirs in ARGUMENTS.items()}
        image |= {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        }
        prompts = {ours: text[theirs] for ours, theirs in ARGUMENTS.items()}
        prompts |= {"context": text["max_position_embeddings"]}
        ours = {
            "image": {"tower": "vit", **image},
            "text": {"tower": "transformer", **prompts},
            "dim": config.get("projection_dim", 512),
        }
    except (KeyError, TypeError):
        raise CheckpointError(
            f"config.json in {folder.name}/ is not a CLIP's; fetch it again."
        ) from None
    refuse = f"config.json in {folder.name}/ says"
    if kind != "clip":
        raise CheckpointError(f"{refuse} model_type {kind!r:.40}; choose a folder of a 'clip'.")
    for part in (vision, text):
        for key, needed in {"layer_norm_eps": 1e-5, "num_channels": 3}.items():
            if part.get(key, needed) != needed:
                raise CheckpointError(
                    f"{refuse} {key} {part[key]!r:.40}; choose a model that takes {needed}."
                )
    sizes = {**image, **{f"text {k}": v for k, v in prompts.items()}, "dim": ours["dim"]}
    for key, value in sizes.items():
        if not key.endswith("activation") and (type(value) is not int or value < 1):
            raise CheckpointError(
                f"{refuse} {value!r:.40} for the {key}, a whole number above 0; fetch it again."
            )
    return ours


def refuse_preprocessor(folder: Path, mean, std) -> None:
    """Raise CheckpointError if a folder's own preprocessing is not what the model does."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not os.path.lexists(folder / name):
            continue
        told = read_json(folder / name)
        told = told.get("image_processor", told)
        wanted = {"image_mean": list(mean), "image_std": list(std), "do_normalize": True}
        for key, needed in wanted.items():
            found = told.get(key, needed) if isinstance(told, dict) else None
            if found != needed:
                raise CheckpointError(
                    f"{name} in {folder.name}/ says {key} {found!r:.80}, with which its vectors "
                    f"would be others; choose a model that takes {needed}."
                )


def read_text(path: Path) -> str:
    """The text of a file. Raises CheckpointError."""
    try:
        return files.read_text(path)
    except files.Unreadable as reason:
        known = {"may not be read": "give yourself the right to", "is missing": "restore the file"}
        remedy = known.get(str(reason), "fetch it again")
        raise CheckpointError(f"{path.name} in {path.parent.name}/ {reason}; {remedy}.") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises CheckpointError."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path.name} in {path.parent.name}/ is no JSON object; fetch it again."
        )
    return found


def read_tokenizer(folder: Path) -> tuple[list, dict | None]:
    """Merges, and the ids of tokens if a file has them; tokenizer.json holds both."""
    path = folder / "tokenizer.json"
    if os.path.lexists(folder / "merges.txt") or not os.path.lexists(path):
        vocab = folder / "vocab.json"
        return read_merges(folder), read_json(vocab) if os.path.lexists(vocab) else None
    told = read_json(path)
    try:
        pairs = [p.split(" ") if isinstance(p, str) else list(p) for p in told["model"]["merges"]]
        ids = dict(told["model"]["vocab"])
        ids |= {token["content"]: token["id"] for token in told.get("added_tokens", [])}
        fine = all(len(p) == 2 and all(isinstance(part, str) for part in p) for p in pairs)
    except (KeyError, TypeError, ValueError, AttributeError):
        fine = False
    if not fine:
        raise CheckpointError(
            f"tokenizer.json in {folder.name}/ holds no pairs to merge; fetch it again."
        )
    return pairs, ids


def read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a folder, in one file or in shards that an index names; and its name."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return tensors.read(folder / "model.safetensors")[0], "model.safetensors"
    shards = read_json(index).get("weight_map")
    names = shards.values() if isinstance(shards, dict) else [None]
    if not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise CheckpointError(f"{index.name} names no shards of {folder.name}/; fetch it again.")
    found = {}
    for name in sorted(set(names)):
        found |= tensors.read(folder / name)[0]
    return found, index.name


def read_merges(folder: Path) -> list:
    """merges.txt of a folder: one pair a line after the version line."""
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError(
            f"merges.txt in {folder.name}/ has a line that is no pair; fetch it again."
        )
    return merges


def read_pretrained(model: type, folder: Path, mean, std):
    """A CLIP with the weights and the tokenizer of a folder in transformers' format.

    model: the brick, given because a door imports none; mean, std: of its preprocessing.
    """
    config, (merges, ids) = read_config(folder), read_tokenizer(folder)
    refuse_preprocessor(folder, mean, std)
    theirs, weights = read_weights(folder)
    try:
        clip = tensors.outline(lambda: model(merges=merges, **config), len(theirs))
    except Exception:  # a wrong number can fail anywhere in a model
        raise CheckpointError(
            f"config.json in {folder.name}/ describes no CLIP; fetch it again."
        ) from None
    if ids not in (None, clip.tokenizer.ids):
        raise CheckpointError(
            f"merges and ids of tokens (vocab.json, tokenizer.json) in {folder.name}/ do not "
            "belong together; fetch them again."
        )
    try:
        state = from_transformers(theirs, list(clip.state_dict()))
    except KeyError as missing:
        raise CheckpointError(
            f"{weights} lacks {missing}; use the config.json that belongs to it."
        ) from None
    except RuntimeError:
        raise CheckpointError(
            f"{weights} holds parts that do not fit together; fetch it again."
        ) from None
    tensors.compare(clip, state, weights)
    # old files hold position_ids, which no model needs
    extra = theirs.keys() - to_transformers(state)
    left = sorted(name for name in extra if "position_ids" not in name)
    if left:
        raise CheckpointError(
            f"{weights} has {left[0]!r}, which config.json does not describe; "
            "use the config.json that belongs to it."
        )
    clip = model(merges=merges, **config)
    tensors.fill(clip, state, weights)
    return clip


def their_config(clip: nn.Module) -> dict:
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

    dim, tokenizer = clip.config["dim"], clip.tokenizer
    vision = tower(clip.image_tower, clip.config["image"])
    vision |= {
        "image_size": clip.image_size,
        "patch_size": clip.image_tower.patch.stride[0],
    }
    text = tower(clip.text_tower, clip.config["text"])
    text |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.context,
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.end,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": dim,
        "logit_scale_init_value": 2.6592,
        "vision_config": {"model_type": "clip_vision_model", **vision},
        "text_config": {"model_type": "clip_text_model", **text},
    }


def their_preprocessor(size: int, mean, std) -> dict:
    """preprocessor_config.json: what `preprocess` does, as transformers says it."""
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
        "image_mean": list(mean),
        "image_std": list(std),
    }


def write_pretrained(clip: nn.Module, folder: Path, mean, std) -> None:
    """Weights, config, tokenizer and preprocessor, as transformers reads them.

    mean, std: of the three channels, as the model's own preprocessing takes them.
    """
    towers = clip.config["image"]["tower"], clip.config["text"]["tower"]
    if towers != ("vit", "transformer"):
        raise ValueError(
            f"transformers' CLIPModel has no counterpart of the towers {towers[0]} and "
            f"{towers[1]}; only a vit with a transformer can be saved in its format"
        )
    tokenizer = clip.tokenizer
    start, end = tokenizer.tokens[tokenizer.start], tokenizer.tokens[tokenizer.end]
    special = {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "model_max_length": tokenizer.context,
    }
    files = {
        "config.json": json.dumps(their_config(clip), indent=1),
        "preprocessor_config.json": json.dumps(
            their_preprocessor(clip.image_size, mean, std), indent=1
        ),
        "tokenizer_config.json": json.dumps(special, indent=1),
        "vocab.json": json.dumps(tokenizer.ids, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges)]),
    }
    state = {k: v.detach().cpu() for k, v in clip.state_dict().items()}
    # first what can fail for want of space
    tensors.write(to_transformers(state), folder / "model.safetensors", {"format": "pt"})
    for name, content in files.items():
        tensors.write_text(content + "\n", folder / name)
