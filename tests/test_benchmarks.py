"""The benchmarks: fair turns, right medians, no race between unequal results, a whole page."""

import importlib.util
import inspect
import itertools
import re
from pathlib import Path

import pytest
import torch

from benchmarks import MODULES, clip, dalle, diffusion, loss, modules, report, vq_vae
from benchmarks.measure import FEWEST, WARM_UP, Row, agree, peak_bytes, race, weigh
from tests import tiny
from tests.helpers import noise
from utils.bricks.clip import contrastive_loss

CPU = torch.device("cpu")
PAGE = Path(report.__file__).with_name("README.md")


class Clock:
    """A clock that only runs tick: run(name) takes the next of that name's durations."""

    def __init__(self, **durations):
        self.now, self.log = 0.0, ""
        self.durations = {name: iter(values) for name, values in durations.items()}

    def __call__(self) -> float:
        return self.now

    def run(self, name: str):
        def ticks():
            self.log += name
            self.now += next(self.durations[name])

        return ticks


def clocked(ours, theirs, seconds=0.0):
    clock = Clock(a=ours, b=theirs)
    row = race("x", clock.run("a"), clock.run("b"), CPU, seconds, clock)
    return row, clock.log


# The race


def test_both_run_in_turns_and_take_turns_at_going_first():
    _, log = clocked([1.0] * 99, [1.0] * 99)
    warm_up, timed = log[: 2 * WARM_UP], log[2 * WARM_UP :]
    assert warm_up == "ab" * WARM_UP
    assert timed == ("abba" * FEWEST)[: 2 * FEWEST]


def test_medians_are_of_the_sides_and_of_the_pairs():
    # nine pairs; by pair theirs takes 1, 2, …, 9 times as long as ours
    ours = [99.0] * WARM_UP + [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    factors = [5, 1, 9, 2, 8, 3, 7, 4, 6]
    theirs = [0.5] * WARM_UP + [a * f for a, f in zip(ours[WARM_UP:], factors, strict=True)]
    row, _ = clocked(ours, theirs)
    assert row.ratio == 5.0  # the medians of the sides would give 96 / 16
    assert (row.ours, row.theirs) == (16_000.0, 96_000.0)
    assert row.half == (3.0, 7.0)
    assert row.unit == "ms"


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    slower = [1.0 + k for k in range(50)]
    row, _ = clocked(slower, [1.25 * s for s in slower])
    assert row.ratio == 1.25 and row.half == (1.25, 1.25)


@pytest.mark.parametrize("seconds, pairs", [(0.0, FEWEST), (30.0, 15), (31.0, 16)])
def test_the_race_ends_when_its_time_is_over(seconds, pairs):
    _, log = clocked([0.5] * 99, [1.5] * 99, seconds)
    assert len(log) == 2 * (WARM_UP + pairs)


# Equal results


def test_equal_results_pass():
    agree("loss", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00005]))
    agree("loss", torch.tensor(1.0), torch.tensor(1.05, dtype=torch.bfloat16), 0.1)


