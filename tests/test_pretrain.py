"""Pretraining: a run that is killed, shared or refused ends as it should.

Run as a script, this file is `python -m tools.pretrain` with tiny recipes and toy pairs.
"""

import contextlib
import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from tests import tiny
from tests.tiny import DIM, RESNET, TRANSFORMER, VIT
from tools import pretrain
from utils import checkpoints, tensors
from utils import device as devices
from utils.bricks.clip import CLIP, contrastive_loss
from utils.data import LANGUAGES, augment, emoji_hash
from utils.recipes import clip, engine

STEPS = 40
TINY = {"text": TRANSFORMER, "dim": DIM, "merges": 40, "steps": STEPS, "batch": 16, "warmup": 4}
RECIPES = {
    "vit": clip.Recipe(image=VIT | {"keep": 0.5}, seed=3, **TINY),
    "resnet": clip.Recipe(image=RESNET, small=24, small_share=0.5, seed=4, **TINY),
    "whole_vit": clip.Recipe(image=VIT, **TINY | {"steps": 4}),
    "short": clip.Recipe(image=VIT, **TINY | {"steps": 2}),
}

def die(name: str, count: int) -> None:
    """Make the `count`-th call of `tensors.NAME` (or `checkpoints.NAME`) a SIGKILL."""
    owner = checkpoints if name == "sha256" else tensors
    owner = getattr(owner, name.split(".")[0]) if "." in name else owner
    name = name.split(".")[-1]
    real, calls = getattr(owner, name), []

    def call(*arguments, **settings):
        calls.append(name)
        if len(calls) == count and name == "fsync":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **settings)
        if len(calls) == count:
            if name == "save_file":  # half of it is on the disk
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def main() -> None:
    """`… RECIPE --out FOLDER`: the state is in FOLDER/runs, and is saved at every step."""
    torch.set_num_threads(1)
    # tests run in the background hand "ignore Ctrl-C" down to their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "DIE" in os.environ:
        name, count = os.environ["DIE"].split(":")
        die(name, int(count))
    if "EXACT" in os.environ:  # bfloat16 makes large differences of small ones
        devices.half_precision = lambda device: contextlib.nullcontext()
        torch.Tensor.bfloat16 = torch.Tensor.float
    pretrain.RECIPES, engine.load_emoji = RECIPES, tiny.pairs
    runs = Path(sys.argv[-1]) / "runs"
    engine.pretrain = functools.partial(engine.pretrain, runs=runs, save_every=0)
    pretrain.main()


def start(name: str, folder: Path, *launcher: str, **settings: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, name, "--out", str(folder)],
        env=os.environ | {"WIP_DEVICE": "cpu"} | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What a run still says until its good end."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


def wait_for(process: subprocess.Popen, mark: str) -> None:
    said = ""
    while mark not in said:
        letter = process.stderr.read(1)
        assert letter, said
        said += letter


