"""What several test modules use."""

import contextlib

import pytest
import torch

from utils import device, widgets

device.keep_threads(torch.get_num_threads())  # else what a test sees depends on the load


@pytest.fixture
def in_float32(monkeypatch):
    """Nothing in bfloat16, where the machine has it in hardware: it blurs what is equal."""
    monkeypatch.setattr(device, "half_precision", lambda _: contextlib.nullcontext())


@pytest.fixture
def live(monkeypatch):
    """`widgets.live`, but it returns the HTML under the controls."""
    shown = []
    monkeypatch.setattr(widgets, "show", lambda box, about: shown.append(box))

    def start(controls, draw):
        widgets.live(controls, draw, "What it shows.")
        return shown[-1].children[-1]

    return start
