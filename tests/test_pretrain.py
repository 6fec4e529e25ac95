"""Pretraining: a run that is stopped, shared or refused ends as it should.

What every model is asked, as to go on after a kill, is in test_shipped.py.
"""

import contextlib
import functools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from tests import runs, tiny
from tests.runs import Run
from tests.tiny import DIM, RESNET, TRANSFORMER, VIT
from tools import pretrain
from utils import checkpoints, tensors, training
from utils.bricks.clip import CLIP, contrastive_loss
from utils.data import LANGUAGES, augment, emoji_hash
from utils.recipes import clip, engine

RECIPES = runs.RECIPES
SHORT = replace(tiny.clip(VIT, TRANSFORMER).recipe, steps=2)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c_says_how_to_go_on(tmp_path):
    run = Run("clip", tmp_path)
    run.wait_for("step 3/16")
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 1
    assert run.said().endswith("\nstopped; run the same command again to go on\n")
    assert "Traceback" not in run.said() and not (tmp_path / "clip.safetensors").exists()
    assert "clip: resuming at step " in Run("clip", tmp_path).finish()
    assert (tmp_path / "clip.safetensors").exists()


# Several processes


TOGETHER = ["clip", "clip_resnet", "dvae", "vq_vae", "fought", "dalle", "diffusion", "kl"]
TOGETHER += ["latent_diffusion", "prior", "unclip"]

