"""Checkpoints: written whole or not at all, and read without running what they hold.

What every shipped model is asked, such as what loading refuses, is in test_shipped.py.
"""

import functools
import os
import pickle

import pytest
import torch
from torch import nn

from tests import helpers, tiny
from utils import checkpoints
from utils.checkpoints import load, save
from utils.tensors import CheckpointError, fill, read, write

refusal = functools.partial(helpers.refusal, kind=CheckpointError)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny `clip` and its card."""
    save(tiny.model(), "clip", {"recipe": "clip"}, tmp_path)
    return tmp_path


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_are_readable_by_whom_the_umask_allows(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


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
