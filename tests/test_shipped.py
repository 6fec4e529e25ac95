"""What every model that the course ships must do: a tiny one of each name, then the files.

A new model needs nothing here: its name is found in `utils.checkpoints.MODELS`.
"""

import dataclasses
import functools
import json
import os
import pickle
import random
import re
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from tests import helpers, tiny
from tests.runs import Run
from utils import checkpoints
from utils.bricks import zero_shot
from utils.data import SPLITS, emoji_hash, load_emoji
from utils.paths import CHECKPOINTS, ROOT
from utils.recipes import RECIPES, diffusion, engine
from utils.tensors import CheckpointError, read, sha256

CPU = torch.device("cpu")
NAMES = list(checkpoints.MODELS)
UNTRAINED: set[str] = set()  # recipes of which no run is shipped
SHIPPED = [name for name in NAMES if name not in UNTRAINED]
refusal = functools.partial(helpers.refusal, kind=CheckpointError)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def place(name, tmp_path):
    """A folder that holds a tiny model of the name, and what it borrows."""
    tiny.save(name, tmp_path)
    return tmp_path


def refused(name: str, place) -> str:
    """What loading a model answers."""
    return refusal(checkpoints.load, name, CPU, place)


def test_every_model_has_a_recipe_and_a_tiny_twin():
    assert set(NAMES) == set(RECIPES) <= set(tiny.MODELS)
    for name, recipe in RECIPES.items():
        twin = tiny.MODELS[name].recipe
        assert type(twin) is type(recipe) and twin.borrows() == recipe.borrows()


# There and back


