"""The engine of the recipes: what is borrowed, encoded once, looked at, or no number any more."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import nn

from tools import pretrain
from utils import checkpoints, tensors, training
from utils.data import Pairs
from utils.recipes import RECIPES, engine


def toy_pairs(split: str = "train") -> Pairs:
    pictures = torch.arange(8 * 3 * 4 * 4).view(8, 3, 4, 4).remainder(255).to(torch.uint8)
    return Pairs(pictures, {"text": [f"{split} {i}" for i in range(8)]})


class Lender(nn.Module):
    """What is borrowed: it has a norm whose running mean must stand still."""

    def __init__(self, width: int):
        super().__init__()
        self.config = {"width": width}
        self.norm = nn.BatchNorm1d(width)
        self.layer = nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(self.norm(x))


class Borrower(nn.Module):
    def __init__(self, width: int, lender: Lender):
        super().__init__()
        self.config = {"width": width}
        self.own, self.lender = nn.Linear(width, width), lender

    def forward(self, x):
        return self.lender(self.own(x))


@dataclass(frozen=True, kw_only=True)
class Toy(engine.Recipe):
    steps: int = 4
    batch: int = 4
    breaks_at: int = -1  # the step whose loss is no number

    def borrows(self):
        return {"lender": "lender"}

    def build(self, train, others):
        return nn.ModuleDict({"model": Borrower(3, others["lender"]), "critic": nn.Linear(2, 1)})

    def shipped(self, learner):
        return learner["model"]

    def optimizers(self, learner):
        roles = {"matrix": ["own.weight"]}
        return [self.muon(learner["model"], roles), self.muon(learner["critic"], {"edge": ["*"]})]

    def losses(self, learner, train, others):
        x = train.pictures.flatten(2).float().mean(2) / 255  # (8, 3)

        def first(step):
            value = learner["model"](x).square().mean()
            return value * math.nan if step == self.breaks_at else value

        return [first, lambda step: learner["critic"](learner["model"](x).detach()).mean()]

    def look(self, model, splits, others):
        return {"size": round(model.own.weight.norm().item(), 3)}, torch.rand(2, 3, 4, 4)

    def evaluate(self, model, splits, others):
        return {"loss": 1.5}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a lender, where the engine finds toy pairs and two models by name."""
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    monkeypatch.setattr(engine, "load_emoji", toy_pairs)
    for name, kind in (("lender", "Lender"), ("toy", "Borrower")):
        monkeypatch.setitem(checkpoints.MODELS, name, f"{__name__}:{kind}")
    torch.manual_seed(1)
    lender = Lender(3)
    lender.norm.running_mean.fill_(0.25)
    checkpoints.save(lender, "lender", {}, tmp_path)
    return tmp_path


def run(place, **changes) -> dict:
    return engine.pretrain("toy", Toy(**changes), place, place / "runs", save_every=0)


def test_what_is_borrowed_is_named_and_not_stored(place):
    card = run(place)
    lender = checkpoints.card("lender", place)
    assert card["recipe"] == "toy" and card["metrics"] == {"loss": 1.5}
    told = checkpoints.card("toy", place)
    assert told["borrows"] == {"lender": {"name": "lender", "sha256": lender["sha256"]}}
    assert tensors.read(place / "toy.safetensors")[0].keys() == {"own.weight", "own.bias"}
    state = tensors.read(place / "runs" / "toy" / "state.safetensors")[0]
    assert not any("lender" in name for name in state)
    assert {"model.critic.weight", "model.model.own.weight"} <= state.keys()


def test_a_borrower_comes_back_whole_and_its_lender_untouched(place):
    run(place)
    toy, lender = (checkpoints.load(name, folder=place) for name in ("toy", "lender"))
    for name, value in lender.state_dict().items():
        assert torch.equal(toy.lender.state_dict()[name], value), name
    assert not any(p.requires_grad for p in toy.lender.parameters())
    assert not any(module.training for module in toy.modules())
    own = tensors.read(place / "toy.safetensors")[0]["own.weight"]
    assert torch.equal(toy.own.weight, own.float())


