"""Lesson 01's towers: by hand, against transformers' tower, gradients too."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.helpers import gradients, noise
from utils.bricks.image_encoders import ResidualBlock, ResNet, ViT
from utils.doors.transformers import from_transformers

# The Vision Transformer


def theirs_and_ours(activation: str, hidden: int, size: int, patch: int, seed: int):
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=48,
        intermediate_size=hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=activation,
    )
    theirs = CLIPVisionModel(config)
    for parameter in theirs.parameters():  # else norms and biases have nothing to show
        nn.init.normal_(parameter, std=0.2)
    ours = ViT(size, patch, width=48, depth=3, heads=4, hidden=hidden, activation=activation)
    named = {
        f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in theirs.state_dict().items()
    }
    names = [f"image_tower.{name}" for name in ours.state_dict()]
    state = from_transformers(named, names)
    ours.load_state_dict({k.removeprefix("image_tower."): v for k, v in state.items()})
    return theirs, ours


@pytest.mark.parametrize(
    "activation, hidden, size, patch",
    [("quick_gelu", 192, 32, 8), ("gelu", 100, 32, 16), ("quick_gelu", 64, 30, 5)],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_tower_is_transformers_own(activation, hidden, size, patch, seed):
    theirs, ours = theirs_and_ours(activation, hidden, size, patch, seed)
    pictures = noise(3, 3, size, size, seed=seed)
    vectors, expected = ours(pictures), theirs(pictures).pooler_output
    assert torch.allclose(vectors, expected, atol=1e-5)
    slopes, their_slopes = gradients(ours, vectors), gradients(theirs, expected)
    pairs = [("class_token", "embeddings.class_embedding")]
    pairs += [("patch.weight", "embeddings.patch_embedding.weight")]
    pairs += [("positions", "embeddings.position_embedding.weight")]
    pairs += [("blocks.2.fc1.weight", "encoder.layers.2.mlp.fc1.weight")]
    for name, other in pairs:
        (slope,) = (v for k, v in their_slopes.items() if k.endswith(other))
        scale = slope.abs().max()
        assert torch.allclose(slopes[name] / scale, slope / scale, atol=1e-5), name


def test_smaller_patches_make_more_tokens():
    """A patch of 32 is coarser than one of 16, not finer: 224 pixels give 49, 196 or 256."""
    tokens = {p: len(ViT(224, p, width=8, depth=1, heads=1).positions) - 1 for p in (32, 16, 14)}
    assert tokens == {32: 49, 16: 196, 14: 256}


def test_a_patch_size_that_does_not_tile_is_named():
    with pytest.raises(ValueError, match="patches of 7 do not tile 64 pixels"):
        ViT(64, 7)


def test_the_patch_layer_is_one_product_a_patch():
    torch.manual_seed(0)
    tower, picture = ViT(16, 8, width=12, depth=1, heads=2), noise(1, 3, 16, 16)
    tokens = tower.patch(picture).flatten(2).transpose(1, 2)[0]
    corner = picture[0, :, 8:, :8].flatten() @ tower.patch.weight.flatten(1).T
    assert tower.patch.bias is None
    assert torch.allclose(tokens[2], corner, atol=1e-5)  # row by row: the third is below


def test_only_positions_tell_where_a_patch_is():
    torch.manual_seed(0)
    tower, picture = ViT(32, 8, width=24, depth=2, heads=3).eval(), noise(1, 3, 32, 32)
    turned = picture.roll((8, 16), (2, 3))  # the same patches elsewhere
    assert not torch.allclose(tower(picture), tower(turned), atol=1e-3)
    nn.init.zeros_(tower.positions)
    assert torch.allclose(tower(picture), tower(turned), atol=1e-5)


def test_training_sees_a_random_share_of_the_patches():
    torch.manual_seed(0)
    tower, x = ViT(32, 8, width=24, depth=1, heads=3, keep=0.5), noise(3, 16, 24)
    kept = tower.drop_patches(x)
    assert kept.shape == (3, 8, 24)
    found = (kept.unsqueeze(2) == x.unsqueeze(1)).all(-1)  # (B, kept, N): which is which
    assert (found.sum(2) == 1).all() and (found.sum(1) <= 1).all()  # each once
    assert not found.any(1).all(0).equal(found.any(1)[0])  # each row has its own
    pictures = noise(2, 3, 32, 32)
    first, second = tower.train()(pictures), tower(pictures)
    assert not first.allclose(second)
    tower.eval()
    assert tower(pictures).equal(tower(pictures))


# The ResNet


def test_a_new_residual_block_passes_its_input_on():
    torch.manual_seed(0)
    x = noise(2, 8, 5, 5).relu()
    assert ResidualBlock(8)(x).equal(x)


def test_a_residual_block_is_the_formula():
    torch.manual_seed(0)
    block, x = ResidualBlock(4).eval(), noise(2, 4, 5, 5)
    nn.init.normal_(block.norm2.weight)
    block.norm1.running_mean.uniform_(-1, 1), block.norm2.running_var.uniform_(0.5, 2)

    def norm(layer: nn.BatchNorm2d, y: Tensor) -> Tensor:
        shape = (1, 4, 1, 1)
        y = (y - layer.running_mean.view(shape)) / (layer.running_var + layer.eps).sqrt().view(
            shape
        )
        return y * layer.weight.view(shape) + layer.bias.view(shape)

    y = norm(block.norm1, F.conv2d(x, block.conv1.weight, padding=1)).relu()
    y = norm(block.norm2, F.conv2d(y, block.conv2.weight, padding=1))
    assert torch.allclose(block(x), (x + y).relu(), atol=1e-5)
    assert ((block(x) - x).abs() > 0.01).any()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_resnet_takes_pictures_of_any_size(size):
    torch.manual_seed(0)
    tower = ResNet((8, 16, 24), (1, 2, 1)).eval()
    vectors = tower(noise(2, 3, size, size))
    assert vectors.shape == (2, 24) == (2, tower.width)
    assert torch.isfinite(vectors).all()


def test_a_resnet_halves_its_map_between_stages():
    torch.manual_seed(0)
    tower, x, sizes = ResNet((4, 8, 16), (1, 1, 1), stem=4), noise(2, 3, 64, 64), []
    for layer in tower.layers:
        x = layer(x)
        if isinstance(layer, ResidualBlock):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert torch.allclose(tower(noise(2, 3, 64, 64)), x.mean((2, 3)), atol=1e-5)


def test_towers_say_for_which_pictures_they_are_meant():
    assert ResNet((8, 16), (1, 1), image_size=32).image_size == 32
    assert ViT(32, 8, width=8, depth=1, heads=1).image_size == 32


def test_depths_and_widths_go_together():
    with pytest.raises(ValueError):
        ResNet((8, 16), (1, 1, 1))
