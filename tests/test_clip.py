"""CLIP: parity with transformers, laws of the loss, the doors to and from the hub."""

import json
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, pipeline

from tests import helpers, tiny
from tests.tiny import BAG, DIM, PROMPTS, RESNET, TRANSFORMER, VIT
from utils import device, pictures
from utils.bricks.clip import CLIP, contrastive_loss, preprocess
from utils.doors.transformers import from_transformers, their_config, to_transformers
from utils.recipes import engine
from utils.tensors import CheckpointError


def small(seed: int = 0, image: dict = VIT, text: dict = TRANSFORMER) -> CLIP:
    return tiny.model(tiny.clip(image, text), seed)


def theirs(clip: CLIP, **changes) -> CLIPModel:
    """transformers' CLIP with our weights."""
    config = CLIPConfig(**their_config(clip))
    for tower in (config.text_config, config.vision_config):
        tower.update(changes)
    model = CLIPModel(config).eval()
    model.load_state_dict(to_transformers(clip.state_dict()))
    return model


def forward_theirs(model: CLIPModel, clip: CLIP, batch, prompts, **options):
    return model(
        input_ids=clip.tokenizer(prompts),
        pixel_values=preprocess(batch, clip.image_size),
        **options,
    )


def units(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


# The whole model against transformers


@pytest.mark.parametrize("seed", range(4))
def test_logits_loss_and_every_gradient_are_those_of_transformers(seed):
    clip = small(seed).train()
    reference = theirs(clip)
    batch = torch.rand(len(PROMPTS), 3, 32, 32)
    out = forward_theirs(reference, clip, batch, PROMPTS, return_loss=True)
    images, texts = clip.encode_image(batch), clip.encode_text(PROMPTS)
    loss = contrastive_loss(images, texts, clip.logit_scale.exp())
    torch.testing.assert_close(clip(batch, PROMPTS), out.logits_per_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    out.loss.backward()
    ours = to_transformers({name: p.grad for name, p in clip.named_parameters()})
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_pictures_and_prompts_need_not_be_equally_many():
    clip = small().eval()
    batch = torch.rand(3, 3, 32, 32)
    wanted = forward_theirs(theirs(clip), clip, batch, PROMPTS).logits_per_image
    assert wanted.shape == (3, len(PROMPTS))
    torch.testing.assert_close(clip(batch, PROMPTS), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ours, other", [("quick_gelu", "gelu"), ("gelu", "quick_gelu")])
def test_the_wrong_activation_is_noticed(ours, other):
    words = {"activation": ours}
    clip = small(image=VIT | words, text=TRANSFORMER | words).eval()
    batch = torch.rand(6, 3, 32, 32)
    right = forward_theirs(theirs(clip), clip, batch, PROMPTS).logits_per_image
    wrong = forward_theirs(theirs(clip, hidden_act=other), clip, batch, PROMPTS).logits_per_image
    torch.testing.assert_close(clip(batch, PROMPTS), right, atol=1e-5, rtol=1e-5)
    assert (clip(batch, PROMPTS) - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_weights_go_there_and_come_back(seed):
    clip = small(seed)
    state = clip.state_dict()
    back = from_transformers(to_transformers(state), list(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_their_weights_come_here():
    other = theirs(small(1))
    torch.manual_seed(2)
    for parameter in other.parameters():
        parameter.data.normal_(std=0.3)
    clip = small(3).eval()
    clip.load_state_dict(from_transformers(other.state_dict(), list(clip.state_dict())))
    batch = torch.rand(4, 3, 32, 32)
    wanted = forward_theirs(other, clip, batch, PROMPTS).logits_per_image
    torch.testing.assert_close(clip(batch, PROMPTS), wanted, atol=1e-4, rtol=1e-5)


def test_preprocessing_is_transformers_own(tmp_path):
    clip = small()
    clip.save_pretrained(tmp_path)
    processor = CLIPProcessor.from_pretrained(tmp_path).image_processor
    for height, width in [(32, 32), (500, 333), (45, 90), (20, 20)]:
        rng = torch.Generator().manual_seed(0)
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng)
        wanted = processor(pictures.to_pil(picture), return_tensors="pt").pixel_values
        seen = preprocess(picture.unsqueeze(0) / 255, 32)
        assert seen.shape == wanted.shape == (1, 3, 32, 32)
        # noise has the largest differences: theirs rounds and clips between two passes,
        # and one pixel off would give 1 or more
        assert (seen - wanted).abs().max() < 0.2


# Structure


def test_projections_have_no_bias_and_the_scale_starts_at_one_over_007():
    clip = CLIP(VIT, TRANSFORMER, [], DIM)
    assert clip.image_projection.bias is None and clip.text_projection.bias is None
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert clip.logit_scale.requires_grad and clip.logit_scale.ndim == 0


@pytest.mark.parametrize(
    "value, kept", [(-1.0, 0.0), (0.5, 0.5), (4.0, 4.0), (7.0, math.log(100))]
)
def test_the_scale_is_clamped_between_1_and_100(value, kept):
    clip = small()
    clip.logit_scale.data.fill_(value)
    clip.clamp_scale()
    assert clip.logit_scale.item() == pytest.approx(kept)


@pytest.mark.parametrize("name", ["clip", "clip_resnet", "clip_bag", "clip_resnet_bag"])
def test_every_pair_of_towers_gives_unit_vectors(name):
    clip = tiny.model(name).eval()
    for size in (32, 50):
        vectors = clip.encode_image(torch.rand(3, 3, size, size + 4))
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    vectors = clip.encode_text(PROMPTS)
    assert vectors.shape == (len(PROMPTS), DIM)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(PROMPTS)))


def test_grouping_prompts_by_length_changes_nothing():
    clip = small().eval()
    prompts = [("fox " * (i % 9)).strip() + str(i) for i in range(70)]
    ids = clip.tokenizer(prompts)
    grouped = clip.encode_tokens(ids)  # 64 prompts or more
    alone = torch.cat([clip.encode_tokens(ids[i : i + 1]) for i in range(70)])
    torch.testing.assert_close(grouped, alone, atol=1e-6, rtol=1e-5)
    shuffled = torch.randperm(70)
    torch.testing.assert_close(
        clip.encode_tokens(ids[shuffled]), grouped[shuffled], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("count", [5, 80])
def test_what_stands_after_end_does_not_matter(count):
    clip = small().eval()
    ids = clip.tokenizer((PROMPTS[:4] * 20)[:count])
    ends = (ids == clip.tokenizer.end).int().argmax(-1, keepdim=True)
    noise = torch.randint(0, clip.tokenizer.start, ids.shape)
    changed = torch.where(torch.arange(ids.shape[1]) > ends, noise, ids)
    assert not torch.equal(ids, changed)
    assert torch.equal(clip.encode_tokens(ids), clip.encode_tokens(changed))


# The loss


def test_the_loss_of_two_pairs_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    # logits at scale 5: [[4, 3], [3, 4]]; each row and column errs by ln(1 + e⁻¹)
    loss = contrastive_loss(images, texts, torch.tensor(5.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_the_loss_is_two_cross_entropies():
    for n, scale in [(1, 3.0), (7, 1.0), (64, 14.3), (200, 100.0)]:
        images, texts, s = units(n, 16, 1), units(n, 16, 2), torch.tensor(scale)
        logits, targets = s * images @ texts.T, torch.arange(n)
        plain = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        loss = contrastive_loss(images, texts, s)
        torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(contrastive_loss(texts, images, s), loss)


def test_gradients_follow_the_formula():
    n, scale = 32, torch.tensor(14.3, requires_grad=True)
    images, texts = units(n, 8, 1).requires_grad_(), units(n, 8, 2).requires_grad_()
    contrastive_loss(images, texts, scale).backward()
    with torch.no_grad():
        i, t, s = (x.double() for x in (images, texts, scale))
        logits = s * i @ t.T
        # dL/dlogits = (softmax of the row + softmax of the column)/2N − 1/N on the diagonal
        slope = (logits.softmax(1) + logits.softmax(0)) / (2 * n) - torch.eye(n) / n
        wanted = [s * slope @ t, s * slope.T @ i, (slope * (i @ t.T)).sum()]
    for value, formula in zip((images, texts, scale), wanted, strict=True):
        torch.testing.assert_close(value.grad.double(), formula, atol=1e-6, rtol=1e-4)


def test_pairs_may_be_shuffled_together_but_not_apart():
    images, texts, s = units(16, 8, 1), units(16, 8, 2), torch.tensor(10.0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    loss = contrastive_loss(images, texts, s)
    torch.testing.assert_close(contrastive_loss(images[order], texts[order], s), loss)
    assert abs(contrastive_loss(images[order], texts, s) - loss) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_stays_float32_under_autocast(dtype):
    images, texts = units(64, 8, 1).to(dtype), units(64, 8, 2).to(dtype)
    wanted = contrastive_loss(images, texts, torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)


def test_the_first_loss_is_ln_n_only_for_equal_vectors():
    n, s = 512, torch.tensor(1 / 0.07)
    same = units(1, 64).expand(n, 64)
    assert contrastive_loss(same, same, s).item() == pytest.approx(math.log(n), abs=1e-4)
    losses = [contrastive_loss(units(n, 64, k), units(n, 64, k + 9), s) for k in range(5)]
    for loss in losses:  # measured: 7.83
        assert 7.6 < loss < 8.1 and loss > math.log(n) + 1


def test_a_scale_of_1_cannot_get_below_its_floor():
    n = 512
    floor = math.log(1 + (n - 1) * math.exp(-2))  # logits in [−1, 1]: 4.25
    images = units(n, 64)
    assert contrastive_loss(images, images, torch.tensor(1.0)).item() > floor > 4.2
    assert contrastive_loss(images, images, torch.tensor(50.0)).item() < 0.1


def test_pairs_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(5, 8\)"):
        contrastive_loss(units(4, 8), units(5, 8), torch.tensor(1.0))


def test_chunks_with_cached_gradients_equal_the_whole_batch():
    """GradCache: first vectors without a graph, then a second pass with their gradients."""
    batch, prompts = torch.rand(12, 3, 32, 32), [f"fox number {i}" for i in range(12)]
    full, chunked, naive = small(), small(), small()
    contrastive_loss(
        full.encode_image(batch), full.encode_text(prompts), full.logit_scale.exp()
    ).backward()

    parts = [slice(i, i + 4) for i in range(0, 12, 4)]
    with torch.no_grad():
        images = torch.cat([chunked.encode_image(batch[p]) for p in parts])
        texts = torch.cat([chunked.encode_text(prompts[p]) for p in parts])
    images.requires_grad_(), texts.requires_grad_()
    contrastive_loss(images, texts, chunked.logit_scale.exp()).backward()
    for p in parts:
        surrogate = (chunked.encode_image(batch[p]) * images.grad[p]).sum()
        surrogate += (chunked.encode_text(prompts[p]) * texts.grad[p]).sum()
        surrogate.backward()

    for p in parts:  # what adding up the losses of the parts would give
        loss = contrastive_loss(
            naive.encode_image(batch[p]), naive.encode_text(prompts[p]), naive.logit_scale.exp()
        )
        (loss / len(parts)).backward()

    apart = 0.0
    for whole, cached, other in zip(
        full.parameters(), chunked.parameters(), naive.parameters(), strict=True
    ):
        torch.testing.assert_close(cached.grad, whole.grad, atol=1e-5, rtol=1e-4)
        apart = max(apart, (other.grad - whole.grad).abs().max().item())
    assert apart > 0.01


# Several processes


def gradients_of_one_step() -> dict[str, torch.Tensor]:
    recipe = tiny.clip(VIT, TRANSFORMER, seed=3).recipe
    device.seed(recipe.seed)
    clip = recipe.build(tiny.pairs(), {})
    recipe.losses(clip, tiny.pairs(), {})[0](5).backward()
    engine.average_gradients(clip)
    return {name: p.grad for name, p in clip.named_parameters()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(gradients_of_one_step(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WIP_DEVICE", "cpu")
    wanted = gradients_of_one_step()
    start = "forkserver" if os.name == "posix" else "spawn"
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method=start)
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, gradient in wanted.items():
            torch.testing.assert_close(seen[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


# Doors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved CLIP and the CLIP itself."""
    folder, clip = tmp_path_factory.mktemp("saved") / "new" / "clip", small(5).eval()
    clip.save_pretrained(folder)
    return folder, clip


def test_transformers_loads_what_is_saved(saved):
    folder, clip = saved
    model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    processor = CLIPProcessor.from_pretrained(folder)
    picture = torch.rand(3, 32, 32)
    prompts = ["a red fox", "一幅狐狸的画", "🦊 &amp;"]
    inputs = processor(
        text=prompts, images=pictures.to_pil(picture), return_tensors="pt", padding=True
    )
    with torch.no_grad():
        wanted = model.eval()(**inputs).logits_per_image
        seen = clip((picture * 255).round().unsqueeze(0) / 255, prompts)
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-5)


def test_the_pipeline_classifies_with_what_is_saved(saved):
    folder, clip = saved
    picture = (torch.rand(3, 32, 32) * 255).round() / 255
    labels = ["fox", "picture", "red animal"]
    namer = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    answers = namer(
        pictures.to_pil(picture), candidate_labels=labels, hypothesis_template="a {}"
    )
    with torch.no_grad():
        wanted = clip(picture.unsqueeze(0), [f"a {x}" for x in labels]).softmax(-1)[0]
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[x] for x in labels] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_what_is_saved_comes_back(saved):
    folder, clip = saved
    again = CLIP.from_pretrained(folder)
    assert not again.training
    batch = torch.rand(2, 3, 40, 40)
    assert torch.equal(again(batch, PROMPTS), clip(batch, PROMPTS))


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_what_transformers_saves_comes_here(shard, tmp_path):
    clip = small(6).eval()
    clip.save_pretrained(tmp_path / "a")
    theirs(clip).save_pretrained(tmp_path / "b", max_shard_size=shard)
    CLIPProcessor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    # what the library writes today: the tokenizer in one file, and large weights in several
    assert (tmp_path / "b" / "tokenizer.json").exists()
    assert not (tmp_path / "b" / "merges.txt").exists()
    assert (len(list((tmp_path / "b").glob("*.safetensors"))) > 1) == (shard == "20KB")
    batch = torch.rand(2, 3, 32, 32)
    again = CLIP.from_pretrained(str(tmp_path / "b"))
    torch.testing.assert_close(again(batch, PROMPTS), clip(batch, PROMPTS))


@pytest.mark.parametrize(
    "image, text",
    [(RESNET, TRANSFORMER), (VIT, BAG)],
)
def test_towers_that_transformers_lacks_are_not_saved(image, text, tmp_path):
    with pytest.raises(ValueError, match="no counterpart of the towers") as error:
        small(image=image, text=text).save_pretrained(tmp_path / "out")
    assert image["tower"] in str(error.value) and text["tower"] in str(error.value)
    assert not (tmp_path / "out").exists()


def refusal(source) -> str:
    return helpers.refusal(CLIP.from_pretrained, source, kind=CheckpointError)


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config cut short": (lambda f: (f / "config.json").write_text('{"vision'), "config.json"),
    "config of a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "config of BERT": (lambda f: (f / "config.json").write_text('{"vocab": 3}'), "config.json"),
    "no merges": (lambda f: (f / "merges.txt").unlink(), "merges.txt"),
    "binary merges": (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe\x00"), "merges.txt"),
    "triple merges": (lambda f: (f / "merges.txt").write_text("a b c\n"), "merges.txt"),
    "merges in another order": (
        lambda f: (f / "merges.txt").write_text(
            "\n".join(sorted((f / "merges.txt").read_text().splitlines(), reverse=True)) + "\n"
        ),
        "vocab.json",
    ),
    "vocabulary cut short": (lambda f: (f / "vocab.json").write_text('{"a'), "vocab.json"),
    "other merges": (lambda f: (f / "merges.txt").write_text("a b\n"), "merges"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:2000]
        ),
        "model.safetensors",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_gets_one_sentence(fault, tmp_path):
    small().save_pretrained(tmp_path / "clip")
    damage, named = BROKEN[fault]
    damage(tmp_path / "clip")
    assert named in refusal(tmp_path / "clip")


def shards(folder):
    """Let the library write the weights of a folder in shards; returns their index."""
    CLIPModel.from_pretrained(folder).save_pretrained(folder / "b", max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    for path in (folder / "b").glob("model*"):
        path.rename(folder / path.name)
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "text, said",
    [
        ("[", "no JSON object"),
        ('{"weight_map": [1]}', "names no shards"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names no shards"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "names no shards"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": "model.bin"}}', "pickled"),
        ('{"weight_map": {}}', "lacks"),
    ],
)
def test_an_index_of_other_shards_gets_one_sentence(text, said, tmp_path):
    small().save_pretrained(tmp_path)
    shards(tmp_path).write_text(text)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "no JSON object"),
        ("{}", "no pairs to merge"),
        ('{"model": {"vocab": {}, "merges": ["a b c"]}}', "no pairs to merge"),
        ('{"model": {"vocab": {}, "merges": [[1, 2]]}}', "no pairs to merge"),
        ('{"model": {"vocab": [], "merges": {}}, "added_tokens": [3]}', "no pairs to merge"),
    ],
)
def test_a_tokenizer_that_is_none_gets_one_sentence(text, said, tmp_path):
    small().save_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "tokenizer.json").write_text(text)
    assert said in refusal(tmp_path)


def test_a_config_of_another_depth_is_noticed(tmp_path):
    small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "layers.2" in refusal(tmp_path)


def test_a_config_of_another_width_is_noticed(tmp_path):
    small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 40
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "shape" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "clip.ckpt"])
def test_pickled_weights_are_refused_unread(name, tmp_path):
    small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    assert name in refusal(tmp_path) and "pickled" in refusal(tmp_path)
    assert "pickled" in refusal(str(tmp_path / name))


@pytest.mark.parametrize(
    "name", ["", "clip", "no/such/folder", "./here", "/not/there", "a/", "x" * 99]
)
def test_a_name_that_is_no_name_gets_one_sentence(name):
    refusal(name)


def test_a_hub_name_offline_gets_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal("openai/there-is-no-such-clip")
    assert "openai/there-is-no-such-clip" in message and "not on disk" in message


def sentence(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("prompts", ["a cat", [b"a cat"], [None], [1, 2], ["a", ["b"]]])
def test_prompts_are_a_list_of_strings(prompts):
    with pytest.raises(ValueError, match="list of strings") as error:
        small().encode_text(prompts)
    sentence(error)


def test_no_prompts_are_named():
    with pytest.raises(ValueError, match="there are no prompts") as error:
        small().encode_text([])
    sentence(error)


@pytest.mark.parametrize("prompt", ["", " ", "\x00\x07\x1b[2J", "\ud800", "𓂀 ꙮ", "ab" * 50_000])
def test_any_string_is_a_prompt(prompt):
    vector = small().encode_text([prompt])
    assert vector.shape == (1, DIM) and vector.isfinite().all()


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(2, 32, 32, 3),
        torch.zeros(2, 4, 32, 32),
    ],
    ids=["uint8", "no batch", "grey", "channels last", "alpha"],
)
def test_pictures_of_another_kind_are_named(batch):
    with pytest.raises(ValueError, match="pictures are float") as error:
        small().encode_image(batch)
    assert str(tuple(batch.shape)) in sentence(error)
