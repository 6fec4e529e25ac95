# ---
# jupyter:
#   brick: image_encoders
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Image encoders: from VGG to ResNet to ViT
#
# ![Two ways from a picture to a vector. A ResNet keeps a map that shrinks and thickens.
# A Vision Transformer cuts the picture into patches and treats them as the words of a
# sentence](../assets/figures/01_towers.svg)
#
# CLIP has two halves. One turns a picture into a vector, the other a sentence. This
# lesson builds the first half, in the two forms that CLIP was trained with.
# **How do thousands of pixels become one short vector that says what is in the
# picture?**

# %% [markdown]
# ## A picture is numbers
# We work with Emoji-4: thousands of small pictures in four drawing styles. A picture is
# three sheets of numbers, red, green and blue, each from 0 to 1.

# %% tags=["brick"]
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %%
from utils import costs, data, device, plots

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")
cat = train.where(label_en="cat face").pictures.float() / 255  # (4, 3, 64, 64)

print("numbers in one picture:", cat[0].numel())
plots.grid(cat, data.STYLES, alt="A cat face in four styles")

# %% [markdown]
# Those numbers are already a vector. Is it a good one? Here is a simple test: move the
# cat 8 pixels to the right. It is still the same cat. A good vector stays close.

# %%
moved = cat[2].roll(8, dims=-1)
pig = train.where(label_en="pig face").pictures[2].float() / 255
to_itself, to_pig = (cat[2] - moved).norm(), (cat[2] - pig).norm()

three = torch.stack([cat[2], moved, pig])
plots.grid(three, ["cat", "cat, moved", "pig"], alt="A cat, the cat moved, a pig")
print("in pixels, the cat is nearer to the pig:", bool(to_pig < to_itself))

pigs = train.where(label_en="pig face").pictures.float() / 255
to_themselves = (cat - cat.roll(8, dims=-1)).flatten(1).norm(dim=1)
nearer = (cat - pigs).flatten(1).norm(dim=1) < to_themselves
print("in so many of four styles:", int(nearer.sum()))

# %% [markdown]
# In pixels, this cat is nearer to a pig than to itself; in two of the four styles it is
# so. Pixels compare ink, place by place. An encoder must do better: a small move may
# not matter, another species must.

# %% [markdown]
# ## Convolution by hand
# The oldest answer: look through a small window, and slide it. Here is a picture of 5×5
# pixels, dark on the left and bright on the right, and a window of 3×3 weights. At each
# place, multiply the window's nine weights with the nine pixels under it, and add up.

# %%
toy = torch.tensor([[0.0, 0, 1, 1, 1]] * 5)  # (5, 5)
kernel = torch.tensor([[-1.0, 0, 1]] * 3)  # right minus left

answer = torch.zeros(3, 3)
for row in range(3):
    for column in range(3):
        window = toy[row : row + 3, column : column + 3]
        answer[row, column] = (window * kernel).sum()
print(answer)

# %% [markdown]
# The answer is 3 where the window meets the edge, and 0 where all is even. The kernel
# is an edge detector. Torch has the loop built in.

# %%
library = F.conv2d(toy[None, None], kernel[None, None])[0, 0]
print("equal to torch's:", torch.equal(answer, library))

# %% [markdown]
# Three more things that every network below uses, each on this toy. **Padding**: a
# frame of zeros, so that the window also fits at the edge and the map keeps its size.
# **Stride**: the window jumps, and the map shrinks. **Channels**: a picture has three
# sheets, so a window has three as well, and the products of all three are added up. As
# many windows, as many sheets come out.

# %%
page = toy[None, None]  # (1, 1, 5, 5): one picture of one sheet
print("padding 1:", tuple(F.conv2d(page, kernel[None, None], padding=1).shape[2:]))
print("stride 2:", F.conv2d(page, kernel[None, None], stride=2)[0, 0].tolist())

sheets = torch.stack([toy, 2 * toy, 0 * toy])  # red, green, blue
windows = torch.stack([kernel, kernel, kernel])
pairs = zip(sheets[:, None, None], windows[:, None, None], strict=True)
by_sheet = sum(F.conv2d(sheet, window) for sheet, window in pairs)
together = F.conv2d(sheets[None], windows[None])
print("three sheets, one map, their sum:", torch.equal(together, by_sheet))

# %% [markdown]
# A window of 1×1 sees one pixel, in all of its sheets. It cannot find an edge; it mixes
# channels, the same way at every place: a matrix, written as a convolution.

# %%
to_grey = torch.tensor([[0.3, 0.6, 0.1]])  # one number for red, green and blue
by_matrix = (to_grey @ sheets.flatten(1)).view(1, 5, 5)
by_window = F.conv2d(sheets[None], to_grey.view(1, 3, 1, 1))[0]
print("a 1×1 convolution is a matrix:", torch.allclose(by_matrix, by_window))

# %% [markdown]
# Now slide it over the cat, once as it is and once turned by 90°. One window gives one
# *feature map*: a picture of where its pattern was found.

# %%
kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
grey = F.pad(cat[2].mean(0)[None, None], (1, 1, 1, 1), value=1.0)  # white all round
maps = F.conv2d(grey, kernels)[0].abs()  # (2, 64, 64)
shown = (1 - maps / maps.max())[:, None].expand(-1, 3, -1, -1)
whole = torch.cat([cat[2:3], shown])

captions = ["picture", "upright edges", "level edges"]
plots.grid(whole, captions, alt="A cat face and its edges", size=120)
print("two kernels, two maps:", tuple(maps.shape))

# %% [markdown]
# Nobody draws kernels by hand any more. They are weights, and training finds them. What
# stays is the design: the same few weights everywhere, so a cat on the right excites
# the same detector as a cat on the left.

# %% [markdown]
# ## Small windows, stacked: VGG
# How large should a window be? VGG's answer (Simonyan and Zisserman 2015, sec. 2.3):
# small, and more of them. Two 3×3 layers see as far as one 5×5 layer. Ask the gradient:
# which input pixels move the output in the middle?

# %%
page = torch.zeros(1, 1, 9, 9, requires_grad=True)
ones = torch.ones(1, 1, 3, 3)
twice = F.conv2d(F.conv2d(page, ones, padding=1), ones, padding=1)
twice[0, 0, 4, 4].backward()

seen = page.grad[0, 0] > 0
print(seen.int())
print("a window of", int(seen.any(0).sum()), "by", int(seen.any(1).sum()))

# %% [markdown]
# It costs less, and it bends twice: there is a ReLU after each layer. With 64 channels
# in and out:


# %%
def count_weights(*layers: nn.Module) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())


small = nn.Conv2d(64, 64, 3, bias=False), nn.Conv2d(64, 64, 3, bias=False)
large = nn.Conv2d(64, 64, 5, bias=False)
print(f"two 3×3: {count_weights(*small):,} weights; one 5×5: {count_weights(large):,}")
print(f"saved: {1 - count_weights(*small) / count_weights(large):.0%}")

# %% [markdown]
# A VGG block is a few such layers, then a pool that halves the map. Several
# blocks in a row give the shape that every convolutional tower has: the map shrinks,
# the channels grow.


# %%
def vgg_block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width_out, width_out, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


x = cat
for block in [vgg_block(3, 32), vgg_block(32, 64), vgg_block(64, 128)]:
    x = block(x)
    print(tuple(x.shape))  # (B, channels, H, W)

# %% [markdown]
# ## Deeper, until nothing gets through
# More layers see more. But the error has to travel back through all of them to reach
# the first. Take stacks of 2, 4, … 64 layers, fresh from the initialisation, and
# measure how strong the gradient is that arrives at the first layer.
#
# What helps is to keep numbers at one scale on their way. A *norm* subtracts a mean and
# divides by a spread. Over what? **BatchNorm** takes one mean for each channel, over
# all pictures of the batch and all places. In training it uses the batch's own; in
# `eval` mode, what it has remembered, so that a picture's vector does not depend on its
# company. **LayerNorm**, later, takes one mean for each token, over its channels, and
# knows no batch.

# %%
x = 5 + 3 * torch.randn(8, 4, 6, 6, generator=device.generator(0))  # (B, C, H, W)
norm = nn.BatchNorm2d(4)
kept = {"keepdim": True, "correction": 0}
by_hand = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), **kept)
print("over batch and places:", torch.allclose(norm(x), by_hand, atol=1e-3))
in_company = norm.train()(x)[0]
other_company = norm.train()(torch.cat([x[:1], 9 * x[1:]]))[0]
print("in training, company matters:", not torch.allclose(in_company, other_company))
alone, among = norm.eval()(x[:1])[0], norm.eval()(x)[0]
print("in eval mode it does not:", torch.allclose(alone, among, atol=1e-6))