def result(name: str, folder: Path) -> tuple[bytes, dict]:
    """The weights that a run has written, and the state it ended with."""
    state = tensors.read(folder / "runs" / name / "state.safetensors")[0]
    return (folder / f"{name}.safetensors").read_bytes(), state


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# A kill


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_killed_run_ends_with_the_same_bytes(name, tmp_path):
    """Killed while it writes a state, before and after the exchange, anywhere, at the end."""
    finish(start(name, tmp_path / "whole"))
    killed, rng = tmp_path / "killed", random.Random(name)
    early, late = rng.randint(4, 9), rng.randint(14, 19)
    for moment in ("save_file:3", early, "os.fsync:2", late, "os.replace:3", "sha256:1"):
        if isinstance(moment, int):
            process = start(name, killed)
            wait_for(process, f"step {moment}/{STEPS}")
            time.sleep(rng.random() / 50)
            process.kill()
        else:
            process = start(name, killed, DIE=moment)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == -signal.SIGKILL, (moment, said)
    assert f"resuming at step {STEPS} of {STEPS}" in finish(start(name, killed))
    weights, state = result(name, tmp_path / "whole")
    again, resumed = result(name, killed)
    assert_same(state, resumed)
    assert weights == again
    card = json.loads((killed / f"{name}.json").read_text(encoding="utf-8"))
    assert card["sha256"] == tensors.sha256(killed / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = start("vit", tmp_path)
    wait_for(process, f"step 3/{STEPS}")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert said.endswith("\nstopped; run the same command again to go on\n")
    assert "Traceback" not in said and not (tmp_path / "vit.safetensors").exists()
    assert "vit: resuming at step " in finish(start("vit", tmp_path))
    assert (tmp_path / "vit.safetensors").exists()


# Several processes


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_train_as_one(tmp_path):
    """For towers in which a picture meets no other: BatchNorm sees a process's share alone."""
    finish(start("whole_vit", tmp_path / "one", EXACT="1"))
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    finish(start("whole_vit", tmp_path / "two", *launcher, EXACT="1", **loopback))
    one, two = (result("whole_vit", tmp_path / folder)[1] for folder in ("one", "two"))
    names = [name for name in one if name.startswith(("model.", "average."))]
    assert len(names) == 2 * len(CLIP(VIT, TRANSFORMER, [], DIM).state_dict())
    for name in names:
        # keys' biases do nothing: their gradient is rounding, and Adam makes it large
        tolerance = 1e-3 if name.endswith("qkv.bias") else 1e-5
        torch.testing.assert_close(two[name], one[name], atol=tolerance, rtol=0, msg=name)


# What is written


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    monkeypatch.setattr(engine, "load_emoji", tiny.pairs)


def run(folder: Path, name: str = "short", **changes) -> dict:
    """A run of two steps as `clip`, in this process."""
    return engine.pretrain("clip", replace(RECIPES[name], **changes), folder, folder / "runs")


def test_the_card_tells_what_was_done(toys, tmp_path):
    run(tmp_path)
    card = checkpoints.card("clip", tmp_path)
    weights = tmp_path / "clip.safetensors"
    assert card["sha256"] == tensors.sha256(weights)
    assert card["bytes"] == weights.stat().st_size
    assert card["name"] == card["recipe"] == "clip"
    assert card["arguments"] == asdict(RECIPES["short"])
    assert card["steps"] == 2 and 0 <= card["minutes"] < 5
    assert card["hardware"].startswith("cpu, ") and card["torch"] == torch.__version__
    assert card["data"] == {"name": "Emoji-4", "split": "train", "sha256": emoji_hash()}
    assert card["licence"].startswith("MIT; trained on Emoji-4")
    assert card["templates"].keys() == set(LANGUAGES)
    assert card["metrics"].keys() == {
        f"{split}_{language}_top{k}"
        for split in ("train", "unseen")
        for language in LANGUAGES
        for k in (1, 5)
    }
    # the figures are those of the rounded weights that are on the disk
    model = checkpoints.load("clip", torch.device("cpu"), tmp_path)
    splits = {split: tiny.pairs(split) for split in ("train", "unseen")}
    assert RECIPES["short"].evaluate(model, splits, {}) == card["metrics"]


def test_a_finished_run_is_not_trained_again(toys, tmp_path, capsys):
    run(tmp_path)
    before = (tmp_path / "clip.safetensors").read_bytes()
    (tmp_path / "clip.safetensors").unlink()
    run(tmp_path)
    assert (tmp_path / "clip.safetensors").read_bytes() == before
    assert capsys.readouterr().err.count("clip: step") == 2


def refusal(folder: Path, *arguments, **changes) -> str:
    """What a run answers to the state it finds; the state stays."""
    state = folder / "runs" / "clip" / "state.safetensors"
    before = state.read_bytes()
    with pytest.raises(ValueError) as error:
        run(folder, *arguments, **changes)
    message = str(error.value)
    assert "\n" not in message and len(message.replace(str(folder), "")) < 200
    assert message.endswith(f"; delete {state.parent} to start anew.")
    assert state.read_bytes() == before and not list(folder.glob("*.json"))
    return message


@pytest.fixture
def begun(toys, tmp_path):
    """A folder in which a run has left its state."""
    run(tmp_path)
    for path in tmp_path.glob("clip.*"):
        path.unlink()
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"lr": 1e-4}, {"steps": 3}, {"dim": 32}, {"merges": 20}, {"image": RESNET}],
    ids=str,
)
def test_the_state_of_another_recipe_is_refused(changes, begun):
    assert "belongs to another recipe or data set" in refusal(begun, **changes)


def test_the_state_of_another_data_set_is_refused(begun, monkeypatch):
    monkeypatch.setattr(engine, "emoji_hash", lambda: "0" * 64)
    assert "belongs to another recipe or data set" in refusal(begun)


def test_the_state_of_other_bricks_is_refused(begun, monkeypatch):
    shallow = CLIP(VIT | {"depth": 1}, TRANSFORMER, [], DIM)
    monkeypatch.setattr(clip.Recipe, "build", lambda *_: shallow)
    assert "is not a whole state of this model" in refusal(begun)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_state_cut_short_is_refused(keep, begun):
    state = begun / "runs" / "clip" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:keep])
    assert "is not a whole state of this model" in refusal(begun)


@pytest.mark.parametrize("metadata", [{}, {"note": "{"}, {"note": "[1]"}, {"note": "{}"}], ids=str)
def test_a_file_that_is_no_state_is_refused(metadata, begun):
    state = begun / "runs" / "clip" / "state.safetensors"
    tensors.write({"a": torch.ones(1)}, state, metadata)
    refusal(begun)


