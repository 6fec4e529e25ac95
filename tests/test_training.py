"""The training loop: schedule, optimizers, and a state that loses nothing."""

import json
import math
import re

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from utils import device as devices
from utils import tensors, training
from utils.recipes import clip
from utils.tensors import CheckpointError
from utils.training import (
    Average,
    MuonAdamW,
    NotFinite,
    adamw,
    by_role,
    cosine,
    load_state,
    run,
    save_state,
    trapezoid,
)


class Net(nn.Module):
    """A little of everything: convolution, norm with buffers, dropout, matrix, scalar."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        x = self.norm(self.conv(self.pixels(x).relu())).mean((2, 3))
        return self.out(self.drop(x)) * self.scale


ROLES = {"matrix": ["conv.weight", "out.weight"], "edge": ["pixels.weight"]}


def new(seed: int = 0):
    torch.manual_seed(seed)
    net = Net()
    return net, MuonAdamW(by_role(net, ROLES), 1e-2, 2e-2, 0.1), Average(net, 0.99)


def listed(owners):
    """As a state has them: a model, its optimizers and its average."""
    net, optimizer, average = owners
    return net, [optimizer], average


def a_loss(net):
    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        return net(torch.randn(8, 3, 8, 8, generator=generator)).square().mean()

    return loss


def train(net, optimizer, average, stop: int, start: int = 0, steps: int = 8) -> None:
    steps_done = run(optimizer, a_loss(net), steps, seed=4, start=start, warmup=2)
    for step, _ in steps_done:
        average.update(net, step)
        if step + 1 == stop:
            return


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [cosine(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) < 1
    assert all(a < b for a, b in zip(rates[:8], rates[1:9], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[50] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert cosine(0, 5, 0) == pytest.approx(1)


def test_adamw_leaves_gains_and_biases_undecayed():
    net = Net()
    decayed, others = adamw(net, 1e-3, 0.2).param_groups
    assert decayed["betas"] == others["betas"] == (0.9, 0.98)
    assert decayed["weight_decay"] == 0.2 and others["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {0, 1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("name, tower", [("clip", "vit"), ("clip_resnet", "resnet")])
def test_every_parameter_has_one_optimizer(name, tower):
    model = tiny.model(name)
    optimizer = MuonAdamW(by_role(model, clip.ROLES[tower]), 1e-3, 1e-2, 0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == sum(p.numel() for p in model.parameters())
    memory = {p.data_ptr() for p in held}
    assert memory == {p.data_ptr() for p in model.parameters()}


def test_muon_has_the_hidden_matrices_only():
    model = tiny.model("clip")
    roles = by_role(model, clip.ROLES["vit"])
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, edges, gains = ({names[id(p)] for p in roles[r]} for r in ("matrix", "edge", "gain"))
    assert "image_tower.blocks.0.attention.qkv.weight" in matrices
    assert "text_projection.weight" in matrices
    positions = {f"{tower}_tower.positions" for tower in ("image", "text")}
    assert edges == {"image_tower.patch.weight", "text_tower.tokens.weight", *positions}
    assert {"logit_scale", "image_tower.class_token"} <= gains
    assert all(re.search("norm|bias|class_token|logit_scale", name) for name in gains)
    assert len(matrices | edges | gains) == len(names)


@pytest.mark.parametrize(
    "roles, said",
    [
        ({"matrix": ["conv.weight", "out.weight"]}, "pixels.weight has no role"),
        (ROLES | {"edge": ["pixels.weight", "head.*"]}, "no parameter is named like 'head.*'"),
        (ROLES | {"edge": ["pixels.weight", "conv.*"]}, "conv.weight is both 'matrix' and 'edge'"),
        (ROLES | {"gain": ["norm.bias"]}, "no parameter is named like 'norm.bias'"),
    ],
)
def test_a_forgotten_or_doubled_role_is_named(roles, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        by_role(Net(), roles)


def test_a_role_that_no_optimizer_knows_is_named():
    with pytest.raises(ValueError, match="'head' is none of matrix, edge and gain"):
        MuonAdamW({"head": []}, 1e-3, 1e-2, 0.1)


def test_frozen_and_unused_weights_stay_as_they_are():
    net, _, _ = new()
    net.conv.requires_grad_(False)
    roles = {"matrix": ["out.weight"], "edge": ["pixels.weight"]}
    optimizer = MuonAdamW(by_role(net, roles), 1e-2, 2e-2, 0.1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.out(torch.ones(2, 8)).sum().backward()  # the pixels' layer takes no part
    optimizer.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"out.weight", "out.bias"}


@pytest.mark.parametrize("fast", [True, False])
def test_a_matrix_moves_as_with_torch_own_muon(fast, monkeypatch):
    """Where bfloat16 is multiplied in software, in float32: ten times faster, and nearer."""
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: fast)
    torch.manual_seed(0)
    net = nn.Linear(6, 4, bias=False)
    twin = nn.Parameter(net.weight.detach().clone())
    ours = MuonAdamW({"matrix": [net.weight]}, 1e-3, 0.02, 0.1)
    theirs = torch.optim.Muon([twin], lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for weight, optimizer in ((net.weight, ours), (twin, theirs)):
            optimizer.zero_grad()
            (weight.sin() * torch.arange(6.0)).sum().backward()
            with monkeypatch.context() as patch:
                if optimizer is theirs and not fast:
                    patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
                optimizer.step()
    assert torch.equal(net.weight, twin) if fast else (net.weight - twin).abs().max() < 1e-7


def test_without_hardware_for_bfloat16_no_step_multiplies_it(monkeypatch):
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            dtypes.update(x.dtype for x in args if isinstance(x, torch.Tensor))
            return function(*args, **(kwargs or {}))

    for fast in (True, False):
        monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device, fast=fast: fast)
        net, optimizer, _ = new()
        a_loss(net)(0).backward()
        dtypes = set()
        with Seen():
            optimizer.step()
        assert (torch.bfloat16 in dtypes) == fast


def test_a_gradient_does_not_outlive_its_step():
    net, optimizer, _ = new()
    a_loss(net)(0).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_training_lowers_the_loss_and_a_second_run_starts_from_the_peaks():
    net, optimizer, _ = new()
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = [value for _, value in run(optimizer, a_loss(net), 40)]
    assert losses[-1] < 0.5 * losses[0]
    next(run(optimizer, a_loss(net), 40, warmup=0))
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_a_trapezoid_rises_stays_and_falls():
    rates = [trapezoid(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:61] == pytest.approx([1.0] * 52)
    assert rates[80] == pytest.approx(0.5) and rates[100] == 0


def test_two_losses_train_their_optimizers_in_turn():
    """A critic's loss sees the generator after its step, and moves the critic alone."""
    one, two = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (one, two)]
    seen, start = [], one.weight.detach().clone()

    def first(step):
        return one.weight.square().sum()

    def second(step):
        seen.append(one.weight.detach().clone())
        return two.weight.square().sum() + 5

    (_, value), *_ = run(optimizers, [first, second], 1, warmup=0)
    assert value == pytest.approx(start.square().sum().item())  # the first loss is shown
    torch.testing.assert_close(seen[0], 0.8 * start)
    assert torch.equal(one.weight, seen[0])