@pytest.mark.parametrize("other", [1.001, float("nan"), float("inf")])
def test_unequal_results_are_refused(other):
    with pytest.raises(ValueError, match="logits: the results are .* apart, more than 1e-04"):
        agree("logits", torch.tensor([1.0, 1.0]), torch.tensor([1.0, other]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"logits: the shapes are \(3, 3\) and \(3, 1\)"):
        agree("logits", torch.zeros(3, 3), torch.zeros(3, 1))


# Memory


def test_the_peak_counts_what_is_held_at_one_moment():
    def run():
        first = torch.zeros(2**20)  # 4 MB
        second = first + 1
        del first, second
        return torch.zeros(2**18) + 1  # 1 + 1 MB

    assert peak_bytes(run, CPU) == pytest.approx(8 * 2**20, abs=1000)


def test_what_was_held_before_does_not_count():
    held = torch.zeros(2**20)
    assert peak_bytes(lambda: held.sum(), CPU) < 1000
    assert peak_bytes(lambda: None, CPU) == 0


def test_the_memory_ratio_is_theirs_by_ours():
    row = weigh("x", lambda: torch.zeros(2**18), lambda: torch.zeros(2**19), CPU)
    assert (row.ours, row.theirs, row.ratio, row.unit) == (1.0, 2.0, 2.0, "MB")


# CLIP and the loss

RECIPE = tiny.MODELS["clip"].recipe


def test_the_twin_has_the_same_weights_and_runs_as_its_library_likes():
    ours = tiny.model("clip")
    model = clip.twin(ours)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32


def test_every_row_of_clip_is_measured():
    rows = list(clip.rows(CPU, 0.0, RECIPE, tiny.pairs(), size=8))
    names = list(clip.precisions(CPU))
    assert names[0] == "float32"
    assert [row.what for row in rows] == [
        *(f"training step of CLIP, 8 pairs, {name}" for name in names),
        *(f"logits of CLIP, 8 pictures × 8 prompts, {name}" for name in names),
    ]
    assert all(row.ours > 0 and row.theirs > 0 and row.half for row in rows)


def test_another_model_is_not_raced(monkeypatch):
    twin = clip.twin

    def other(ours):
        model = twin(ours)
        model.logit_scale.data += 0.01
        return model

    monkeypatch.setattr(clip, "twin", other)
    with pytest.raises(ValueError, match="loss in float32: the results are"):
        next(clip.rows(CPU, 0.0, RECIPE, tiny.pairs(), size=8))


def test_a_training_step_changes_every_weight():
    ours = tiny.model("clip")
    pictures, ids = clip.batch(tiny.pairs(), ours, 8)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}

    def our_loss():
        vectors = ours.encode_image(pictures), ours.encode_tokens(ids)
        return contrastive_loss(*vectors, ours.logit_scale.exp())

    optimizer = clip.training.adamw(ours, 1e-3, 0.1)
    precision, _ = clip.precisions(CPU)["float32"]
    clip.training_step(optimizer, our_loss, precision)()
    still = [name for name, p in ours.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_the_loss_is_measured_in_time_and_memory():
    rows = list(loss.rows(CPU, 0.0, (8, 64), dim=4))
    assert [row.unit for row in rows] == ["ms", "ms", "MB", "MB"]
    assert rows[1].what == "loss and gradients, 64 pairs"
    assert rows[3].what == "loss and gradients, 64 pairs: peak memory"
    matrix = 64**2 * 4 / 2**20  # plain: logits, two log-softmaxes, gradients of their size
    assert 3 * matrix < rows[3].theirs < 6 * matrix


def test_another_loss_is_not_raced(monkeypatch):
    monkeypatch.setattr(loss, "contrastive_loss", lambda *a: 2 * contrastive_loss(*a))
    with pytest.raises(ValueError, match="loss of 8 pairs: the results are"):
        next(loss.rows(CPU, 0.0, (8,), dim=4))


# The codebook and DALL·E


def test_the_codebook_is_measured_and_moves_as_theirs():
    rows = list(vq_vae.rows(CPU, 0.0, 8, 4, batch=3, sides=(2, 4)))
    assert [row.what for row in rows] == [
        f"codebook, forward and backward, 3 × {side} × {side} latents" for side in (2, 4)
    ]
    assert all(row.ours > 0 and row.theirs > 0 and row.half for row in rows)
    ours, theirs = vq_vae.twins(torch.randn(8, 4))
    before = ours.vectors.clone()
    for step in range(5):  # not only in the first step, which is compared
        z = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(step))
        ours(z), theirs(z)
        torch.testing.assert_close(ours.vectors, theirs._codebook.embed[0], atol=1e-5, rtol=0)
    assert not torch.equal(ours.vectors, before)


def test_another_codebook_is_not_raced(monkeypatch):
    real = vq_vae.twins

    def other(vectors):
        ours, theirs = real(vectors)
        ours.vectors[:] += 0.1
        return ours, theirs

    monkeypatch.setattr(vq_vae, "twins", other)
    with pytest.raises(ValueError, match="vectors of 3 × 2 × 2 latents: the results are"):
        next(vq_vae.rows(CPU, 0.0, 8, 4, batch=3, sides=(2,)))


DRAWING = {"recipe": tiny.MODELS["dalle"].recipe, "autoencoder": tiny.MODELS["vqgan_l2"].recipe}


def test_drawing_and_attention_are_measured():
    rows = list(dalle.rows(CPU, 0.0, **DRAWING, pairs=tiny.pairs(), candidates=2, sides=(2, 3)))
    assert [row.what for row in rows] == [
        "1 picture of DALL·E, against no cache",
        "4 pictures of DALL·E, against no cache",
        "2 candidates of DALL·E, against one by one",
        *(
            f"attention of {side} × {side} codes, {kind} mask"
            for kind in ("row", "convolution")
            for side in (2, 3)
        ),
    ]
    assert all(row.ours > 0 and row.theirs > 0 and row.half for row in rows)


def test_a_cache_that_draws_otherwise_is_not_raced(monkeypatch):
    monkeypatch.setattr(dalle.DALLE, "newest", lambda self, ids, codes, caches: (
        noise(len(ids), 32, seed=codes.shape[1] + (caches is None))
    ))  # fmt: skip
    with pytest.raises(ValueError, match="codes with and without a cache: the results are"):
        next(dalle.rows(CPU, 0.0, **DRAWING, pairs=tiny.pairs()))


def test_the_model_that_draws_is_no_identity():
    model = dalle.moved(**DRAWING, pairs=tiny.pairs())
    assert all(
        block.fc2.weight.any() and block.attention.out.weight.any() for block in model.blocks
    )


NOISE = {
    "recipe": tiny.MODELS["latent_diffusion"].recipe,
    "pixel": tiny.MODELS["diffusion"].recipe,
    "clip": tiny.MODELS["clip_resnet"].recipe,
    "autoencoder": tiny.MODELS["kl"].recipe,
    "groups": 2,
    "sizes": (3, 2),
    "sides": (32, 64),
}