# borrowed, or helpers
LENT = ("clip", "clip_resnet", "vqgan", "dalle", "kl", "latent_diffusion", "prior")


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, Path]:
    """Where one process, and where two, left the states of all runs, trained in turn."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    found = {}
    for count, way in {"one": [], "two": launcher}.items():
        folder = tmp_path_factory.mktemp(count)
        for other in LENT:
            tiny.save(other, folder)
        names = [f"few_{name}" for name in TOGETHER]
        done = subprocess.run(
            [sys.executable, *way, runs.__file__, *names, "--out", folder],
            # without rounding to bfloat16
            env=os.environ | {"EXACT": "1"} | loopback,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        found[count] = folder / "runs"
    return found


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_as_one(name, states):
    """Also where patches are dropped, batches normalised, noise drawn and losses weighed."""
    one, two = (
        tensors.read(states[count] / f"few_{name}" / "state.safetensors")[0]
        for count in ("one", "two")
    )
    names = [key for key in one if key.startswith(("model.", "average."))]
    assert names
    for key in names:
        # keys' biases do nothing: their gradient is rounding, and Adam makes it large
        tolerance = 1e-3 if key.endswith("qkv.bias") else 1e-4
        torch.testing.assert_close(two[key], one[key], atol=tolerance, rtol=0, msg=key)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs flock")
def test_the_second_run_of_a_name_says_that_another_holds_it(tmp_path):
    first = Run("clip", tmp_path)
    first.wait_for("step 2/16")
    with pytest.raises(ValueError, match="^clip: another run holds .+lock; wait for its end, or"):
        engine.hold("clip", tmp_path, tmp_path / "runs")
    first.process.kill()
    first.end()
    orphans = [tmp_path / "clip.safetensors.tmp", tmp_path / "runs" / "clip" / "state.x.tmp"]
    for orphan in orphans:
        orphan.write_bytes(b"half")
    engine.hold("clip", tmp_path, tmp_path / "runs").close()  # a killed run holds nothing
    assert not any(orphan.exists() for orphan in orphans)


# What is written


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    monkeypatch.setattr(engine, "load_emoji", tiny.pairs)


def run(folder: Path, **changes) -> dict:
    """A run of two steps as `clip`, in this process."""
    return engine.pretrain("clip", replace(SHORT, **changes), folder, folder / "runs")


def test_the_card_tells_what_was_done(toys, tmp_path):
    run(tmp_path)
    card = checkpoints.card("clip", tmp_path)
    weights = tmp_path / "clip.safetensors"
    assert card["sha256"] == tensors.sha256(weights)
    assert card["bytes"] == weights.stat().st_size
    assert card["name"] == card["recipe"] == "clip"
    assert card["arguments"] == asdict(SHORT)
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
    assert SHORT.evaluate(model, splits, {}) == card["metrics"]


def test_a_finished_run_is_not_trained_again(toys, tmp_path, capsys):
    run(tmp_path)
    before = (tmp_path / "clip.safetensors").read_bytes()
    (tmp_path / "clip.safetensors").unlink()
    run(tmp_path)
    assert (tmp_path / "clip.safetensors").read_bytes() == before
    assert capsys.readouterr().err.count("clip: step") == 2


def refusal(folder: Path, **changes) -> str:
    """What a run answers to the state it finds; the state stays."""
    state = folder / "runs" / "clip" / "state.safetensors"
    before = state.read_bytes()
    with pytest.raises(ValueError) as error:
        run(folder, **changes)
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


def rewritten(state: Path, change) -> None:
    """The state after `change(tensors, note)`, with a checksum that is right again."""
    named, metadata = tensors.read(state)
    note = json.loads(metadata["note"])
    change(named, note)
    text = json.dumps(note)
    tensors.write(named, state, {"note": text, "sha256": training.digest(named, text)})


@pytest.mark.parametrize(
    "field, values",
    [
        ("step", [-3, 0, 10**9, 3, 1.5, "2", None, True]),
        ("seconds", [-1.0, math.nan, math.inf, "0"]),
        ("sum", [math.nan, None, [0]]),
        ("threads", [0, -2, 10**9, 1.0]),
        ("losses", [None, [1], [[1]], [[1, "a"]], [[1, math.nan]], {"1": 2}]),
        ("looks", [None, [], {"x": {}}, {"1": []}, {"1": {"a": "b"}}]),
    ],
)
def test_every_field_of_a_state_is_checked(field, values, begun):
    state = begun / "runs" / "clip" / "state.safetensors"
    whole = state.read_bytes()
    for value in values:
        state.write_bytes(whole)
        rewritten(state, lambda named, note, value=value: note.update({field: value}))
        assert "is not a whole state of this model" in refusal(begun), value
        state.write_bytes(whole)
        rewritten(state, lambda named, note: note.pop(field))
        assert "is not a whole state of this model" in refusal(begun)


@pytest.mark.parametrize("part", ["model.", "average.", "optimizer0."])
def test_a_state_without_its_parts_is_refused(part, begun):
    def lose(named, note):
        for name in [name for name in named if name.startswith(part)]:
            del named[name]

    rewritten(begun / "runs" / "clip" / "state.safetensors", lose)
    assert "is not a whole state of this model" in refusal(begun)


@pytest.mark.parametrize(
    "name", ["optimizer0.0.0.momentum_buffer", "optimizer0.0.999.momentum_buffer", "other.x"]
)
def test_a_state_with_a_tensor_that_belongs_to_nobody_is_refused(name, begun):
    rewritten(
        begun / "runs" / "clip" / "state.safetensors",
        lambda named, note: named.update({name: torch.ones(3, 5)}),
    )
    assert "is not a whole state of this model" in refusal(begun)


def test_four_kilobytes_of_zeros_in_a_state_are_seen(begun):
    state = begun / "runs" / "clip" / "state.safetensors"
    whole = state.read_bytes()
    for start in range(len(whole) // 2, len(whole) - 4096, len(whole) // 8):
        damaged = whole[:start] + bytes(4096) + whole[start + 4096 :]
        if damaged == whole:
            continue
        state.write_bytes(damaged)
        assert "is not a whole state of this model" in refusal(begun)


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
        patch.setitem(pretrain.RECIPES, "clip", SHORT)
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


@pytest.mark.parametrize("place", ["out", "runs"])
def test_what_cannot_be_written_is_found_before_a_step(place, toys, tmp_path):
    (tmp_path / place).write_bytes(b"a file where a folder should be")
    with pytest.raises(ValueError) as error:
        engine.pretrain("clip", SHORT, tmp_path / "out", tmp_path / "runs")
    assert re.match(r"clip: .+ cannot be written \(.+\); choose another folder.$", str(error.value))


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
    found = SHORT.evaluate(CLIP(VIT, TRANSFORMER, [], DIM), {"toys": pairs}, {})
    assert (found["toys_en_top1"], found["toys_zh_top1"]) == (50.0, 3.8)  # 13 and 1 of 26


def test_a_step_sees_changed_pictures_and_both_languages(monkeypatch):
    model, recipe = CLIP(VIT, TRANSFORMER, [], DIM), RECIPES["clip_bag"]
    kind, pictures, captions = type(model.tokenizer), [], []
    real = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, x: captions.extend(x) or real(self, x))
    monkeypatch.setattr(clip, "augment", lambda p, g: pictures.append(p) or augment(p, g))
    recipe.losses(model, tiny.pairs(), {})[0](0)
    assert [p.shape for p in pictures] == [(recipe.batch, 3, 32, 32)]
    chinese = [bool(re.search("[一-鿿]", text)) for text in captions]
    assert chinese == [False] * recipe.batch + [True] * recipe.batch