def test_hooks_run_before_and_after_every_step():
    net, optimizer, _ = new()
    seen = []

    def note(when):
        return lambda: seen.append((when, net.scale.item()))

    for _ in run(
        optimizer, a_loss(net), 3, warmup=0, before_step=note("b"), after_step=note("a")
    ):
        pass
    assert "".join(when for when, _ in seen) == "bababa"
    assert seen[0][1] == 1.0 and seen[1][1] != 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_a_sentence(value):
    net, optimizer, _ = new()
    before = net.out.weight.clone()
    with pytest.raises(NotFinite, match=rf"^The loss is {value} at step 0; lower .+\.$"):
        next(run(optimizer, lambda step: net.out.weight.sum() * value, 3))
    assert torch.equal(net.out.weight, before)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    net, optimizer, average = new()
    path = tmp_path / "s.safetensors"
    save_state(path, net, [optimizer], average, {"step": 1})
    before = path.read_bytes()
    with torch.no_grad():
        net.out.bias[0] = math.nan
    with pytest.raises(NotFinite, match=r"^out.bias holds what is no number; lower .+\.$"):
        save_state(path, net, [optimizer], average, {"step": 2})
    assert path.read_bytes() == before


def test_an_average_is_lent_to_the_model_and_given_back():
    net, _, average = new()
    net.train().drop.eval()
    with torch.no_grad():
        net.scale.fill_(5.0)
    with average.applied(net):
        assert net.scale.item() == 1.0 and not net.training
    assert net.scale.item() == 5.0 and net.training and not net.drop.training