tokens = x.flatten(2).transpose(1, 2)  # (B, 36 tokens, 4 channels)
by_hand = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, **kept)
same = torch.allclose(nn.LayerNorm(4)(tokens), by_hand, atol=1e-3)
print("LayerNorm, each token alone:", same)

# %% [markdown]
# Now the stacks: bare convolutions with ReLU; the same with larger weights at the
# start; with BatchNorm; and with BatchNorm where each pair of layers only *adds* to its
# input. That last one is the **residual block**, and the way round the layers is called
# a *skip connection* or *shortcut*. Its last norm has a gain γ. Start it at 1, like any
# norm, or at 0: then a new block is the identity, and depth costs nothing at first. The
# brick starts at 0, and the figure shows both.
#
# ![A residual block and a pre-norm Transformer block: in both, the input goes round the
# layers and is added to what they return](../assets/figures/01_blocks.svg)


# %% tags=["brick", "blank"]
class ResidualBlock(nn.Module):
    """x + two 3×3 convolutions of x, each followed by BatchNorm.

    (B, width, H, W) → the same shape. The last BatchNorm scales by 0 at the start, so a
    new block passes its (non-negative) input on unchanged. He et al. 2016, fig. 2; zero
    start: Goyal et al. 2017, sec. 5.1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + residual)


# %% [markdown]
# The last norm starts at 0, so a new block changes nothing: depth is free at the start.

# %%
x = torch.rand(2, 16, 8, 8)  # not negative, like everything after a ReLU
print("a new block passes its input on:", torch.equal(ResidualBlock(16)(x), x))

# %% [markdown]
# And once trained? Give the last norm some weights, copy all into the library's block:

# %%
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

PARTS = {"conv1": "layer.0.convolution", "norm1": "layer.0.normalization"}
PARTS |= {"conv2": "layer.1.convolution", "norm2": "layer.1.normalization"}

ours, theirs = ResidualBlock(16), ResNetBasicLayer(16, 16)
nn.init.normal_(ours.norm2.weight)
for name, other in PARTS.items():
    weights_of = ours.get_submodule(name).state_dict()
    theirs.get_submodule(other).load_state_dict(weights_of)
same = torch.allclose(ours(x), theirs(x), atol=1e-5)
print("equal to transformers' block:", same)

# %% [markdown]
# The stacks to compare it with, and a small network around any of them:


# %%
class Busy(ResidualBlock):
    """The same block with γ = 1: it works from the first step."""

    def __init__(self, width: int):
        super().__init__(width)
        nn.init.ones_(self.norm2.weight)


class Plain(Busy):
    """The same layers without the way round."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def bare(width: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU())


def careful(width: int) -> nn.Sequential:
    """Bare, with weights as large as ReLU needs (He et al. 2015, sec. 2.2)."""
    layers = bare(width)
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return layers


