"""Checkpoints: written whole, verified when read, and one sentence for every fault."""

import functools
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests import helpers, tiny
from utils import checkpoints
from utils.checkpoints import load, save
from utils.data import emoji_hash
from utils.paths import CHECKPOINTS, ROOT
from utils.tensors import CheckpointError, fill, read, sha256, write

refusal = functools.partial(helpers.refusal, kind=CheckpointError)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny `clip` and its card."""
    save(tiny.model(), "clip", {"recipe": "clip"}, tmp_path)
    return tmp_path


def reload(folder):
    return load("clip", torch.device("cpu"), folder)


def recard(folder):
    """Make the card match the weights again, as someone who alters both would."""
    card = json.loads((folder / "clip.json").read_text())
    card["sha256"] = sha256(folder / "clip.safetensors")
    (folder / "clip.json").write_text(json.dumps(card))


def test_a_model_comes_back_rounded_to_fp16(folder):
    clip, model = tiny.model(), reload(folder)
    assert not model.training and model.config == clip.config
    for name, value in clip.state_dict().items():
        seen = model.state_dict()[name]
        assert seen.dtype == value.dtype
        assert torch.equal(seen, value.half().float())


def test_the_card_has_the_hash_and_the_size(folder):
    card, path = checkpoints.card("clip", folder), folder / "clip.safetensors"
    assert card["name"] == "clip" and card["recipe"] == "clip"
    assert card["sha256"] == sha256(path) and card["bytes"] == path.stat().st_size


def test_whole_numbers_stay_whole(tmp_path):
    model = nn.BatchNorm1d(3)
    model.config = {}
    model.num_batches_tracked.fill_(70_000)  # more than fp16 holds
    tensors, _ = read(save(model, "norm", {}, tmp_path))
    assert tensors["num_batches_tracked"].item() == 70_000


def test_tensors_that_share_memory_are_written(tmp_path):
    value = torch.arange(6.0).view(2, 3)
    write({"a": value, "b": value.T, "c": value[0]}, tmp_path / "x.safetensors", {"k": "v"})
    tensors, metadata = read(tmp_path / "x.safetensors")
    assert metadata == {"k": "v"}
    assert torch.equal(tensors["b"], value.T) and torch.equal(tensors["c"], value[0])


@pytest.mark.parametrize("step", ["save_file", "os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_file(step, folder, monkeypatch):
    path = folder / "clip.safetensors"
    before = path.read_bytes()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"utils.tensors.{step}", fail)
    with pytest.raises(KeyboardInterrupt):
        write({"a": torch.ones(3)}, path, {})
    assert path.read_bytes() == before


def test_a_card_that_cannot_be_written_leaves_the_old_card(folder, monkeypatch):
    before, replace = (folder / "clip.json").read_text(), os.replace

    def fail(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("utils.tensors.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(load("clip", folder=folder), "clip", {"recipe": "another"}, folder)
    assert (folder / "clip.json").read_text() == before


def test_a_full_disk_leaves_the_old_card_and_is_one_sentence(folder, monkeypatch):
    before = (folder / "clip.json").read_text()
    model = load("clip", folder=folder)

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    message = refusal(save, model, "clip", {"recipe": "another"}, folder)
    assert message.startswith("clip.json cannot be written (No space left on device); make room")
    assert (folder / "clip.json").read_text() == before
    assert not list(folder.glob("*.tmp"))


def test_an_unknown_name_is_answered_with_the_known_ones():
    message = refusal(load, "clipp")
    assert "'clipp'" in message and "clip_resnet" in message


@pytest.mark.parametrize("name", ["clip.json", "clip.safetensors"])
def test_a_missing_file_is_named_with_the_remedy(name, folder):
    (folder / name).unlink()
    message = refusal(reload, folder)
    assert name in message and "tools.pretrain clip" in message


@pytest.mark.parametrize("text", ["", "{", '{"sha256": ', "\x00"])
def test_a_broken_card_is_named(text, folder):
    (folder / "clip.json").write_text(text)
    assert "clip.json is not JSON" in refusal(reload, folder)


def test_a_card_without_a_hash_verifies_nothing(folder):
    (folder / "clip.json").write_text("{}")
    assert "does not match its card" in refusal(reload, folder)


@pytest.mark.parametrize("damage", ["cut", "one bit", "longer", "empty"])
def test_altered_weights_are_noticed(damage, folder):
    path = folder / "clip.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-7] ^= 1
    path.write_bytes({"cut": data[:-100], "longer": data + b"x", "empty": b""}.get(damage, data))
    message = refusal(reload, folder)
    assert "clip.safetensors does not match its card" in message
    assert sha256(path)[:12] in message


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_a_cut_file_with_a_forged_card_is_refused(keep, folder):
    path = folder / "clip.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    recard(folder)
    assert "not a whole safetensors file" in refusal(reload, folder)


def rewritten(folder, change) -> str:
    tensors, metadata = read(folder / "clip.safetensors")
    change(tensors)
    save_file(tensors, folder / "clip.safetensors", metadata)
    recard(folder)
    return refusal(reload, folder)


def test_weights_of_another_shape_are_named(folder):
    def widen(tensors):
        tensors["text_projection.weight"] = torch.zeros(16, 25)

    message = rewritten(folder, widen)
    assert "text_projection.weight" in message
    assert "(16, 25)" in message and "(16, 24)" in message


def test_a_missing_and_an_unknown_weight_are_named(folder):
    assert "lacks 'logit_scale'" in rewritten(folder, lambda t: t.pop("logit_scale"))
    save(tiny.model(), "clip", {}, folder)
    message = rewritten(folder, lambda t: t.update(extra=torch.ones(1)))
    assert "unknown 'extra'" in message


def test_a_refused_file_leaves_the_model_alone():
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    tensors = {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}
    assert "bias" in refusal(fill, model, tensors, "x.safetensors")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl", "w.pickle"])
def test_pickles_are_refused_unread(name, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    message = refusal(read, tmp_path / name)
    assert name in message and "pickled" in message
    # and under a false name
    (tmp_path / name).rename(tmp_path / "w.safetensors")
    assert "not a whole safetensors file" in refusal(read, tmp_path / "w.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "none.safetensors is missing" in refusal(read, tmp_path / "none.safetensors")
    (tmp_path / "f.safetensors").mkdir()
    assert "f.safetensors" in refusal(read, tmp_path / "f.safetensors")


SHIPPED = [name for name in checkpoints.MODELS if (CHECKPOINTS / f"{name}.json").exists()]


def test_the_readme_says_what_the_cards_say():
    found = [checkpoints.card(name)["metrics"]["unseen_en_top1"] for name in SHIPPED]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"they name {found[0]:.0f} and {found[1]:.0f} % right" in text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_loads_and_its_card_is_whole(name):
    model, card = load(name), checkpoints.card(name)
    assert not model.training
    assert all(value.isfinite().all() for value in model.state_dict().values())
    wanted = {"name", "recipe", "arguments", "steps", "minutes", "hardware", "torch", "data"}
    assert wanted | {"templates", "metrics", "licence", "sha256", "bytes"} <= card.keys()
    assert card["data"]["sha256"] == emoji_hash()