def test_what_is_borrowed_is_neither_averaged_nor_saved(tmp_path):
    net, optimizer, _ = new()
    net.lent = nn.Linear(2, 2).requires_grad_(False)
    average = Average(net, 0.9, [net.lent])
    path = tmp_path / "s.safetensors"
    save_state(path, net, [optimizer], average, {"step": 0})
    names = [*average.values, *tensors.read(path)[0]]
    assert names and not any("lent" in name for name in names)
    with torch.no_grad():
        net.lent.weight.fill_(3.0)
    load_state(path, net, [optimizer], average)
    assert (net.lent.weight == 3).all()


def test_fit_prints_one_line_that_every_machine_prints(capsys):
    net, _, _ = new()
    plain, modes = a_loss(net.eval()), []

    def loss(step):
        modes.append(net.training)
        return plain(step)

    losses = training.fit(net, loss, 4, name="a little net")
    assert modes == [True] * 4
    assert len(losses) == 4 and not net.training
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "a little net: 4 steps done"


def test_the_curve_has_at_most_a_few_hundred_points():
    svg = training.svg_curve([1 / (i + 1) for i in range(5000)], 6000)
    assert svg.count(",") < 300 and "step 5000 of 6000" in svg and "nan" not in svg
    assert "loss 0.000" in training.svg_curve([0.0], 1)


def test_an_average_follows_and_counts_whole_numbers():
    net, _, average = new()
    net.norm.num_batches_tracked.fill_(7)
    with torch.no_grad():
        net.scale.fill_(2.0)
    average.update(net, 0)
    assert average.values["norm.num_batches_tracked"].item() == 7
    assert average.values["scale"].item() == pytest.approx(1 * 0.1 + 2 * 0.9)  # trusts it early
    average.update(net, 10**6)
    assert average.values["scale"].item() == pytest.approx(1.9 * 0.99 + 2 * 0.01)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_resumed_run_has_the_same_bits(stop, tmp_path):
    whole = new()
    train(*whole, stop=8)
    first = new()
    train(*first, stop=stop)
    save_state(tmp_path / "s.safetensors", *listed(first), {"step": stop, "words": "狐狸"})
    second = new(seed=9)  # all of it comes from the file
    note = load_state(tmp_path / "s.safetensors", *listed(second))
    assert note == {"step": stop, "words": "狐狸"}
    train(*second, stop=8, start=stop)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name
        assert torch.equal(second[2].values[name], whole[2].values[name]), name
    for name, value in whole[1].tensors().items():
        assert torch.equal(second[1].tensors()[name], value), name


@pytest.mark.parametrize("step", ["save_file", "os.fsync", "os.replace"])
def test_a_state_is_the_old_one_or_the_new(step, tmp_path, monkeypatch):
    path, owners = tmp_path / "s.safetensors", new()
    train(*owners, stop=2)
    save_state(path, *listed(owners), {"step": 2})
    train(*owners, stop=3, start=2)
    with monkeypatch.context() as patch:
        patch.setattr(f"utils.tensors.{step}", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_state(path, *listed(owners), {"step": 3})
    assert load_state(path, *listed(new())) == {"step": 2}
    save_state(path, *listed(owners), {"step": 3})
    assert load_state(path, *listed(new())) == {"step": 3}


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_cut_state_is_named(keep, tmp_path):
    path, owners = tmp_path / "state.safetensors", new()
    train(*owners, stop=1)
    save_state(path, *listed(owners), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="^state.safetensors is not a whole .+[.]$"):
        load_state(path, *listed(new()))


@pytest.mark.parametrize("part", ["model", "average", "optimizer0"])
def test_a_changed_state_is_refused(part, tmp_path):
    path, owners = tmp_path / "state.safetensors", new()
    train(*owners, stop=2)
    save_state(path, *listed(owners), {"step": 2})
    named, metadata = tensors.read(path)
    name = next(n for n in named if n.startswith(part) and named[n].is_floating_point())
    lost = {k: v for k, v in named.items() if k != name}
    zeros = named | {name: torch.zeros_like(named[name]) - 1}
    other = metadata | {"note": json.dumps({"step": -3})}
    for changed, told in ((lost, metadata), (zeros, metadata), (named, other)):
        tensors.write(changed, path, told)
        with pytest.raises(ValueError, match="^state.safetensors is damaged"):
            load_state(path, *listed(new()))


def test_a_state_of_another_model_is_refused(tmp_path):
    path, owners = tmp_path / "state.safetensors", new()
    save_state(path, *listed(owners), {})
    other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="^state.safetensors holds another model$"):
        load_state(path, other, [MuonAdamW({"gain": [other.bias]}, 1, 1, 0)], Average(other, 0.9))