def rounded(model: torch.nn.Module) -> torch.nn.Module:
    """The model in eval mode, with what fp16 leaves of its weights."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
    return model.eval()


def results(name: str, model: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return tiny.MODELS[name].use(model)


def test_a_model_comes_back_in_fp16_and_does_the_same(name, tmp_path):
    wanted = rounded(tiny.save(name, tmp_path))
    model = checkpoints.load(name, CPU, tmp_path)
    assert not any(module.training for module in model.modules())
    assert model.config == wanted.config
    state = model.state_dict()
    assert state.keys() == wanted.state_dict().keys()
    for key, value in wanted.state_dict().items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
    seen = results(name, model)
    assert all(map(torch.equal, seen, results(name, wanted)))
    assert not any(map(torch.equal, seen, results(name, tiny.model(name, seed=1).eval())))


def test_the_card_has_the_hash_the_size_and_what_is_borrowed(name, place):
    card, path = checkpoints.card(name, place), place / f"{name}.safetensors"
    assert card["name"] == card["recipe"] == name
    assert card["sha256"] == sha256(path) and card["bytes"] == path.stat().st_size
    assert card.get("borrows", {}) == checkpoints.named(RECIPES[name].borrows(), place)


def test_what_is_borrowed_is_not_stored(name, place):
    model = checkpoints.load(name, CPU, place)
    lent = tuple(f"{attribute}." for attribute in RECIPES[name].borrows())
    own = {key for key in model.state_dict() if not key.startswith(lent)}
    assert read(place / f"{name}.safetensors")[0].keys() == own


DEVICES = {"meta": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}


@pytest.mark.parametrize("kind", DEVICES)
def test_a_model_comes_to_the_device_of_choice(kind, name, place, monkeypatch):
    if not DEVICES[kind]:
        pytest.skip(f"no {kind} here")
    monkeypatch.setattr(checkpoints.devices, "pick", lambda: torch.device(kind))
    model = checkpoints.load(name, folder=place)
    assert {value.device.type for value in model.state_dict().values()} == {kind}
    if kind == "meta":
        return  # a device without numbers
    expected = results(name, checkpoints.load(name, CPU, place))
    for seen, value in zip(results(name, model), expected, strict=True):
        assert seen.device.type == kind
        torch.testing.assert_close(seen.cpu(), value, atol=1e-3, rtol=1e-3)


# Refusals


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_missing_file_is_named(kind, instead, name, place):
    path = place / f"{name}.{kind}"
    path.unlink()
    if instead == "a folder":
        path.mkdir()
    message = refused(name, place)
    cause = "is no file" if (kind, instead) == ("json", "a folder") else "is missing"
    assert f"{path.name} {cause}" in message and f"tools.pretrain {name}" in message


TEXTS = ["", "{", '{"sha256": ', "\x00", "[]", "3", '"clip"', "null", "[" * 100_000]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]))
def test_a_card_that_is_none_is_refused(text, name, place):
    (place / f"{name}.json").write_text(text)
    kind = "JSON" if text in TEXTS[:4] + TEXTS[-1:] else "an object"
    assert f"The card {name}.json is not {kind}" in refused(name, place)


def test_a_card_without_a_hash_verifies_nothing(name, place):
    (place / f"{name}.json").write_text("{}")
    assert "does not match its card" in refused(name, place)


@pytest.mark.parametrize("damage", ["cut", "one bit", "longer", "empty"])
def test_altered_weights_are_noticed(damage, name, place):
    path = place / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-7] ^= 1
    path.write_bytes({"cut": data[:-100], "longer": data + b"x", "empty": b""}.get(damage, data))
    message = refused(name, place)
    assert f"{path.name} does not match its card" in message
    assert sha256(path)[:12] in message


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_pickle_is_refused_unread(kind, name, place):
    class Trap:
        def __reduce__(self):
            return open, (str(place / "ran"), "w")

    (place / f"{name}.{kind}").write_bytes(pickle.dumps(Trap()))
    assert f"{name}.{kind}" in refused(name, place)
    assert not (place / "ran").exists()


def recard(name: str, place) -> None:
    """Make the card match the weights again, as someone who alters both would."""
    card = checkpoints.card(name, place) | {"sha256": sha256(place / f"{name}.safetensors")}
    (place / f"{name}.json").write_text(json.dumps(card))


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_a_cut_file_with_a_forged_card_is_refused(keep, name, place):
    path = place / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    recard(name, place)
    assert "not a whole safetensors file" in refused(name, place)


def forge(name: str, place, change=lambda named: None, **metadata: str) -> None:
    path = place / f"{name}.safetensors"
    named, kept = read(path)
    change(named)
    save_file(named, path, kept | metadata)
    recard(name, place)


FORGERIES = {
    "no": (lambda named, key: named.pop(key), "lacks '{}'"),
    "one more": (lambda named, key: named.update(extra=torch.ones(1)), "has an unknown 'extra'"),
    "another shape": (
        lambda named, key: named.update({key: torch.zeros(7, 7, 7)}),
        "{} has shape (7, 7, 7), the model needs {}",
    ),
    "nan": (lambda named, key: named[key].fill_(torch.nan), "{} holds what is no number"),
    "inf": (lambda named, key: named[key].fill_(torch.inf), "{} holds what is no number"),
    "int8": (lambda named, key: named.update({key: named[key].char()}), "{} holds torch.int8"),
}


@pytest.mark.parametrize("fault", FORGERIES)
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_a_weight_that_does_not_fit_is_named(which, fault, name, place):
    change, said = FORGERIES[fault]
    named = read(place / f"{name}.safetensors")[0]
    key = sorted(key for key in named if named[key].is_floating_point())[which]
    forge(name, place, lambda named: change(named, key))
    assert f"{name}.safetensors" in refused(name, place)
    assert said.format(key, tuple(named[key].shape)) in refused(name, place)


def test_the_weights_of_another_model_are_refused(name, place):
    other = next(key for key in tiny.MODELS if key != name)
    weights = {key: value.half() for key, value in tiny.model(other).state_dict().items()}

    def swap(named):
        named.clear()
        named.update(weights)

    forge(name, place, swap)
    assert refused(name, place).startswith(f"{name}.safetensors")


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", "[" * 100_000, '{"colour": 1}'])
def test_weights_with_other_arguments_are_refused(config, name, place):
    forge(name, place, config=config)
    kind, message = checkpoints.MODELS[name].split(":")[1], refused(name, place)
    assert message.startswith(f"{name}.safetensors describes no {kind};")
    assert f"tools.pretrain {name}" in message


def test_weights_without_arguments_are_refused(name, place):
    path = place / f"{name}.safetensors"
    save_file(read(path)[0], path)
    recard(name, place)
    assert refused(name, place).startswith(f"{name}.safetensors describes no ")


# A kill


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_ends_with_the_same_bytes(name, tmp_path):
    """Killed while it writes a state, before and after the exchange, anywhere, at the end."""
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(name)
    recipe = tiny.MODELS[name].recipe
    others = recipe.borrows() | recipe.helpers()
    for other in others.values():
        tiny.save(other, whole), tiny.save(other, killed)
    Run(name, whole).finish()
    early, late = rng.randint(4, 5), rng.randint(11, 12)
    # each is hashed when it is loaded, and what it borrows, too
    hashed = sum(1 + len(RECIPES[other].borrows()) for other in others.values())
    end = f"sha256:{hashed + 1}"
    for moment in ("save_file:3", early, "os.fsync:2", late, "os.replace:3", end):
        if isinstance(moment, int):
            run = Run(name, killed)
            run.wait_for(f"step {moment}/{recipe.steps}")
            time.sleep(rng.random() / 50)
            run.process.kill()
        else:
            run = Run(name, killed, die_at=moment)
        assert run.end() == -signal.SIGKILL, (moment, run.said())
    assert f"resuming at step {recipe.steps} of {recipe.steps}" in Run(name, killed).finish()
    one, two = (read(folder / "runs" / name / "state.safetensors")[0] for folder in (whole, killed))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
    one, two = (folder / f"{name}.safetensors" for folder in (whole, killed))
    assert one.read_bytes() == two.read_bytes()
    assert checkpoints.card(name, killed)["sha256"] == sha256(two)


# The files themselves


@pytest.fixture(scope="module")
def splits() -> dict:
    return {split: load_emoji(split) for split in SPLITS}


def test_what_is_not_shipped_has_no_files_and_is_said_to_be_missing():
    for name in NAMES:
        files = [(CHECKPOINTS / f"{name}.{kind}").exists() for kind in ("json", "safetensors")]
        assert files == [name in SHIPPED] * 2, name
    for name in UNTRAINED:
        assert f"run `python -m tools.pretrain {name}`" in refused(name, CHECKPOINTS)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_loads_and_its_card_is_true(name):
    model, card, recipe = checkpoints.load(name), checkpoints.card(name), RECIPES[name]
    assert not any(module.training for module in model.modules())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    path = CHECKPOINTS / f"{name}.safetensors"
    assert card["name"] == card["recipe"] == name
    assert card["sha256"] == sha256(path) and card["bytes"] == path.stat().st_size < 14e6
    assert card["data"] == {"name": "Emoji-4", "split": "train", "sha256": emoji_hash()}
    settings, notes = (
        json.loads(json.dumps(told)) for told in (dataclasses.asdict(recipe), recipe.notes())
    )
    assert card | notes == card
    # a setting that came after the run has the value that the run had
    assert settings | card["arguments"] == settings
    assert card["steps"] == recipe.steps and card["torch"] and card["metrics"]
    cpu = re.fullmatch(r"cpu, (\d+) threads, \w+", card["hardware"])
    # an hour on two cores, or as much work on one
    assert 0 < card["minutes"] * (int(cpu[1]) if cpu else 2) <= 60 * 2
    assert card["licence"].startswith("MIT; trained on Emoji-4")
    assert card.get("borrows", {}) == checkpoints.named(recipe.borrows())
    assert card.get("helpers", {}) == checkpoints.named(recipe.helpers())


# models that draw, with fewer labels to ask for, and how many points a figure may be off, about
# three deviations: other labels are asked for, and another machine draws other pictures
DRAWING = {"dalle": {"questions": 30, "moves": 0}}
DRAWING |= {"diffusion": {}}  # the very labels of its card, and half of its groups
DRAWING |= {"latent_diffusion": {"questions": 40, "moves": 0}}
DRAWING |= {"prior": {}, "unclip": {"questions": 25}}
OFF = {"best_of_16": 20, "found": 15, "found_guided": 12, "copies": 5}
OFF |= {"set_aside_found": 12, "set_aside_style": 12, "unseen_found": 20}
OFF |= {"unseen_cosine": 0.03, "unseen_text_cosine": 0.003, "unseen_text_found": 1}
OFF |= {"nearer_than_its_group": 8, "found_without_prior": 15, "frechet_without_prior": 15}
OFF |= {"like_real": 0.05, "like_real_without_prior": 0.05}
OFF |= dict.fromkeys(("frechet", "frechet_codes", "frechet_real", "frechet_error"), 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_figures_of_a_card_are_measured_again(name, splits, tmp_path, monkeypatch):
    """All but those named after the `train` split, of which only a few pictures are used."""
    monkeypatch.setattr(engine, "cached", functools.partial(engine.cached, runs=tmp_path))
    monkeypatch.setattr(diffusion, "GROUPS", 2)
    recipe = dataclasses.replace(RECIPES[name], **DRAWING.get(name, {}))
    metrics = checkpoints.card(name)["metrics"]
    others = {key: checkpoints.load(other) for key, other in recipe.helpers().items()}
    train, given = splits["train"], splits
    if name not in DRAWING:
        given = splits | {"train": train.take(list(range(0, len(train), 500)))}
    found = recipe.evaluate(checkpoints.load(name), given, others)
    assert found.keys() == metrics.keys()
    kept = {key for key in metrics if not key.startswith("train_")}
    assert kept
    for key in kept:  # another machine rounds otherwise
        close = {"abs": OFF[key]} if name in DRAWING else {"rel": 0.01, "abs": 0.3}
        assert found[key] == pytest.approx(metrics[key], **close), key


def readme(folder) -> str:
    return " ".join((folder / "README.md").read_text(encoding="utf-8").split())


def test_the_readme_says_what_the_cards_say():
    metrics = {name: checkpoints.card(name)["metrics"] for name in SHIPPED}
    top1 = [metrics[name]["unseen_en_top1"] for name in ("clip", "clip_resnet")]
    assert "the CLIPs name {:.0f} and {:.0f} % right".format(*top1) in readme(ROOT)
    decibels = {name: f"{metrics[name]['psnr']:.0f} dB" for name in ("vq_vae", "dvae", "vqgan")}
    assert f"rebuilds unseen ones at {decibels['vq_vae']}" in readme(ROOT)
    assert f"the dVAE, with as many, at {decibels['dvae']}" in readme(ROOT)
    assert f"the VQGAN in 80 bytes, at {decibels['vqgan']}" in readme(ROOT)
    drawn = metrics["dalle"]
    said = "finds {found:g} % among 100 labels, {found_guided:g} % with guidance, and "
    said += "{best_of_16:g} % when the other CLIP picks the best of 16; for a thing in a "
    said += "style in which it was never shown, {set_aside_found:g} %"
    assert said.format(**drawn) in readme(ROOT)
    said = "it finds {found:g} %, and {found_guided:g} % with guidance"
    assert said.format(**metrics["diffusion"]) in readme(ROOT)
    said = "64 pixels wide, {found:g} % and {found_guided:g} %, and {set_aside_found:g} % of things"
    assert said.format(**metrics["latent_diffusion"]) in readme(ROOT)
    said = "for a label it finds {found:g} %, and {found_without_prior:g} % without the prior"
    assert said.format(**metrics["unclip"]) in readme(ROOT)
    said = "another of its group is in {nearer_than_its_group:g} % of all cases"
    assert said.format(**metrics["unclip"]) in readme(ROOT)
    minutes = sum(checkpoints.card(name)["minutes"] for name in SHIPPED)
    assert f"add up to {minutes / 60:.0f} hours" in readme(ROOT)


@pytest.mark.slow
def test_the_readmes_say_what_the_clips_do_without_skin_tones(splits):
    unseen, plain = splits["unseen"], splits["unseen"].where(skin_tone="none")
    rest = len(unseen) - len(plain)
    assert f"{rest} of those {len(unseen)} pictures are skin tones" in readme(CHECKPOINTS)
    labels = list(dict.fromkeys(unseen.table["label_en"]))
    targets = torch.tensor([labels.index(label) for label in plain.table["label_en"]])
    top1 = []
    for name in ("clip", "clip_resnet"):
        model = checkpoints.load(name)
        classes = zero_shot.class_vectors(model, labels, zero_shot.TEMPLATES["en"])
        scores = zero_shot.image_vectors(model, plain.pictures) @ classes.T
        top1.append(100 * zero_shot.top_k_accuracy(scores.cpu(), targets))
    assert "{:.0f} and {:.0f} % when skin tones are left out".format(*top1) in readme(ROOT)
    assert "`clip` names {:.1f} % and `clip_resnet` {:.1f} %".format(*top1) in readme(CHECKPOINTS)


def test_the_readme_lists_every_model(name):
    table = (CHECKPOINTS / "README.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` | " in table and f"| `python -m tools.pretrain {name}` |\n" in table


def test_what_is_shipped_stays_small():
    files = (path for path in CHECKPOINTS.parent.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < 112e6
