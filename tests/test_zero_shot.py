"""The brick of lesson 04 against hand-made cases, brute force and optimality."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from utils.bricks import zero_shot
from utils.bricks.clip import CLIP


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny.model("clip").eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_class_is_the_renormalised_mean_of_its_prompts(clip):
    templates, labels = ("a {}", "{} drawn", "{}"), ["cat", "dog"]
    rows = zero_shot.class_vectors(clip, labels, templates)
    for row, label in zip(rows, labels, strict=True):
        with torch.no_grad():
            prompts = clip.encode_text([f"a {label}", f"{label} drawn", label])
        mean = prompts.mean(0)
        assert mean.norm() < 0.999  # so that renormalising matters
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)


def test_a_label_may_hold_braces(clip):
    rows = zero_shot.class_vectors(clip, ["{}", "{0!r}", "}{"], ["a {}"])
    with torch.no_grad():
        assert torch.allclose(rows, clip.encode_text(["a {}", "a {0!r}", "a }{"]), atol=1e-6)


@pytest.mark.parametrize(
    "labels, templates, cause",
    [
        ([], ["{}"], "labels are a list of names"),
        (["cat"], [], "a template has exactly one {}"),
        (["cat"], ["{}", "a cat"], "this one is 'a cat'"),
        (["cat"], ["{} {}"], "this one is '{} {}'"),
    ],
)
def test_what_makes_no_prompt_is_said(clip, labels, templates, cause):
    with pytest.raises(ValueError) as error:
        zero_shot.class_vectors(clip, labels, templates)
    assert cause in str(error.value) and "\n" not in str(error.value)


def test_image_vectors_do_not_depend_on_the_batch(clip):
    pictures = torch.randint(0, 256, (7, 3, 20, 20), dtype=torch.uint8)
    whole = zero_shot.image_vectors(clip, pictures)
    assert torch.allclose(whole, zero_shot.image_vectors(clip, pictures, size=2), atol=1e-6)
    assert torch.allclose(whole, zero_shot.image_vectors(clip, pictures.float() / 255), atol=1e-6)
    assert torch.allclose(whole.norm(dim=1), torch.ones(7), atol=1e-5)
    assert not whole.requires_grad


def test_classify_is_a_softmax_over_labels_at_the_learnt_scale(clip):
    pictures = torch.rand(3, 3, 16, 16)
    shares = zero_shot.classify(clip, pictures, ["cat", "dog", "fox"], ["{}"])
    with torch.no_grad():
        cosines = clip.encode_image(pictures) @ clip.encode_text(["cat", "dog", "fox"]).T
        expected = (clip.logit_scale.exp() * cosines).softmax(1)
    assert torch.allclose(shares, expected, atol=1e-5)
    # the answer for one picture does not depend on its company
    alone = zero_shot.classify(clip, pictures[:1], ["cat", "dog", "fox"], ["{}"])
    assert torch.allclose(alone, shares[:1], atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 1000), st.data())
def test_top_k_by_brute_force(n, classes, seed, data):
    scores = random(n, classes, seed=seed)
    k = data.draw(st.integers(1, classes))
    targets = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    hits = [
        sum(float(s) > float(row[t]) for s in row) < k
        for row, t in zip(scores, targets.tolist(), strict=True)
    ]
    expected = sum(hits) / n
    assert zero_shot.top_k_accuracy(scores, targets, k) == pytest.approx(expected)


def test_retrieve_by_brute_force_in_both_directions():
    a, b = F.normalize(random(5, 4), dim=1), F.normalize(random(9, 4, seed=1), dim=1)
    for query, gallery in ((a, b), (b, a)):
        found = zero_shot.retrieve(query, gallery, k=3)
        for row, vector in zip(found.tolist(), query, strict=True):
            cosines = [float(vector @ other) for other in gallery]
            assert row == sorted(range(len(gallery)), key=lambda i: -cosines[i])[:3]
    assert zero_shot.retrieve(a, b, k=100).shape == (5, 9)


def test_neighbours_vote_with_their_similarity():
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    votes = zero_shot.nearest_neighbours(torch.tensor([[1.0, 0.0]]), features, labels, 3, k=3)
    assert torch.allclose(votes, torch.tensor([[1.0, 1.4, 0.0]]))
    votes = zero_shot.nearest_neighbours(torch.tensor([[1.0, 0.0]]), features, labels, 3, k=1)
    assert votes.argmax().item() == 0


def test_the_probe_is_at_the_minimum_of_its_loss():
    features = F.normalize(random(60, 8), dim=1).double()
    labels = torch.arange(60) % 4
    weights = zero_shot.linear_probe(features, labels, 4, decay=1e-2, steps=300)
    free = weights.clone().requires_grad_()
    scores = zero_shot.probe_scores(features, free)
    loss = F.cross_entropy(scores, labels) + 1e-2 * free[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, free)
    assert gradient.abs().max() < 1e-4
    # at a minimum the mean share of a class is its frequency, as the bias is not decayed
    assert torch.allclose(scores.softmax(1).mean(0), torch.full((4,), 0.25).double(), atol=1e-4)


def test_the_probe_leaves_no_gradient_behind():
    features = random(6, 3).requires_grad_()
    weights = zero_shot.linear_probe(features, torch.arange(6) % 2, 2, steps=3)
    assert not weights.requires_grad and features.grad is None


def test_the_probe_learns_inside_no_grad():
    with torch.no_grad():
        weights = zero_shot.linear_probe(torch.eye(3), torch.arange(3), 3)
    assert zero_shot.probe_scores(torch.eye(3), weights).argmax(1).tolist() == [0, 1, 2]