def test_another_lender_is_refused(place):
    run(place)
    torch.manual_seed(2)
    checkpoints.save(Lender(3), "lender", {}, place)
    with pytest.raises(ValueError, match=r"^toy was trained with another lender \(SHA-256 \w+…\)"):
        checkpoints.load("toy", folder=place)


@pytest.mark.parametrize("borrows", [[], "lender", {"lender": "x"}, {"lender": {"name": "lender"}}])
def test_a_card_that_does_not_say_what_is_borrowed_is_refused(borrows, place):
    run(place)
    path = place / "toy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"borrows": borrows}))
    with pytest.raises(ValueError) as error:
        checkpoints.load("toy", folder=place)
    assert "toy" in str(error.value) and str(error.value).endswith(".")


def test_a_run_is_looked_at_and_its_card_has_the_curve(place):
    told = run(place, steps=100)
    assert [int(step) for step in told["looks"]] == [1, 10, 30, 60, 100]
    sizes = [figures["size"] for figures in told["looks"].values()]
    assert len(set(sizes)) > 1  # measured while it was trained
    steps = [step for step, _ in told["losses"]]
    assert steps == [*range(2, 101, 2)]  # at most 60 points
    for step in told["looks"]:
        with Image.open(place / "runs" / "toy" / f"look-{step}.png") as picture:
            assert picture.size == (8, 4)
    with Image.open(place / "toy.webp") as rows:
        assert rows.size == (8, 4 * 5)


def test_the_curve_of_a_resumed_run_is_that_of_a_whole_one(place, monkeypatch):
    whole = run(place, steps=7)
    other = place / "other"
    checkpoints.save(checkpoints.load("lender", folder=place), "lender", {}, other)
    real, calls = training.save_state, []

    def stop(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        run(other, steps=7)
    resumed = run(other, steps=7)
    assert resumed["losses"] == whole["losses"] and resumed["looks"] == whole["looks"]
    one, two = ((folder / "toy.safetensors").read_bytes() for folder in (place, other))
    assert one == two


def test_a_loss_that_is_no_number_keeps_the_last_good_state(place):
    with pytest.raises(ValueError) as error:
        run(place, breaks_at=2)
    said = "toy: The loss is nan at step 2; lower the learning rate (the state of step 2 is kept)."
    assert str(error.value) == said
    state, metadata = tensors.read(place / "runs" / "toy" / "state.safetensors")
    assert json.loads(metadata["note"])["step"] == 2
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    assert not (place / "toy.safetensors").exists()


def test_data_is_encoded_once_for_what_made_it(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"codes": torch.arange(3) + len(calls)}

    first = engine.cached("codes", {"model": "a", "data": "b"}, make, tmp_path)
    again = engine.cached("codes", {"data": "b", "model": "a"}, make, tmp_path)
    assert len(calls) == 1 and torch.equal(first["codes"], again["codes"])
    engine.cached("codes", {"model": "a", "data": "c"}, make, tmp_path)
    assert len(calls) == 2
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:20])  # cut short: it is computed again
    engine.cached("codes", {"model": "a", "data": "b"}, make, tmp_path)
    assert len(calls) == 3


def test_several_models_are_trained_in_turn(monkeypatch, capsys, tmp_path):
    done = []

    def note(name, recipe, folder):
        done.append((name, recipe is RECIPES[name], folder))
        return {"metrics": {"figure": 12.5}}

    monkeypatch.setattr(engine, "pretrain", note)
    monkeypatch.setattr("sys.argv", ["pretrain", "clip_resnet", "clip", "--out", str(tmp_path)])
    pretrain.main()
    assert done == [("clip_resnet", True, tmp_path), ("clip", True, tmp_path)]
    assert capsys.readouterr().out.split("\n")[0] == "clip_resnet figure: 12.5"
