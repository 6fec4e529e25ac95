"""Plumbing of the course: data, training, checkpoints, plots, widgets, checks, building.

What a learner would want to know in order to understand CLIP or diffusion is not here;
it is in a lesson, and from there in `utils.bricks`.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the hub's library is imported
