"""The device is chosen once, and the same seed gives the same numbers."""

import platform
import subprocess
import sys

import pytest
import torch

from utils import device
from utils.paths import ROOT


def test_the_environment_overrides_the_choice(monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    assert device.pick() == torch.device("cpu")


def test_the_fastest_device_present_is_chosen(monkeypatch):
    monkeypatch.delenv("WIP_DEVICE", raising=False)
    for cuda, mps, chosen in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert device.pick().type == chosen


@pytest.mark.parametrize("word", ["gpu", "CUDA", "cuda0", "cuda:x", " "])
def test_an_unknown_device_is_one_sentence(word, monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", word)
    with pytest.raises(ValueError) as error:
        device.pick()
    assert str(error.value) == f"WIP_DEVICE is {word!r}; set it to cpu, cuda or mps, or unset it"


@pytest.mark.parametrize("word", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_one_sentence(word, monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", word)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^WIP_DEVICE is '{word}', but torch finds none here"):
        device.pick()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    "kind, asked", [("cuda", "cuda.is_bf16_supported"), ("cpu", "cpu._is_avx512_bf16_supported")]
)
def test_bfloat16_only_where_the_machine_multiplies_it(kind, asked, monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(f"torch.{asked}", lambda there=there, **_: there)
        context = device.half_precision(torch.device(kind))
        assert isinstance(context, torch.autocast) == there
    assert not isinstance(device.half_precision(torch.device("mps")), torch.autocast)


def test_a_seed_fixes_layers_and_draws():
    def drawn() -> list:
        generator = device.seed(3)
        return [torch.nn.Linear(2, 2).weight.tolist(), torch.rand(4, generator=generator).tolist()]

    first = drawn()
    torch.rand(5)
    assert drawn() == first


def test_every_seed_and_step_has_numbers_of_its_own():
    draws = {
        tuple(torch.rand(3, generator=device.generator(seed, step)).tolist())
        for seed in range(20)
        for step in range(20)
    }
    assert len(draws) == 400


STEPS = """
import resource, torch
from utils import device

layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256), torch.nn.GELU()] * 4)
x = torch.ones(36_864, 256)  # 36 MB, as is each layer's output

def cleared(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        layers(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cleared(10)
print(cleared(10))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library of another kind")
def test_a_training_step_uses_freed_memory_again():
    assert device.keep_freed_memory()
    # in a process of its own: what other tests left in memory decides what is kept
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, cwd=ROOT)
    assert int(run.stdout) < 100_000, run.stderr  # without, 1.5 million
