"""CLIPs from the Hugging Face hub: their folder on disk when cached, else fetched, else a reason.

Asks for the files that `doors.transformers` reads, and for no others.
"""

import os
import re
from pathlib import Path

from utils.tensors import CheckpointError, refuse_pickle

WEIGHTS = "model.safetensors"
FILES = (  # the weights come last: when they are there, all are
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    WEIGHTS,
)
SECONDS = 5
NAME = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def folder(source) -> Path:
    """A folder on disk, or a CLIP's hub name such as `openai/clip-vit-base-patch32` → its folder.

    Raises CheckpointError in one sentence when neither the disk nor the hub has it.
    """
    source = str(source)
    if source and "\0" not in source and os.path.isdir(source):
        return Path(source)
    if NAME.fullmatch(source):
        refuse_pickle(source)
    if not NAME.fullmatch(source) or source.endswith(".git"):
        raise CheckpointError(
            f"{source!a:.80} is neither a folder on disk nor a hub name like "
            "openai/clip-vit-base-patch32; check the spelling."
        )
    from huggingface_hub import constants, try_to_load_from_cache

    # main first, then the hub's own conversions that `fetch` may have taken
    store = Path(constants.HF_HUB_CACHE, f"models--{source.replace('/', '--')}")
    requests = sorted((store / "refs" / "refs" / "pr").glob("*"))
    for revision in ("main", *(f"refs/pr/{path.name}" for path in requests)):
        found = {name: try_to_load_from_cache(source, name, revision=revision) for name in FILES}
        found = {name: path for name, path in found.items() if isinstance(path, str)}
        merges = {"vocab.json", "merges.txt"} <= found.keys() or "tokenizer.json" in found
        if merges and {"config.json", WEIGHTS} <= found.keys():
            return Path(found[WEIGHTS]).parent
    return fetch(source)


def fetch(name: str) -> Path:
    """Download those of FILES that there are; returns their folder."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(
            f"{name} is not on disk and HF_HUB_OFFLINE is set; unset it to download the model."
        )
    try:
        told = HfApi().model_info(name, timeout=SECONDS)
        there = {file.rfilename for file in told.siblings or ()}
        revision = "main"
        if WEIGHTS not in there:
            # older repositories hold pickles; the hub keeps a converted copy in a request
            revision = converted(name)
        if revision is None:
            raise CheckpointError(
                f"{name} has no {WEIGHTS} on the hub; choose a model that has one."
            )
        if {"vocab.json", "merges.txt"} <= there:
            there -= {"tokenizer.json"}  # says the same
        wanted = [file for file in FILES if file in there | {"config.json", WEIGHTS}]
        paths = [hf_hub_download(name, file, revision=revision) for file in wanted]
    except CheckpointError:
        raise
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:120]
        raise CheckpointError(
            f"The hub does not give {name} ({reason}); check the name, or your access to it."
        ) from None
    except Exception:  # every network library has its own errors
        raise CheckpointError(
            f"{name} is not on disk and the hub does not answer; connect once to download it."
        ) from None
    return Path(paths[-1]).parent


def converted(name: str) -> str | None:
    """The revision that holds the hub's own conversion to safetensors, if there is one."""
    from huggingface_hub import HfApi

    for request in HfApi().get_repo_discussions(name, author="SFconvertbot"):
        if request.is_pull_request and "safetensors" in request.title:
            return f"refs/pr/{request.num}"
    return None