def told(monkeypatch, *words: str) -> str:
    """The last words of `python -m tools.pretrain …`, which are one line."""
    monkeypatch.setattr(sys, "argv", ["pretrain", *words])
    with pytest.raises(SystemExit) as stopped:
        pretrain.main()
    message = stopped.value.code.strip("\n")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("The loss is nan; lower the rate."), "The loss is nan; lower the rate."),
        (KeyboardInterrupt(), "stopped; run the same command again to go on"),
    ],
)
def test_the_command_ends_in_one_line(error, said, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(engine, "pretrain", fail)
    assert told(monkeypatch, "clip") == said


@pytest.mark.parametrize(
    "error, cause",
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("I/O error"), "the disk refuses it"),
    ],
)
def test_a_full_disk_leaves_the_last_state_and_is_told(error, cause, toys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    runs, real = tmp_path / "runs", tensors.save_file
    calls = iter([real, full])
    with monkeypatch.context() as patch:
        patch.setitem(pretrain.RECIPES, "clip", RECIPES["short"])
        patch.setattr(tensors, "save_file", lambda *a, **k: next(calls)(*a, **k))
        patch.setattr(
            engine, "pretrain", functools.partial(engine.pretrain, runs=runs, save_every=0)
        )
        assert told(patch, "clip", "--out", str(tmp_path)) == (
            f"state.safetensors cannot be written ({cause}); make room or choose another folder."
        )
    metadata = tensors.read(runs / "clip" / "state.safetensors")[1]
    assert json.loads(metadata["note"])["step"] == 1
    run(tmp_path)
    assert (tmp_path / "clip.safetensors").exists()


# A batch larger than memory


def test_cached_gradients_equal_the_whole_batch_to_1e_10(monkeypatch):
    """GradCache in float64: vectors without a graph first, then again with their gradients."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    whole = CLIP(VIT, TRANSFORMER, [], DIM).double()
    parts = CLIP(VIT, TRANSFORMER, [], DIM).double()
    parts.load_state_dict(whole.state_dict())
    pictures, prompts = torch.rand(12, 3, 32, 32).double(), [f"fox {i}" for i in range(12)]

    def vectors(clip, part):
        return torch.stack([clip.encode_image(pictures[part]), clip.encode_text(prompts[part])])

    contrastive_loss(*vectors(whole, slice(0, 12)), whole.logit_scale.exp()).backward()
    slices = [slice(i, i + 5) for i in range(0, 12, 5)]
    with torch.no_grad():
        cache = torch.cat([vectors(parts, part) for part in slices], 1)
    cache.requires_grad_()
    contrastive_loss(*cache, parts.logit_scale.exp()).backward()
    for part in slices:
        (vectors(parts, part) * cache.grad[:, part]).sum().backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert one.grad.dtype == torch.float64
        torch.testing.assert_close(other.grad, one.grad, atol=1e-10, rtol=0, msg=name)


def test_unseen_changes_no_weight(toys, tmp_path, monkeypatch):
    def other(split):
        pairs = tiny.pairs("train" if split == "train" else "another")
        owls = pairs.table | {"label_en": ["owl"] * 24}
        return pairs if split == "train" else replace(pairs, table=owls)

    run(tmp_path / "one")
    monkeypatch.setattr(engine, "load_emoji", other)
    run(tmp_path / "two")
    one, two = ((tmp_path / n / "clip.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_the_average_is_shipped(toys, tmp_path):
    run(tmp_path)
    state = tensors.read(tmp_path / "runs" / "clip" / "state.safetensors")[0]
    shipped = tensors.read(tmp_path / "clip.safetensors")[0]
    assert all(torch.equal(v, state[f"average.{k}"].half()) for k, v in shipped.items())
    assert not all(torch.equal(v, state[f"model.{k}"].half()) for k, v in shipped.items())


def test_the_scale_is_clamped_after_every_step(toys, tmp_path, monkeypatch):
    calls, clamp = [], CLIP.clamp_scale
    monkeypatch.setattr(CLIP, "clamp_scale", lambda self: calls.append(1) or clamp(self))
    run(tmp_path)
    steps = json.loads((tmp_path / "clip.json").read_text())["steps"]
    assert len(calls) == steps


def test_accuracy_is_counted_as_by_hand(monkeypatch):
    pairs, eye = tiny.pairs().take([*range(24), 0, 1]), torch.eye(24)
    vectors = eye[[*range(12), *[0] * 14]]  # from the twelfth on, all look like concept 0

    def classes(_, labels, templates):
        found = eye[[int(re.search(r"\d+", label)[0]) for label in labels]]
        return found if labels[0].startswith("fox") else found.roll(1, 1)

    monkeypatch.setattr(clip, "image_vectors", lambda *_: vectors)
    monkeypatch.setattr(clip, "class_vectors", classes)
    found = RECIPES["short"].evaluate(CLIP(VIT, TRANSFORMER, [], DIM), {"toys": pairs}, {})
    assert (found["toys_en_top1"], found["toys_zh_top1"]) == (50.0, 3.8)  # 13 and 1 of 26


def test_a_step_sees_changed_pictures_and_both_languages(monkeypatch):
    model, recipe = CLIP(VIT, TRANSFORMER, [], DIM), RECIPES["whole_vit"]
    kind, pictures, captions = type(model.tokenizer), [], []
    real = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, x: captions.extend(x) or real(self, x))
    monkeypatch.setattr(clip, "augment", lambda p, g: pictures.append(p) or augment(p, g))
    recipe.losses(model, tiny.pairs(), {})[0](0)
    assert [p.shape for p in pictures] == [(recipe.batch, 3, 32, 32)]
    chinese = [bool(re.search("[一-鿿]", text)) for text in captions]
    assert chinese == [False] * recipe.batch + [True] * recipe.batch


if __name__ == "__main__":
    main()
