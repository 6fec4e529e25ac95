"""Where the course lies: a leaf that everything may import, of the standard library alone."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMOJI = ROOT / "assets" / "emoji"
PHOTOS = ROOT / "assets" / "photos"
CHECKPOINTS = ROOT / "assets" / "checkpoints"
RUNS = ROOT / "runs"  # what pretraining keeps until it is done