def test_the_u_net_is_measured_against_one_of_its_size():
    rows = list(diffusion.rows(CPU, 0.0, **NOISE, widths=(12, 24), pairs=tiny.pairs()))
    assert [row.what for row in rows] == [
        "training step of the U-Net, 3 latents, float32",
        "2 latents drawn in 25 steps with guidance",
        "a step on 2 pictures of 32 px, in latents against in pixels",
        "a step on 2 pictures of 64 px, in latents against in pixels",
    ]
    assert all(row.ours > 0 and row.theirs > 0 and row.half for row in rows)


def test_a_u_net_of_another_size_is_not_raced():
    with pytest.raises(ValueError, match="ours has .+ parameters, theirs .+; choose other widths"):
        next(diffusion.rows(CPU, 0.0, **NOISE, widths=(8, 8), pairs=tiny.pairs()))


# The page


def parsed(section: str) -> list[Row]:
    """The rows of a section's table, read back."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, rule, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert header == ["what", "ours", "theirs", "ratio", "middle half"]
    assert all(re.fullmatch(r"-+:?|-+:", cell) for cell in rule)
    rows = []
    for what, *sides, ratio, half in body:
        (ours, unit), (theirs, other) = (side.replace(",", "").split() for side in sides)
        assert unit == other
        low_and_high = tuple(map(float, half.split("–"))) if half else None
        rows.append(Row(what, unit, float(ours), float(theirs), float(ratio), low_and_high))
    return rows


def test_the_table_reads_back():
    rows = [
        Row("a step, 64 pairs", "ms", 1234.56, 2469.1, 2.0, (1.9, 2.125)),
        Row("memory", "MB", 0.5, 0.25, 0.5),
    ]
    assert parsed(report.page({loss: rows}, "A machine.")) == [
        Row("a step, 64 pairs", "ms", 1234.6, 2469.1, 2.0, (1.9, 2.12)),
        Row("memory", "MB", 0.5, 0.2, 0.5),
    ]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.TITLE)
def test_a_module_brings_its_section(module):
    first, second, *settings = inspect.signature(module.rows).parameters.values()
    assert (first.name, second.name) == ("device", "seconds")
    assert all(setting.default is not setting.empty for setting in settings)
    assert module.METHOD.startswith("- ") and module.METHOD.endswith(".\n")
    assert max(map(len, module.METHOD.splitlines())) <= 100
    assert all(importlib.util.find_spec(name) for name in module.LIBRARIES)
    section = report.page({module: []}, "A machine.").split("## ")[1]
    assert section.startswith(module.TITLE) and section.endswith(f"\n{module.METHOD}\n")


def test_every_module_is_on_the_page():
    files = {path.stem for path in PAGE.parent.glob("[!_]*.py")}
    assert files - {"measure", "report"} == set(MODULES)
    assert len({module.TITLE for module in modules()}) == len(MODULES)


def test_the_page_names_machine_versions_and_date():
    text = report.page({module: [] for module in modules()}, report.machine(CPU))
    date = r"Measured on 20\d\d-\d\d-\d\d, device (cpu|cuda|mps)"
    assert re.search(date, text)
    assert f"torch {torch.__version__}, transformers " in text
    assert " cores of which torch uses " in text
    assert "{" not in text and "}" not in text
    assert report.processor() in text and len(report.processor()) > 2


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "README.md"
    report.write("first\n", path)
    with pytest.raises(UnicodeEncodeError):
        report.write("second \ud800\n", path)
    assert path.read_bytes() == b"first\n"
    report.write("third\n", path)
    assert path.read_bytes() == b"third\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def shipped() -> dict:
    """Each module with the rows that the shipped page has of it."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:-1]
    return dict(zip(modules(), map(parsed, sections), strict=True))


def test_the_shipped_page_is_what_these_benchmarks_write(shipped):
    text = PAGE.read_text(encoding="utf-8")
    (machine,) = re.findall("^Measured on 20.*$", text, re.MULTILINE)
    older = "benchmarks/README.md is older than the benchmarks: make bench"
    assert report.page(shipped, machine) == text, older
    assert "torch " in machine and "transformers " in machine


def test_the_shipped_page_has_whole_rows(shipped):
    for module, beginning, count in [
        (clip, "training step of CLIP, ", 1),
        (clip, "logits of CLIP, ", 1),
        (loss, "loss and gradients, ", 6),
        (vq_vae, "codebook, forward and backward, ", 2),
        (dalle, "1 picture of DALL·E, ", 1),
        (dalle, "4 pictures of DALL·E, ", 1),
        (dalle, f"{dalle.CANDIDATES} candidates of DALL·E, ", 1),
        (dalle, "attention of ", 6),
        (diffusion, "training step of the U-Net, ", 1),
        (diffusion, f"{diffusion.DRAWN} latents drawn in 25 steps ", 1),
        (diffusion, "a step on ", 3),
    ]:
        assert sum(row.what.startswith(beginning) for row in shipped[module]) >= count
    assert all(shipped.values())
    for row in itertools.chain(*shipped.values()):
        assert row.ours > 0 and row.theirs > 0 and row.ratio > 0
        if row.unit == "ms":
            low, high = row.half
            assert low <= row.ratio <= high
        elif row.ours > 10:  # rounding is small there
            assert row.ratio == pytest.approx(row.theirs / row.ours, abs=0.02)
