"""What several test modules use."""

import pytest

from utils import widgets


@pytest.fixture
def live(monkeypatch):
    """`widgets.live`, but it returns the HTML under the controls."""
    shown = []
    monkeypatch.setattr(widgets, "show", lambda box, about: shown.append(box))

    def start(controls, draw):
        widgets.live(controls, draw, "What it shows.")
        return shown[-1].children[-1]

    return start