def stack(block, depth: int, classes: int, width: int = 32) -> nn.Sequential:
    stem = [
        nn.Conv2d(3, width, 4, stride=4, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    blocks = [block(width) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*stem, *blocks, *head)


# %% [markdown]
# The labels are Unicode's groups: smileys, animals, flags and so on. There are ten.
# One, swatches of skin tones, has no concept kept aside; we leave it out. The nine are
# also the task on which both towers will train. And since a page is mostly white, which
# is 1, we shift the pixels so that they lie around 0.

# %%
groups = sorted(set(unseen.table["group"]))
train = train.take([i for i, g in enumerate(train.table["group"]) if g in groups])
labels = torch.tensor([groups.index(g) for g in train.table["group"]])
unseen_labels = torch.tensor([groups.index(g) for g in unseen.table["group"]])


def centre(pictures: Tensor) -> Tensor:
    """uint8 or [0, 1] → numbers around 0 (about the mean and spread of the pixels)."""
    pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    return (pictures - 0.7) / 0.3


print(len(train), "pictures to learn from,", len(unseen), "of concepts kept aside")
print(", ".join(groups))

# %%
depths = [1, 2, 4, 8, 16, 32]  # blocks of two layers
few = torch.arange(0, len(train), 54)  # 128 or so, of all kinds
small_pictures = F.interpolate(centre(train.pictures[few]), size=32, mode="area")


def first_gradient(block, depth: int) -> float:
    """Norm of the loss's gradient at the first layer of a new stack."""
    torch.manual_seed(0)
    network = stack(block, depth, len(groups))
    F.cross_entropy(network(small_pictures), labels[few]).backward()
    return network[0].weight.grad.norm().item()


stacks = {"bare": bare, "bare, He init": careful, "BatchNorm": Plain}
stacks |= {"residual, γ = 1": Busy, "residual, γ = 0": ResidualBlock}
norms = {name: [first_gradient(s, d) for d in depths] for name, s in stacks.items()}

# %%
fig, ax = plots.figure(width=7)
styles = {"bare": ("noise", "--"), "bare, He init": ("noise", "-")}
styles |= {"BatchNorm": ("wrong", "-"), "residual, γ = 1": ("image", "-")}
styles |= {"residual, γ = 0": ("image", "--")}
for name, values in norms.items():
    colour, line = styles[name]
    shown, colour = [max(v, 1e-16) for v in values], plots.COLOURS[colour]
    layers = [2 * d for d in depths]
    ax.loglog(layers, shown, "o", ls=line, color=colour, label=name)
ax.set(xlabel="layers", ylabel="gradient at the first layer", ylim=(1e-16, 1e5))
ax.set_title("Only residual stacks keep their gradient at every depth")
ax.set_xticks([2 * d for d in depths], [str(2 * d) for d in depths])
ax.minorticks_off()
ax.legend()
plots.show(
    fig,
    "The first layer's gradient against depth: bare stacks lose it, more slowly with "
    "larger weights; BatchNorm lets it grow, residual stacks keep it",
)

for name, values in norms.items():
    change = values[-1] / values[0]
    print(name, "keeps its gradient within a factor of 10:", 0.1 < change < 10)
assert norms["bare"][-1] < 1e-6 < 1 < norms["BatchNorm"][-1]
torch.manual_seed(0)
network = stack(ResidualBlock, 8, len(groups))
F.cross_entropy(network(small_pictures), labels[few]).backward()
print("γ = 0, gradient inside a block:", network[3].conv1.weight.grad.norm().item())

# %% [markdown]
# The bare stack's first layers learn nothing: torch's default weights are too small for
# ReLU, each layer shrinks the gradient, and at the end it is zero to many decimals. He
# et al. (2015) start with larger weights; the gradient then fades far more slowly, but
# it fades. BatchNorm swings to the other side. With the way round, there is always a
# path on which the gradient is multiplied by 1.
#
# Read the dashed blue line with care. With γ = 0 every block passes its input on and
# nothing else, so what arrives at the first layer has seen stem and head alone, at any
# depth; inside the blocks `conv1` gets a gradient of exactly 0 in the first step, and
# begins to learn when γ has moved. The proof is the solid blue line: there all blocks
# work, and 64 layers deep the gradient is still of the same order.
#
# A word of care: the plain networks that He et al. compared had BatchNorm, and they
# found their gradients healthy (2016, sec. 4.1). What they saw was *degradation*: a
# deeper plain network fits even its training data worse. You will see that too, under
# "Break it".

# %% [markdown]
# ## The ResNet tower
# A stem that looks at 4×4 pixels at a time, then stages of residual blocks. Between
# stages the map halves and the channels double. The mean over the last map is the
# vector.


# %% tags=["brick"]
class ResNet(nn.Module):
    """Pictures (B, 3, H, W) → vectors (B, widths[-1]).

    A stem of `stem`×`stem` patches, then stages of residual blocks. Between stages an
    average pool halves the map and a 1×1 convolution widens it. image_size: the side of
    the pictures it is meant for; it takes others, too. He et al. 2016.
    """

    def __init__(
        self,
        widths=(64, 128, 256),
        depths=(2, 2, 2),
        stem: int = 4,
        image_size: int = 64,
    ):
        super().__init__()
        layers = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if i == 0:
                layers += [nn.Conv2d(3, width, stem, stride=stem, bias=False)]
            else:
                widen = nn.Conv2d(widths[i - 1], width, 1, bias=False)
                layers += [nn.AvgPool2d(2), widen]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            layers += [ResidualBlock(width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.width, self.image_size = widths[-1], image_size

    def forward(self, pictures: Tensor) -> Tensor:
        # channels last is the memory order in which convolutions run fastest
        x = pictures.contiguous(memory_format=torch.channels_last)
        return self.layers(x).mean((2, 3))  # (B, widths[-1])


# %%
torch.manual_seed(0)
tower = ResNet((32, 64, 128), (1, 1, 1))
x = centre(cat)  # (4, 3, 64, 64)
for layer in tower.layers:
    x = layer(x)
    if isinstance(layer, ResidualBlock):
        print("after a stage:", tuple(x.shape))
print("vectors:", tuple(tower(centre(cat)).shape))

# %% [markdown]
# ## A picture as a sentence: patches
# The Vision Transformer starts from another idea. Cut the picture into squares, and
# treat each square as a word. Here is the cutting, one square at a time.


# %%
def patches_by_hand(picture: Tensor, p: int) -> Tensor:
    """(3, H, W) → (N, 3·p·p), row by row."""
    rows, columns = picture.shape[1] // p, picture.shape[2] // p
    squares = []
    for row in range(rows):
        for column in range(columns):
            square = picture[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            squares.append(square.flatten())
    return torch.stack(squares)


squares = patches_by_hand(cat[3], 16)
plots.grid(
    squares.unflatten(1, (3, 16, 16)),
    columns=4,
    size=48,
    alt="The cat face, cut into 16 squares",
    title="A picture in 16 words",
)
print(tuple(squares.shape))

# %% [markdown]
# Torch knows this as `unfold`, and puts the squares back with `fold`. Nothing is lost.


# %%
def patches(pictures: Tensor, p: int) -> Tensor:
    return F.unfold(pictures, p, stride=p).transpose(1, 2)  # (B, N, 3·p·p)


def put_back(tokens: Tensor, p: int, size: int = 64) -> Tensor:
    return F.fold(tokens.transpose(1, 2), size, p, stride=p)  # (B, 3, size, size)


print("equal to the loops:", torch.equal(patches(cat, 16)[3], squares))
print("put back unharmed:", torch.equal(put_back(patches(cat, 16), 16), cat))

# %% [markdown]
# Each square of 768 numbers becomes a token by one matrix product, the same for all.
# That is also a convolution whose stride is its size: the window jumps from square to
# square.

# %%
torch.manual_seed(0)
embed = nn.Conv2d(3, 64, 16, stride=16, bias=False)
as_convolution = embed(cat).flatten(2).transpose(1, 2)  # (B, N, 64)
as_product = patches(cat, 16) @ embed.weight.flatten(1).T  # (B, N, 64)

print("the same tokens:", torch.allclose(as_convolution, as_product, atol=1e-5))

# %% [markdown]
# Two things are added. A **class token** in front, a learned vector that stands for no
# square: it will collect the answer. And a learned **position** for each token, since a
# bag of squares doesn't say which one was on top.

# %% [markdown]
# ## Attention by hand
# Tokens must talk: an ear means cat only if there are whiskers. Three tokens of two
# numbers, "how furry" and "how blue":

# %%
names = ["left ear", "right ear", "sky"]
tokens = torch.tensor([[2.0, 0.0], [2.0, 0.5], [0.0, 2.0]])  # (3, 2)

# %% [markdown]
# Each token asks a *query*, holds up a *key* and offers a *value*. Here all three are
# the token itself; a network learns a matrix for each. The score of a query with a key
# is their dot product, divided by √d. A softmax turns a query's scores into *attention
# weights*, and the output is the values, mixed by these weights (Vaswani et al. 2017,
# eq. 1):
#
# $$\text{attend}(q, k, v) = \text{softmax}\left(\frac{q k^\top}{\sqrt d}\right) v$$


# %%
import math


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v: (L, d) → the outputs (L, d) and the attention weights (L, L)."""
    length, d = q.shape
    weights, outputs = torch.zeros(length, length), torch.zeros(length, d)
    for i in range(length):
        scores = [float(q[i] @ k[j]) / d**0.5 for j in range(length)]
        powers = [math.exp(s) for s in scores]
        for j in range(length):
            weights[i, j] = powers[j] / sum(powers)
            outputs[i] += weights[i, j] * v[j]
    return outputs, weights


outputs, weights = attend_by_hand(tokens, tokens, tokens)
print("each row of weights sums to 1:", torch.allclose(weights.sum(1), torch.ones(3)))

# %%
fig, ax = plots.figure(width=4.2, height=3.4)
plots.heatmap(weights, ax, "", names, names, numbers="{:.2f}")
ax.set(xlabel="is looked at", ylabel="looks", title="Ears look at ears")
plots.show(fig, "Attention weights: an ear's go to both ears, the sky's to itself")

# %% [markdown]
# **Why √d?** A dot product of two random vectors of d numbers is a sum of d terms: its
# spread grows as √d. Without the division, a wide head would start with a softmax that
# is nearly one-hot, and a one-hot softmax passes hardly any gradient.

# %%
for d in (4, 64, 1024):
    q, k = torch.randn(2, 1000, d, generator=device.generator(0))
    scores = q @ k[:8].T  # (1000, 8)
    raw, divided = (x.softmax(1).amax(1).mean() for x in (scores, scores / d**0.5))
    print(f"d = {d:4}: spread {scores.std():4.1f}, the largest of 8 weights "
          f"{raw:.1f} undivided, {divided:.1f} divided")  # fmt: skip

# %% [markdown]
# The same without loops is two matrix products. Compare the shapes with the formula.
# The mask is for lesson 02.


# %% tags=["blank"]
def plain_attend(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., L, L)
    if mask is not None:
        scores = scores + mask  # −inf where a token may not look
    return scores.softmax(-1) @ v  # (..., L, d)


plain = plain_attend(tokens, tokens, tokens)
print("equal to the loops:", torch.allclose(plain, outputs, atol=1e-6))
q, k, v = torch.randn(3, 65, 32, generator=device.seed(0))  # (L, d) each
gain = costs.speedup(lambda: attend_by_hand(q, k, v), lambda: plain_attend(q, k, v))
print("more than 10 times faster:", gain > 10)

# %% [markdown]
# **Equal, and in less memory.** The L×L weights are the costly part: the way back needs
# them, so they are kept, for each picture and head. Torch has a *fused* kernel that
# goes through them block by block and keeps none. One exception: in bfloat16 a CPU is
# several times slower with it than with the two products, so there they stay.


# %% tags=["brick:attention"]
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + mask)·v, the scaled dot-product attention.

    q: (..., L, d), the tokens that ask; k, v: (..., M, d), those that are looked at;
    mask: (L, M) or (..., L, M), added to the scores, −inf where a token may not look.
    Returns (..., L, d). Vaswani et al. 2017, eq. 1.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # several times faster here than torch's fused kernel, there and back
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (..., L, M)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# %%
def there_and_back(run, *inputs: Tensor) -> list[Tensor]:
    """An output, and the gradient of its squares' sum for each of the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = run(*inputs)
    return [output, *torch.autograd.grad(output.float().square().sum(), inputs)]


def agree(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-4) -> bool:
    """Whether no number is off by more than this part of the largest one."""
    pairs = zip(ours, theirs, strict=True)
    return all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in pairs)


qkv = torch.randn(3, 2, 4, 65, 32, generator=device.seed(0))  # 3 × (B, h, L, d)
plain = there_and_back(plain_attend, *qkv)
fused = there_and_back(attend, *qkv)
print("the same output and gradients:", agree(fused, plain))
narrow = there_and_back(attend, *qkv.bfloat16())
print("in bfloat16, the same to its precision:", agree(narrow, plain, 0.05))

# %%
q, k, v = torch.randn(3, 1, 1, 1024, 64).requires_grad_()
kept = [costs.kept(lambda f=f: f(q, k, v)) for f in (attend, plain_attend)]
print("for 1,024 tokens the kernel keeps less than a third:", kept[0] < kept[1] / 3)

q, k, v = torch.randn(3, 64, 3, 17, 64).bfloat16()
kernel = F.scaled_dot_product_attention
gain = costs.speedup(
    lambda: there_and_back(kernel, q, k, v), lambda: there_and_back(attend, q, k, v)
)
has_bfloat16 = isinstance(device.half_precision(q.device), torch.autocast)
print("in bfloat16, where a CPU has it, twice as fast:", gain > 2 or not has_bfloat16)

# %% [markdown]
# One mixture per token is little. So the width is split into *heads*, each with
# queries, keys and values of its own: one may look for the other ear, one for the
# outline. As a loop:


# %%
def heads_one_by_one(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(L, width) each → (L, width): every head attends within its own columns."""
    columns = q.shape[1] // heads
    parts = [slice(i * columns, (i + 1) * columns) for i in range(heads)]
    return torch.cat([plain_attend(q[:, p], k[:, p], v[:, p]) for p in parts], 1)


q, k, v = torch.randn(3, 10, 48, generator=device.generator(0))
looped = heads_one_by_one(q, k, v, heads=3)
print("three heads of 16 columns:", tuple(looped.shape))

# %% [markdown]
# Without a loop, the heads become an axis of their own, and all attend at once.


# %% tags=["brick:attention", "blank"]
def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads·d) → (B, heads, L, d): a part of the width for each head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) → (B, L, heads·d): the heads side by side again."""
    return x.transpose(1, 2).flatten(2)


# %%
at_once = join_heads(attend(*(split_heads(x[None], 3) for x in (q, k, v))))[0]
print("equal to the loop:", torch.allclose(at_once, looped, atol=1e-5))


# %% tags=["brick:attention", "blank"]
class Attention(nn.Module):
    """Self-attention with several heads: (B, L, width) → the same shape.

    Vaswani et al. 2017, sec. 3.2.2.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values of every head, (B, heads, L, d) each."""
        # one product for all three
        return [split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1)]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x)
        return self.out(join_heads(attend(q, k, v, mask)))


# %% [markdown]
# Torch has this layer too. With the same weights it must give the same numbers.

# %%
torch.manual_seed(0)
ours = Attention(48, heads=3)
theirs = nn.MultiheadAttention(48, 3, batch_first=True)
theirs.in_proj_weight.data = ours.qkv.weight.data
theirs.in_proj_bias.data = ours.qkv.bias.data
theirs.out_proj.load_state_dict(ours.out.state_dict())

x = torch.randn(2, 10, 48)
print("equal to torch's layer:", torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-5))

# %% [markdown]
# ## The block, and the tower
# Attention moves information between tokens. A small network, the same for each token,
# then works on what arrived. Both stand beside a way round: the residual trick again.
# The norms come *before* the layers, so nothing stands in the way round (the right half
# of the drawing above). The bend between the two linear layers is CLIP's cheap GELU.


# %% tags=["brick:attention"]
def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x), the activation of OpenAI's CLIP; a cheap stand-in for GELU.

    Hendrycks & Gimpel 2016, sec. 2.
    """
    # torch has y·σ(y) as one operation
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}

# %%
x = torch.linspace(-4, 4, 200)
fig, ax = plots.figure(width=5, height=2.6)
ax.plot(x, F.gelu(x), color=plots.COLOURS["noise"], label="GELU", linewidth=4)
ax.plot(x, quick_gelu(x), color=plots.COLOURS["image"], label="quick GELU")
ax.set(xlabel="x", title="Nearly the same bend")
ax.legend()
plots.show(fig, "Quick GELU lies close to GELU everywhere")
assert torch.allclose(quick_gelu(x), x * torch.sigmoid(1.702 * x), atol=1e-6)
print("largest difference:", f"{(F.gelu(x) - quick_gelu(x)).abs().max():.2f}")

# %% [markdown]
# Nearly is not the same: a CLIP ViT-B/32 trained with the one fell from 62.9 % to
# 60.2 % on ImageNet when run with the other (OpenCLIP, `docs/openclip_results.csv`).


# %% tags=["brick:attention", "blank"]
class Block(nn.Module):
    """A pre-norm Transformer block: (B, L, width) → the same shape.

    x + attention(norm(x)), then x + mlp(norm(x)). Radford et al. 2019, sec. 2.3.
    """

    def __init__(
        self, width: int, heads: int, activation: str = "quick_gelu", hidden: int = 0
    ):
        super().__init__()
        hidden = hidden or 4 * width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


# %% [markdown]
# Blocks are stacked. As many tokens come out as went in, and a tower reads one of them:
# the ViT its class token.


# %%
def state_at(blocks, x, places, mask=None):
    """The token at one place of each row, after all blocks: (B, width)."""
    for block in blocks:
        x = block(x, mask)  # (B, L, width)
    return x[torch.arange(len(x)), places]


x, places = torch.randn(2, 10, 48), torch.tensor([0, 7])
blocks = nn.Sequential(Block(48, heads=3), Block(48, heads=3))
print("one token of each row:", tuple(state_at(blocks, x, places).shape))


# %% [markdown]
# Now the whole tower: patches, class token, positions, blocks.


# %% tags=["brick", "blank"]
class ViT(nn.Module):
    """Pictures (B, 3, S, S) → the class token's vector (B, width).

    CLIP's layout: patches without bias, a norm before the first block, a norm on the
    class token alone after the last. Dosovitskiy et al. 2021, eq. 1–4; Radford et al.
    2021, sec. 2.4. With keep < 1 training sees that share of the patches (FLIP, Li et
    al. 2023).
    """

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        hidden: int = 0,
        activation: str = "quick_gelu",
        keep: float = 1.0,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not tile {image_size} pixels")
        tokens = (image_size // patch_size) ** 2 + 1
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, activation, hidden) for _ in range(depth)
        )
        self.norm_post = nn.LayerNorm(width)
        self.width, self.image_size, self.keep = width, image_size, keep

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch(pictures).flatten(2).transpose(1, 2)  # (B, N, width)
        x = x + self.positions[1:]
        if self.training and self.keep < 1:
            x = self.drop_patches(x)
        token = (self.class_token + self.positions[0]).expand(len(x), 1, -1)
        x = self.norm_pre(torch.cat([token.to(x.dtype), x], 1))  # (B, N+1, width)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.norm_post(state_at(self.blocks, x, first))  # (B, width)

    def drop_patches(self, x: Tensor) -> Tensor:
        """A random part of the patches, others in each row: (B, N, w) → (B, n, w)."""
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)  # (B, N)
        kept = order[:, : max(1, int(self.keep * x.shape[1]))]
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[2]))


# %% [markdown]
# ### The same numbers as the library
# The reference is the image tower of CLIP in `transformers`. Its weights bear other
# names, and keep queries, keys and values apart. Copy them over, feed both towers the
# same pictures.

# %%
from transformers import CLIPVisionConfig, CLIPVisionModel

RENAME = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding": "patch",
    "embeddings.position_embedding.weight": "positions",
    "pre_layrnorm": "norm_pre",  # the misspelling is theirs
    "post_layernorm": "norm_post",
    "encoder.layers": "blocks",
    "self_attn.out_proj": "attention.out",
    "self_attn": "attention",
    "layer_norm": "norm",
    "mlp.": "",
}


def renamed(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """CLIPVisionModel's weights under the names of our ViT."""
    ours = {}
    for name, value in theirs.items():
        for old, new in RENAME.items():
            name = name.replace(old, new)
        ours[name.removeprefix("vision_model.")] = value
    for i in range(depth):
        for part in ("weight", "bias"):
            at = f"blocks.{i}.attention."
            three = [ours.pop(f"{at}{x}_proj.{part}") for x in "qkv"]
            ours[f"{at}qkv.{part}"] = torch.cat(three)
    return ours


# %%
torch.manual_seed(0)
config = CLIPVisionConfig(
    image_size=64,
    patch_size=16,
    hidden_size=48,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=3,
)
theirs = CLIPVisionModel(config).eval()
ours = ViT(64, 16, width=48, depth=2, heads=3).eval()
ours.load_state_dict(renamed(theirs.state_dict(), depth=2))

with torch.no_grad():
    difference = ours(centre(cat)) - theirs(centre(cat)).pooler_output
print("equal to transformers' tower:", bool(difference.abs().max() < 1e-5))

# %% [markdown]
# ### Equal, and faster: one token asks
# Nobody reads what the last block makes of the other tokens. They are looked at, but
# need not ask, nor pass through its MLP.


# %% tags=["brick:attention", "blank"]
def state_at(
    blocks: nn.ModuleList, x: Tensor, places: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The token at one place of each row, after all blocks: (B, width).

    x: (B, L, width); places: (B,) int64; mask: (L, L), as in `attend`. In the last
    block that token alone asks, which gives it what it would get among all.
    """
    *blocks, last = blocks
    for block in blocks:
        x = block(x, mask)
    rows = torch.arange(len(x), device=x.device)
    q, k, v = last.attention.project(last.norm1(x))  # (B, h, L, d) each
    q = q[rows, :, places].unsqueeze(2)  # (B, h, 1, d)
    mask = None if mask is None else mask[places, None, None]  # (B, 1, 1, L)
    change = last.attention.out(join_heads(attend(q, k, v, mask)))  # (B, 1, width)
    x = x[rows, places] + change.squeeze(1)
    return x + last.mlp(last.norm2(x))


# %%
x, places = torch.randn(2, 10, 48), torch.tensor([0, 7])
among_all = there_and_back(lambda x: blocks(x)[[0, 1], places], x)
alone = there_and_back(lambda x: state_at(blocks, x, places), x)
print("the same output and gradient:", agree(alone, among_all))

last, x = nn.Sequential(Block(96, heads=3)), torch.randn(64, 65, 96)
first = torch.zeros(64, dtype=torch.long)
gain = costs.speedup(
    lambda: there_and_back(lambda x: last(x)[:, 0], x),
    lambda: there_and_back(lambda x: state_at(last, x, first), x),
)
print("a last block is more than twice as fast:", gain > 2)

# %% [markdown]
# ## Both towers learn
# The task: name the group of a picture. A linear layer on the tower's vector gives nine
# scores. Each step shows 48 pictures, turned, shifted and tinted a little; both towers
# see the same ones. They are tested on concepts of which they saw no drawing at all.

# %%
import copy
import random

from utils import training

here = device.pick()


def classifier(tower: nn.Module) -> nn.Sequential:
    return nn.Sequential(tower, nn.Linear(tower.width, len(groups))).to(here)


def learn(model: nn.Sequential, lr: float, name: str) -> list[float]:
    def loss(step: int) -> Tensor:
        rows = torch.tensor(data.draw(train, 48, random.Random(step)))
        pictures = train.pictures[rows].to(here).float() / 255
        pictures = data.augment(pictures, device.generator(0, step))
        return F.cross_entropy(model(centre(pictures)), labels[rows].to(here))

    return training.fit(model, loss, steps=160, lr=lr, name=name)


# %% [markdown]
# > **Predict first.** Same pictures, same number of steps, about as many weights. Which
# > one is ahead?
#
# <details><summary>Answer</summary>
#
# The ResNet, clearly. It is built on two things that are true of pictures: near pixels
# belong together, and a thing is the same thing elsewhere. The ViT has to learn both
# from the data. With hundreds of millions of pictures that handicap fades: Dosovitskiy
# et al. (2021, fig. 3) see ViTs behind ResNets when both train on ImageNet, and ahead
# after 300 million pictures.
#
# </details>


# %%
torch.manual_seed(0)
resnet = classifier(ResNet((32, 64, 128), (1, 1, 1)))
resnet_losses = learn(resnet, 2e-3, "ResNet")

# %%
torch.manual_seed(0)
vit = classifier(ViT(patch_size=8, width=96, depth=3, heads=3))
vit_losses = learn(vit, 1e-3, "ViT")


# %%
@torch.no_grad()
def accuracy(model: nn.Module, pictures: Tensor, targets: Tensor) -> float:
    parts = pictures.split(256)
    scores = torch.cat([model(centre(part.to(here))).cpu() for part in parts])
    return (scores.argmax(1) == targets).float().mean().item()


def six_colours(pictures: Tensor) -> Tensor:
    """Mean and spread of red, green and blue, and a 1: (N, 7)."""
    x = pictures.float() / 255
    return torch.cat([x.mean((2, 3)), x.std((2, 3)), torch.ones(len(x), 1)], 1)


answers = F.one_hot(labels).float()
fit = torch.linalg.lstsq(six_colours(train.pictures), answers).solution  # (7, groups)
by_colour = (six_colours(unseen.pictures) @ fit).argmax(1) == unseen_labels
largest = (unseen_labels.bincount().max() / len(unseen)).item()
accuracies = {
    "always the largest group": largest,
    "six colour numbers, linear": by_colour.float().mean().item(),
    "ViT": accuracy(vit, unseen.pictures, unseen_labels),
    "ResNet": accuracy(resnet, unseen.pictures, unseen_labels),
}
colours_alone = accuracies["six colour numbers, linear"]
ahead = accuracies["ResNet"] - colours_alone
print("the ResNet beats colours by 5 points:", ahead > 0.05)
print("the ResNet learns faster here:", accuracies["ResNet"] > accuracies["ViT"])

# %%
fig, (curves, bars) = plots.figure(columns=2, height=2.8)
plots.curve(curves, resnet_losses, "ResNet", "image", smooth=20)
plots.curve(curves, vit_losses, "ViT", "shared", smooth=20)
curves.set(xlabel="step", ylabel="loss", title="The ResNet's loss falls faster")
curves.legend()
title = "It names more unseen pictures"
plots.bars(bars, accuracies, "image", title, "accuracy", "{:.0%}")
bars.set_xlim(0, 0.8)
plots.show(fig, "Loss and accuracy: the ResNet leads; the ViT is level with colours")

# %% [markdown]
# After so few steps the ViT knows hardly more than six colour numbers do.
#
# ### What has training changed?
# The test from the top, on all unseen pictures: is a picture, moved by 8 pixels, nearer
# to itself than to another picture? In pixels, for both towers as they were before
# their training, and after it. **Predict first:** which of the five passes?
#
# <details><summary>Answer</summary>
#
# All but the pixels, more or less. An untrained ResNet passes as well as a trained one:
# windows that slide, and a mean over places, hardly mind a move. That is the
# architecture's gift, not learning.
#
# </details>
#
# So ask a second question. Is the nearest picture of *another* concept from the same
# group: fruit near fruit, flag near flag?


# %%
@torch.no_grad()
def vectors(tower: nn.Module, pictures: Tensor) -> Tensor:
    parts = pictures.split(256)
    return torch.cat([tower.eval()(centre(part.to(here))).cpu() for part in parts])


def in_pixels(pictures: Tensor) -> Tensor:
    return (pictures.float() / 255).flatten(1)


names = unseen.table["label_en"]
concepts = torch.tensor([sorted(set(names)).index(name) for name in names])


def two_tests(encode) -> tuple[float, float]:
    """Shares of pictures nearer to themselves, moved; and beside one of their group."""
    still, moved = encode(unseen.pictures), encode(unseen.pictures.roll(8, -1))
    other = still.roll(4, 0)  # the four styles of a concept stand side by side
    itself = (still - moved).norm(dim=1) < (still - other).norm(dim=1)
    distances = torch.cdist(still, still)
    distances[concepts[:, None] == concepts] = torch.inf
    same = unseen_labels[distances.argmin(1)] == unseen_labels
    return itself.float().mean().item(), same.float().mean().item()


# %%
torch.manual_seed(0)
fresh_resnet = ResNet((32, 64, 128), (1, 1, 1)).to(here)
torch.manual_seed(0)
fresh_vit = ViT(patch_size=8, width=96, depth=3, heads=3).to(here)
towers = {"ViT, untrained": fresh_vit, "ViT, trained": vit[0]}
towers |= {"ResNet, untrained": fresh_resnet, "ResNet, trained": resnet[0]}
tests = {"pixels": two_tests(in_pixels)}
for name, tower in towers.items():
    tests[name] = two_tests(lambda pictures, tower=tower: vectors(tower, pictures))

# %%
fig, axes = plots.figure(columns=2, width=9.5, height=2.2)
titles = "Nearer to itself, moved: architecture", "Beside its own group: learning"
for ax, place, title in zip(axes, (0, 1), titles, strict=True):
    shares = {name: values[place] for name, values in tests.items()}
    plots.bars(ax, shares, "image", title, "of unseen pictures", "{:.0%}")
    ax.set_xlim(0, 1.15)
axes[1].set_yticks([])
plots.show(fig, "Untrained towers pass the first test; the second needs training")
(fresh, fresh_same), (learnt, learnt_same) = (
    tests[f"ResNet, {state}"] for state in ("untrained", "trained")
)
print("a ResNet passes the first test untrained:", fresh > 0.9)
print("in the second, training gains 5 points:", learnt_same > fresh_same + 0.05)

# %% [markdown]
# ### Where the class token looks
# The ViT's answer is its class token's. In each block it mixes what the patches hold,
# and its attention weights say how much of each. Here they are for the last block, the
# mean of its heads, brighter where it looks more; untrained and trained.


# %%
@torch.no_grad()
def class_looks(tower: ViT, pictures: Tensor) -> Tensor:
    """The class token's attention to the patches in the last block: (B, side, side)."""
    x = tower.patch(centre(pictures)).flatten(2).transpose(1, 2) + tower.positions[1:]
    token = (tower.class_token + tower.positions[0]).expand(len(x), 1, -1)
    x = tower.norm_pre(torch.cat([token, x], 1))
    for block in tower.blocks[:-1]:
        x = block(x)
    q, k, _ = tower.blocks[-1].attention.project(tower.blocks[-1].norm1(x))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)  # (B, h, L, L)
    return weights.mean(1)[:, 0, 1:].unflatten(1, (8, 8))


# %%
glossy = unseen.where(style="fluent").pictures
eight = glossy[::19][:8].to(here)
lit, looks = {"the picture": eight.float() / 255}, {}
for name in ("untrained", "trained"):
    looks[name] = class_looks(towers[f"ViT, {name}"], eight)
    light = looks[name] / looks[name].amax((1, 2), keepdim=True)
    light = F.interpolate(light[:, None], size=64, mode="bilinear")
    lit[name] = lit["the picture"] * (0.15 + 0.85 * light)
plots.picture_rows(lit, alt="Eight pictures, lit where the class token looks")

ink = F.avg_pool2d((eight.float() / 255 < 0.94).any(1).float(), 8) > 0.2  # (8, 8, 8)
on_ink = {}
for name, tower in (("untrained", fresh_vit), ("trained", vit[0])):
    each = class_looks(tower, glossy.to(here))
    inked = F.avg_pool2d((glossy.float() / 255 < 0.94).any(1).float(), 8) > 0.2
    of_look = (each.cpu() * inked).sum((1, 2)) / each.cpu().sum((1, 2))
    on_ink[name] = (of_look / inked.float().mean((1, 2))).mean().item()
print("untrained, it looks everywhere alike:", abs(on_ink["untrained"] - 1) < 0.1)
print("trained, it chooses:", abs(on_ink["trained"] - 1) > 0.1)

# %% [markdown]
# What does each cost? Count weights and multiplications, and race one training step,
# both on the CPU in float32.

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiplications(model: nn.Module) -> int:
    """Multiply-adds of one picture's way through a model on the CPU."""
    picture = centre(unseen.pictures[:1])
    counter = FlopCounterMode(display=False)
    # the counter doesn't know the CPU's fused attention, so take the plain one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(picture)
    return counter.get_total_flops() // 2


def one_step(model: nn.Module) -> None:
    model(centre(unseen.pictures[:64])).square().sum().backward()


on_cpu = {"ResNet": copy.deepcopy(resnet).cpu(), "ViT": copy.deepcopy(vit).cpu()}
for name, model in on_cpu.items():
    millions = multiplications(model) / 1e6
    print(f"{name}: {count_weights(model):,} weights, {millions:.0f} M multiply-adds")
vit_step, resnet_step = (lambda m=on_cpu[n]: one_step(m) for n in ("ViT", "ResNet"))
gain = costs.speedup(vit_step, resnet_step)
print("a ResNet step is faster:", gain > 1)

# %% [markdown]
# ## What the channels look for
# Ask the trained ResNet. A channel of the first stage sees 20×20 pixels at a time. Take
# its channels, and for each the eight places in the training pictures that excite it
# most. Show the four channels whose eight places are most alike.


# %%
@torch.no_grad()
def stage_maps(pictures: Tensor) -> list[Tensor]:
    """The maps (N, channels, h, w) after each of the ResNet's stages."""
    parts = [[], [], []]
    for x in pictures.split(256):
        x, stage = centre(x.to(here)), 0
        for layer in resnet[0].layers:
            x = layer(x)
            if isinstance(layer, ResidualBlock):
                parts[stage].append(x.cpu())
                stage += 1
    return [torch.cat(part) for part in parts]


pool = train.take(list(range(0, len(train), 2)))
early, middle, late = stage_maps(pool.pictures)
print([tuple(x.shape[1:]) for x in (early, middle, late)])

# %%
padded = F.pad(pool.pictures, (8, 8, 8, 8), value=255)


def favourite_places(channel: int, count: int = 8) -> Tensor:
    """The 20×20 pixels under the strongest responses of an early channel."""
    strength, place = early[:, channel].flatten(1).max(1)
    crops = []
    for i in strength.topk(count).indices:
        row, column = divmod(int(place[i]), early.shape[-1])
        crops.append(padded[i, :, 4 * row : 4 * row + 20, 4 * column : 4 * column + 20])
    return torch.stack(crops)


places = torch.stack([favourite_places(channel) for channel in range(32)])
spread = places.float().std(1).mean((1, 2, 3))  # how much a channel's eight differ
ink = (255 - places.float()).mean((1, 2, 3, 4))
alike = ((spread + 1) / (ink + 1)).argsort()[:4]

plots.grid(
    places[alike].flatten(0, 1),
    size=44,
    alt="What excites four early channels most: edges, corners, colours",
    title="Early: a row is one channel",
)
print("channels, places, colours, height, width:", tuple(places.shape))

# %% [markdown]
# A channel of the last stage sees the whole picture. For five groups, take the channel
# whose eight favourite pictures hold most of that group.

# %%
pool_labels = torch.tensor([groups.index(g) for g in pool.table["group"]])
best = late.amax((2, 3)).topk(8, dim=0).indices.T  # (channels, 8)
shown = ["flags", "smileys-emotion", "people-body", "objects", "symbols"]
counts = [(pool_labels[best] == groups.index(group)).sum(1) for group in shown]
rows = [best[count.argmax()] for count in counts]  # (8,) pictures each

plots.grid(
    pool.pictures[torch.cat(rows)],
    size=42,
    alt="What excites five late channels most: flags, faces, people and other things",
    title="Late: a row is one channel",
)
flags = (pool_labels[rows[0]] == groups.index("flags")).float().mean()
print("the first row is mostly flags:", bool(flags > 0.5))

# %% [markdown]
# Pictures like these are easy to read too much into, so measure. Six numbers describe a
# picture's colours: mean and spread of red, green and blue. How much of what a channel
# says can be told from these six by a linear fit?


# %%
def explained_by_colour(maps: Tensor) -> float:
    """How much of the channels' variance six colour numbers explain (R²), up to 1."""
    colour = six_colours(pool.pictures)  # (N, 7)
    means = maps.mean((2, 3))  # (N, channels)
    residual = means - colour @ torch.linalg.lstsq(colour, means).solution
    return (1 - residual.var(0) / means.var(0).clamp(min=1e-9)).mean().item()


stages = {"early": early, "middle": middle, "late": late}
explained = {name: explained_by_colour(maps) for name, maps in stages.items()}
fig, ax = plots.figure(width=6, height=2)
title = "Late channels speak of more than colour"
plots.bars(ax, explained, "image", title, "variance that six colour numbers explain")
ax.set_xlim(0, 1)
plots.show(fig, "Colour explains most of the early channels, less and less later")
falling = explained["early"] > explained["middle"] > explained["late"]
print("colour explains less from stage to stage:", falling)

# %% [markdown]
# ## Play: how large should a patch be?
# A smaller patch keeps more of the picture and makes more tokens. Each token looks at
# each other, so attention's table grows with the *square* of the tokens. Here is the
# whole bill for a ViT.


# %%
def vit_cost(patch: int, width: int, depth: int, size: int = 64) -> tuple[int, int]:
    """Tokens, and multiply-adds of one picture."""
    n = (size // patch) ** 2
    length = n + 1
    cost = n * 3 * patch**2 * width  # the patches' product
    for asking in [length] * (depth - 1) + [1]:  # in the last block one token asks
        cost += 3 * length * width**2 + 9 * asking * width**2  # qkv; out, fc1, fc2
        cost += 2 * asking * length * width  # q·kᵀ and weights·v
    return length, cost


counted = multiplications(copy.deepcopy(vit[0]).cpu())
print("the formula agrees with torch's counter:", vit_cost(8, 96, 3)[1] == counted)

# %% [markdown]
# And what survives? A token has so many numbers and no more. The best that a linear
# token of `k` numbers can do on average is to keep the `k` directions in which patches
# differ most (their principal components). Put back what it kept:


# %%
from functools import cache


@cache
def directions(patch: int) -> tuple[Tensor, Tensor]:
    """Mean patch (D,), and up to 192 directions (D, q), the most telling first."""
    torch.manual_seed(0)
    tokens = patches(train.pictures[::8].float() / 255, patch).flatten(0, 1)
    tokens = tokens[torch.randperm(len(tokens))[:6000]]
    mean, most = tokens.mean(0), min(192, tokens.shape[1])
    return mean, torch.pca_lowrank(tokens - mean, q=most, center=False)[2]


def survives(picture: Tensor, patch: int, numbers: int) -> Tensor:
    """The picture after each patch went through a token of so many numbers."""
    mean, basis = directions(patch)
    basis = basis[:, :numbers]
    tokens = (patches(picture[None], patch) - mean) @ basis  # (1, N, numbers)
    return put_back(tokens @ basis.T + mean, patch)[0].clamp(0, 1)


sizes = [4, 8, 16, 32]
kept = [survives(cat[0], patch, 24) for patch in sizes]
captions = [f"patch {p}: {vit_cost(p, 192, 6)[0] - 1} tokens" for p in sizes]
plots.grid(
    torch.stack([cat[0], *kept]),
    ["the picture", *captions],
    alt="A cat face from 24 numbers a token: sharp for small patches, a blur for large",
    size=96,
)
errors = [(cat[0] - x).square().mean().item() for x in kept]
print("with 24 numbers a token, larger patches lose more:", errors == sorted(errors))

# %% [markdown]
# **Try:** keep 24 numbers and walk through the patch sizes. Then give patches of 32
# more numbers, until the eyes come back.
#
# > **Predict first.** Halve the patch size. What happens to the tokens, and to the
# > pairs that attention compares?
#
# <details><summary>Answer</summary>
#
# Four times the tokens, about sixteen times the pairs. The multiply-adds grow less, at
# these sizes about four times: most of them are in the linear layers, which grow with
# the tokens alone.
#
# </details>

# %%
from utils import widgets

things = ["cat face", "pizza", "rocket", "rainbow", "umbrella", "key"]


def draw(label: str, patch: int, numbers: int) -> str:
    picture = train.where(label_en=label, style="fluent").pictures[0].float() / 255
    length, cost = vit_cost(patch, 192, 6)
    numbers = min(numbers, 3 * patch**2)
    after = survives(picture, patch, numbers)
    facts = {
        "tokens": f"{length - 1} + 1",
        "pairs in attention": f"{length**2:,}",
        "multiply-adds (width 192, depth 6)": f"{cost / 1e6:,.0f} M",
        "pixel numbers in a patch": f"{3 * patch**2:,}",
        "kept of them": f"{numbers / (3 * patch**2):.0%}",
    }
    row = "<tr><td>{}</td><td><b>{}</b></td></tr>"
    rows = "".join(row.format(*fact) for fact in facts.items())
    before = widgets.thumbnail(picture, 160, label)
    kept = widgets.thumbnail(after, 160, "what is kept")
    return f"<div>{before}{kept}</div><table>{rows}</table>"


widgets.live(
    [
        widgets.choice("Picture", things),
        widgets.choice("Patch size", sizes, 16),
        widgets.slider("Numbers a token", 24, 1, 192),
    ],
    draw,
    "Patch size against tokens, cost and what is kept.",
)

# %% [markdown]
# ## Break it: no way round
# Train small stacks with 2 blocks and with 16: plain, and residual with γ = 1, which
# differ in the way round alone; and the brick, whose γ starts at 0. Predict: for which
# of them is deeper worse?


# %%
def learn_stack(block, depth: int) -> float:
    """Mean loss over the last 20 of 80 steps."""
    torch.manual_seed(0)
    network = stack(block, depth, len(groups)).to(here)
    network = network.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        rows = torch.tensor(data.draw(train, 32, random.Random(step)))
        pictures = F.interpolate(centre(train.pictures[rows]), size=32, mode="area")
        return F.cross_entropy(network(pictures.to(here)), labels[rows].to(here))

    name = f"{block.__name__}, {depth} blocks"
    return sum(training.fit(network, loss, steps=80, lr=2e-3, name=name)[-20:]) / 20


kinds = {"plain": Plain, "residual, γ = 1": Busy, "residual, γ = 0": ResidualBlock}
fits = {name: [learn_stack(k, depth) for depth in (2, 16)] for name, k in kinds.items()}

# %%
fig, ax = plots.figure(width=5.5, height=2.8)
for name, colour, line in zip(fits, ("wrong", "image", "image"), "--:", strict=True):
    ax.plot(["2 blocks", "16 blocks"], fits[name], "o", ls=line, label=name,
            color=plots.COLOURS[colour])  # fmt: skip
ax.set(ylabel="training loss", title="Depth harms the plain stack and helps the others")
ax.legend()
plots.show(fig, "Training loss: depth is worse for plain, better for residual stacks")
plain, busy, calm = fits.values()
print("deeper is worse for the plain stack:", plain[1] > plain[0])
print("deeper is better for residual, γ = 1:", busy[1] < busy[0])
print("deeper is better for residual, γ = 0:", calm[1] < calm[0])
print("16 blocks, γ = 1: far better than plain:", busy[1] < plain[1] - 0.2)

# %% [markdown]
# This is training loss: the deep plain stack doesn't fit too much, it cannot fit. Yet
# it could copy what the shallow one does and pass it on unchanged through 14 blocks. It
# doesn't find that; the residual stack starts close to it.
#
# And γ = 0? In these 80 steps it is behind γ = 1: its blocks do nothing at first and
# need time. Its reason is another one: at larger sizes and rates a start at the
# identity keeps the first steps from blowing up (Goyal et al. 2017, sec. 5.1).

# %% [markdown]
# ## Break it: no positions
# Attention treats its tokens as a bag. Take the positions away, and shuffle the patches
# of a picture: to the class token nothing has happened.

# %%
torch.manual_seed(0)
tower = ViT(patch_size=16, width=64, depth=2, heads=2).eval()
order = torch.randperm(16, generator=device.generator(1))
shuffled = put_back(patches(cat, 16)[:, order], 16)
two = torch.stack([cat[3], shuffled[3]])
plots.grid(two, ["the picture", "shuffled"], alt="A cat face, shuffled", size=120)


@torch.no_grad()
def shift(tower: ViT) -> float:
    """How far the class vector moves when the patches are shuffled."""
    return (tower(centre(cat)) - tower(centre(shuffled))).abs().max().item()


with_positions = shift(tower)
tower.positions.data.zero_()
print("with positions, the vector moves:", with_positions > 1e-3)
print("without, it stays:", shift(tower) < 1e-4)

# %% [markdown]
# Does it matter? A bag of fur and whiskers may still say cat. So ask what no bag can
# know. Draw an emoji in one quarter of the page. Which quarter?


# %%
def place(pictures: Tensor, where: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64), scaled to one quarter of a white page."""
    page = torch.ones(len(pictures), 3, 2, 32, 2, 32)
    little = F.interpolate(pictures.float() / 255, size=32, mode="area")
    page[torch.arange(len(pictures)), :, where // 2, :, where % 2] = little
    return page.flatten(4).flatten(2, 3)


quarters = torch.arange(4)
pages = place(train.pictures[:1].expand(4, -1, -1, -1), quarters)
plots.grid(pages, [0, 1, 2, 3], alt="A face in each quarter of a page")
print("one emoji, four pages:", tuple(pages.shape))


# %%
def learn_where(positions: bool) -> float:
    """Accuracy on unseen pictures, each placed in all four quarters."""
    torch.manual_seed(0)
    tower = ViT(patch_size=16, width=64, depth=2, heads=2)
    if not positions:
        tower.positions.data.zero_()
        tower.positions.requires_grad_(False)
    model = nn.Sequential(tower, nn.Linear(64, 4)).to(here)

    def loss(step: int) -> Tensor:
        chance = device.generator(0, step)
        rows = torch.randint(len(train), (64,), generator=chance)
        where = torch.randint(4, (64,), generator=chance)
        pictures = place(train.pictures[rows], where)
        return F.cross_entropy(model(centre(pictures).to(here)), where.to(here))

    training.fit(model, loss, steps=180, lr=2e-3, name=f"positions: {positions}")
    where = quarters.repeat(len(unseen))
    return accuracy(model, place(unseen.pictures.repeat_interleave(4, 0), where), where)


told_where, not_told = learn_where(True), learn_where(False)
print("with positions, more than 80 % right:", told_where > 0.8)
print("without, one in four, which is chance:", abs(not_told - 0.25) < 0.02)

# %% [markdown]
# All four pages hold the same 16 patches. Without positions the tower gives all four
# the same answer, whatever it learns, and one of them is right.

# %% [markdown]
# ## Exercises
# Write your answer into the stub, run it, run the check. A check says what it saw.

# %% [markdown]
# > **Exercise 1 · How large is the map?** — difficulty 1 of 3, about 4 minutes. Why it
# > matters: most errors in a convolutional network are shapes that do not fit. Write
# > `conv_size(size, kernel, stride, padding)`: the side of a convolution's output.


# %% tags=["exercise"]
def conv_size(size: int, kernel: int, stride: int, padding: int) -> int:
    # your answer
    ...


# %%
from utils.exercises.image_encoders import check_conv_size

check_conv_size(conv_size)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Pad the line on both sides. How many steps can the window take before it sticks out?
# The place where it starts counts too.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def conv_size(size, kernel, stride, padding):
#     return (size + 2 * padding - kernel) // stride + 1
# ```
#
# </details>

# %% [markdown]
# > **Exercise 2 · How far does it see?** — difficulty 2 of 3, about 8 minutes. Why it
# > matters: a channel cannot recognise what does not fit into its view. Write
# > `receptive_field(layers)` for a list of `(kernel, stride)`, the first layer first:
# > how many pixels in a row can change one output? For `[(3, 1), (3, 1)]` it is 5.


# %% tags=["exercise"]
def receptive_field(layers: list[tuple[int, int]]) -> int:
    # your answer
    ...


# %%
from utils.exercises.image_encoders import check_receptive_field

check_receptive_field(receptive_field)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep two numbers: the pixels seen so far, and how many pixels lie between two
# neighbours of the current map. Only a stride changes the second.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def receptive_field(layers):
#     field, jump = 1, 1  # pixels seen; pixels between neighbours
#     for kernel, stride in layers:
#         field += (kernel - 1) * jump
#         jump *= stride
#     return field
# ```
#
# </details>

# %% [markdown]
# > **Exercise 3 · Cut it with `reshape`** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: this split-and-permute is in every ViT, and a wrong order trains badly
# > without an error. Write `patchify(pictures, p)`: (B, C, H, W) → (B, N, C·p·p) with
# > `reshape` and `permute` alone. Patches row by row; inside a patch: channel, row,
# > column.


# %% tags=["exercise"]
def patchify(pictures: Tensor, p: int) -> Tensor:
    # your answer
    ...


# %%
from utils.exercises.image_encoders import check_patchify

check_patchify(patchify)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Split H into (rows, p) and W into (columns, p). That makes six axes. Which order do
# they need before the last `reshape`?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def patchify(pictures, p):
#     b, c, h, w = pictures.shape
#     split = pictures.reshape(b, c, h // p, p, w // p, p)
#     return split.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 4 · Count before you build** — difficulty 2 of 3, about 10 minutes. Why
# > it matters: from a config you can tell what fits into your memory. Write
# > `count_vit(image_size, patch_size, width, depth)`: the number of weights of the
# > `ViT` brick, from its arguments alone.


# %% tags=["exercise"]
def count_vit(image_size: int, patch_size: int, width: int, depth: int) -> int:
    # your answer
    ...


# %%
from utils.exercises.image_encoders import check_count_vit

check_count_vit(count_vit)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Outside the blocks: patches (no bias), class token, positions, two norms (each a gain
# and a bias). In a block: `qkv`, `out`, `fc1`, `fc2`, each with a bias, and two norms.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def count_vit(image_size, patch_size, width, depth):
#     n = (image_size // patch_size) ** 2
#     outside = 3 * patch_size**2 * width + width + (n + 1) * width + 2 * 2 * width
#     attention = 4 * width**2 + 4 * width  # qkv and out
#     mlp = 8 * width**2 + 5 * width
#     norms = 2 * 2 * width
#     return outside + depth * (attention + mlp + norms)
# ```
#
# </details>

# %% [markdown]
# > **Exercise 5 · A larger picture** — difficulty 2 of 3, about 10 minutes. Why it
# > matters: a ViT has a learnt position for each patch and no other; this is how its
# > weights are used at another size (Dosovitskiy et al. 2021, sec. 3.2). Write
# > `resize_positions(positions, old, new)`: `positions` is (1 + old², w), the class
# > token's first, then the patches' row by row. Return (1 + new², w): the class token's
# > as it is, the others as a map of old × old, resized by `F.interpolate` with
# > `mode="bilinear"`.


# %% tags=["exercise"]
def resize_positions(positions: Tensor, old: int, new: int) -> Tensor:
    # your answer
    ...


# %%
from utils.exercises.image_encoders import check_resize_positions

check_resize_positions(resize_positions)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `F.interpolate` wants (B, channels, H, W). The w numbers of a position are the
# channels; the patches make the map.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def resize_positions(positions, old, new):
#     grid = positions[1:].T.reshape(1, -1, old, old)  # (1, w, old, old)
#     grid = F.interpolate(grid, size=(new, new), mode="bilinear")
#     return torch.cat([positions[:1], grid.flatten(2)[0].T])
# ```
#
# </details>

# %% [markdown]
# ## Myth check
# **"32×32 patches capture more detail than 16×16."** The other way round. A larger
# patch is coarser: the picture has fewer tokens.

# %%
for patch in (32, 16, 14):
    print(f"224 pixels in patches of {patch}: {(224 // patch) ** 2} tokens")

# %% [markdown]
# CLIP's zero-shot accuracy on ImageNet follows: ViT-B/32 63.3 %, ViT-B/16 68.3 %, and
# the larger ViT-L/14 75.5 % (re-measured by OpenCLIP, `docs/openclip_results.csv`).
#
# **"Take `openai/clip-vit-large-patch32`."** There is no such model. OpenAI released
# RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32, ViT-B/16, ViT-L/14 and ViT-L/14 at
# 336 pixels (`openai/CLIP`, `clip/clip.py`).
#
# **"A CLIP vector has 512 numbers."** That is so for ViT-B/32, ViT-B/16 and RN101.
# RN50x4 has 640, ViT-L/14 and RN50x16 have 768, RN50 and RN50x64 have 1024 (OpenCLIP's
# `model_configs`).
#
# **"A ViT is better than a ResNet."** It depends on size, data and cost. In the same
# OpenCLIP table CLIP's largest ResNet, RN50x64, has 73.9 % and its ViT-B/16 68.3 %; but
# for equal compute CLIP's authors found ViTs about three times as efficient (Radford et
# al. 2021, sec. 3.2). On your machine, today, the ResNet was ahead.
#
# **"VGG was the state of the art in face recognition."** Its paper reports ImageNet
# 2014: first in localisation, second in classification (Simonyan and Zisserman 2015,
# abstract).

# %% [markdown]
# ## Differs from the paper
# - **ResNet.** He et al. start with a 7×7 window of stride 2 and a max-pool; for 64
#   pixels we take 4×4 with stride 4. They shrink by strided convolutions, we by an
#   average pool and a 1×1 convolution. The zero start of the last norm is Goyal et
#   al.'s (2017, sec. 5.1).
# - **CLIP's own ResNets** have a stem of three convolutions and end in an attention
#   pool instead of the mean (Radford et al. 2021, sec. 2.4).
# - **ViT.** Dosovitskiy et al. use GELU and no norm before the first block. We follow
#   CLIP's layout, so that its weights fit.
# - **Scale.** Seven thousand drawings, for less than a minute; CLIP saw 400 million
#   pairs (Radford et al. 2021, sec. 2.2).

# %% [markdown]
# ## Where this goes next
# The vector is only as rich as its labels, and nine groups say little about a cat. The
# next lessons replace labels by sentences. **02** builds the tower that reads; its
# blocks are the ones you have just written. **03** trains both together.
#
# ## Read more
# - Simonyan and Zisserman 2015, *Very deep convolutional networks for large-scale image
#   recognition*, sec. 2.3: arXiv 1409.1556
# - He et al. 2016, *Deep residual learning for image recognition*, sec. 3 and 4.1:
#   arXiv 1512.03385
# - Vaswani et al. 2017, *Attention is all you need*, sec. 3.2: arXiv 1706.03762
# - Dosovitskiy et al. 2021, *An image is worth 16×16 words*, sec. 3 and 4.3: arXiv
#   2010.11929
# - `openai/CLIP`, `clip/model.py`: `ModifiedResNet` and `VisionTransformer`
#
# **Words:** 卷积 convolution · 卷积核 kernel · 特征图 feature map · 通道 channel ·
# 感受野 receptive field · 残差连接 residual connection · 批归一化 batch normalisation ·
# 梯度消失 vanishing gradient · 图像块 patch · 类别标记 class token · 位置嵌入 position
# embedding · 注意力 attention · 多头 multi-head · 前置归一化 pre-norm
