# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Welcome
#
# You type words, and a machine paints a picture. **What has to be inside such a
# machine?** In this course you build all of it, in notebooks, on the computer in front
# of you: first a model that reads words and looks at pictures, then models that draw.
#
# This page takes five minutes. It shows where you are going, how a lesson works, what
# the data looks like, and whether your computer is ready. To run a cell, click into it
# and press **Shift+Enter**.

# %%
import torch

from utils import checkpoints, data, machine, plots, widgets
from utils.bricks.unclip import imagine
from utils.bricks.zero_shot import classify

train = data.load_emoji("train").where(skin_tone="none")
unseen = data.load_emoji("unseen").where(skin_tone="none")
print(f"{len(train)} pictures to learn from, {len(unseen)} kept aside")

# %% [markdown]
# ## What you will build
# Here are eight of the pictures kept aside. No model of this course was trained on
# them, nor on another drawing with the same name. Under each stands the name that the
# model of lessons 03 and 04, a *CLIP*, gives it: a network that compares pictures with
# texts. It chose from the 150 names kept aside. **These eight were picked because it is
# right**; the last line says how often it is right on all of them. Luck is right once
# in 150.

# %%
NAMES = ["brown heart", "six-thirty", "farmer", "speaker high volume"]
NAMES += ["red circle", "woman superhero", "small blue diamond", "man vampire"]

drawn = unseen.where(style="fluent")
rows = [drawn.table["label_en"].index(name) for name in NAMES]
choices = sorted(set(unseen.table["label_en"]))
pixels = drawn.pictures.float() / 255  # (144, 3, 64, 64), in [0, 1]
probabilities = classify(checkpoints.load("clip"), pixels, choices)  # (144, 150)
given = [choices[i] for i in probabilities.argmax(1).tolist()]  # one name each
alt = "Eight drawings, each with the name a CLIP gives it"
plots.grid(pixels[rows], [given[i] for i in rows], alt=alt)

right = [a == b for a, b in zip(given, drawn.table["label_en"], strict=True)]
accuracy = sum(right) / len(right)
print("of these eight, at least half are right:", sum(right[i] for i in rows) >= 4)
print("of all, one in six to one in three are right:", 1 / 6 < accuracy < 1 / 3)

# %% [markdown]
# Nobody showed it a brown heart. It learnt from other pictures with other captions, of
# other hearts and other brown things. By the end of lesson 04 you have run every line
# of the model, and in the practice notebooks written those that matter.
#
# And by the end of the course you have built machines that draw. Four wishes, and what
# three of them make of each, one attempt a wish; nothing was picked:

# %%
WISHES = ["red apple", "a flat drawing of cat face", "a 3D drawing of purple heart"]
WISHES += ["a shaded drawing of rocket"]
DRAWERS = {"DALL·E, lesson 08": "dalle", "latent diffusion, 14": "latent_diffusion"}
strip = {
    name: checkpoints.load(model).generate(WISHES, guidance=3.0).cpu()
    for name, model in DRAWERS.items()
}
imagined = imagine(checkpoints.load("prior"), WISHES)
strip["unCLIP, 15"] = checkpoints.load("unclip").draw(imagined).cpu()
plots.picture_rows(strip, alt="Apples, cats, hearts and rockets in three hands")

# %% [markdown]
# ## The map
# Fifteen lessons in three parts.
#
# ![The map of the course. Part one, words meet pictures: image encoders, text encoders,
# contrastive loss, zero-shot prompting. Part two, pictures as codes: VQ-VAE, dVAE,
# VQGAN, DALL·E, the VQGAN-CLIP loop. Part three, noise into pictures: diffusion
# noising, sampling and guidance, CLIP-guided diffusion, DiffusionCLIP, latent
# diffusion, unCLIP](../assets/figures/00_map.svg)
#
# - **Part I** builds a CLIP (Radford et al. 2021): a tower that looks, a tower that
#   reads, and one space where both meet.
# - **Part II** turns pictures into short rows of codes, like words, and learns to write
#   them: the road to DALL·E.
# - **Part III** turns noise into pictures, step by step, with words to steer by: the
#   road to Stable Diffusion and DALL·E 2.
#
# You need Python, and to have seen a neural network train in PyTorch. You do not need a
# GPU. The network can be off. A lesson takes an evening. In minutes, estimated from
# its length, to read and run it, and to solve its exercises:
#
# | lesson | 01 | 02 | 03 | 04 | 05 | 06 | 07 | 08 | 09 | 10 | 11 | 12 | 13 | 14 | 15 |
# |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
# | run | 90 | 70 | 60 | 70 | 75 | 75 | 80 | 80 | 60 | 90 | 60 | 55 | 55 | 60 | 55 |
# | solve | 40 | 40 | 25 | 30 | 40 | 35 | 45 | 30 | 30 | 35 | 30 | 30 | 30 | 30 | 30 |

# %% [markdown]
# ## How a lesson works
# One rule holds in all of them: **you import nothing that you have not built.** PyTorch
# gives tensors, gradients and simple layers. Every model, tokenizer and loss above that
# you define yourself, in a cell. Such a cell is a **brick**. Later lessons import your
# bricks by name. Data, training loops, figures and widgets come from `utils`; other
# libraries come in only as judges. This page borrows bricks from later lessons. Here is
# one from lesson 01:

# %%
from utils.bricks.image_encoders import ResidualBlock

print(ResidualBlock.__module__)
print(ResidualBlock.__doc__.splitlines()[0])

# %% [markdown]
# Before a brick comes a toy that you can check by hand. After it comes a cell that
# proves it right.
#
# **To build rather than to read**, type `make practice LESSON=01` in a terminal (where
# there is no make, `python -m tools.practice 01`) and open
# `practice/01_image_encoders.ipynb`. It is the same lesson with some bricks blank. You
# write them, a check under each says what differs from the brick that the course ships,
# and from a ✓ on the lesson runs with yours. What you wrote is kept when the notebook
# is made again. `LESSON=00` has one small blank, to try it.
#
# At the end of each lesson wait three to five **exercises**. A small one to begin with:
# write your answer in place of the dots, run the cell, then run the check under it.
#
# > **Exercise 1 · Luck** — difficulty 1 of 3, about 1 minute. Why it matters: a score
# > means nothing until you know what guessing would score. Write `chance(names)`: how
# > often a blind guess among that many names is right, as a share between 0 and 1.


# %% tags=["exercise"]
def chance(names: int) -> float:
    # your answer
    ...


# %%
from utils.exercises.welcome import check_chance

check_chance(chance)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With two names, a guess is right half of the time.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def chance(names):
#     return 1 / names
# ```
#
# </details>
#
# A check prints ○ when you have not tried, ✗ with a hint, or ✓. Give it a wrong answer
# too: nothing breaks. When a notebook is full of experiments, `make fresh LESSON=00`
# puts it back as shipped and keeps yours beside it.

# %% [markdown]
# ## The data: Emoji-4
# One data set runs through the course: about 1,900 things, each drawn in up to four
# styles by four teams of artists. It is small enough for a laptop, and it has what the
# big ones have: pictures with words.

# %%
SHOWN = ["cat face", "bicycle", "hot beverage", "rainbow"]
found = [train.table["label_en"].index(name) for name in SHOWN]
drawings = [train.where(label_en=name) for name in SHOWN]

pictures = torch.cat([pairs.pictures for pairs in drawings])  # (16, 3, 64, 64)
captions = [style for _ in SHOWN for style in data.STYLES]
plots.grid(pictures, captions, alt="Four things in four styles each", columns=8)
print(", ".join(SHOWN))

# %% [markdown]
# Each has a label and keywords, in English and in Chinese. Captions are put together
# from them at random, so that in training no picture is always called the same.

# %%
import random

rng = random.Random(0)
for i in found[:3]:
    print(train.caption(i, rng, ["en"]), "|", train.caption(i, rng, ["zh"]))

# %% [markdown]
# ## Play: search by keyword
# A **widget** answers a question while you watch. This one shows what has your word as
# its label or among its keywords. Type `cat`, then `drink`, and press Enter.
#
# **Predict first.** What will `something to drink` find? Decide, try it, then open the
# answer.
#
# <details><summary>Answer</summary>
#
# Nothing, and one red line says so, with the keywords that are spelt most like it. A
# keyword search knows the words on its list and no others. In lesson 04 you search by
# meaning, with whole sentences.
#
# </details>


# %% tags=["blank"]
glossy = train.where(style="fluent")


def matches(word: str) -> list[int]:
    """The rows that have this word as a label or among their keywords."""
    hits = []
    for i in range(len(glossy)):
        row = glossy.row(i)
        labels = [row["label_en"], row["label_zh"]]
        if word in labels + row["keywords_en"] + row["keywords_zh"]:
            hits.append(i)
    return hits


# %%
KEYWORDS = set(glossy.table["label_en"] + glossy.table["label_zh"])
for column in ("keywords_en", "keywords_zh"):
    KEYWORDS |= {word for words in glossy.table[column] for word in words}


def search(text: str) -> str:
    (word,) = widgets.known(widgets.prompts(text, most=1), KEYWORDS, "keyword")
    hits = matches(word)
    labels = [glossy.table["label_en"][i] for i in hits]
    shown = widgets.captioned(glossy.pictures[hits[:12]], labels[:12])
    return f"<p>{len(hits)} found</p>{shown}"


widgets.live([widgets.text("keyword", "猫")], search, "A search by keyword.")

# %% [markdown]
# What the widget shows at first:

# %%
cats = matches("猫")
captions = [glossy.table["label_en"][i] for i in cats]
plots.grid(glossy.pictures[cats], captions, alt="What has the keyword 猫: cats")
print(len(cats), "found")
print(len(matches("something to drink")), "for something to drink")

# %% [markdown]
# ## Is your computer ready?
# The next cell examines it. Its report stays on your screen; the notebook keeps the
# verdict alone.

# %%
import html

findings = machine.check_machine() + machine.check_packages()
findings += [machine.check_data()]

report = html.escape(machine.report(findings))
widgets.live([], lambda: f"<pre>{report}</pre>", "A report on your computer.")
print("your computer is ready:", all(f.mark != "✗" for f in findings))

# %% [markdown]
# A line with ✗ must be mended, and the line under it says how. A line with ○ is good to
# know. Two cores and 4 GB of memory are enough: on two that multiply bfloat16 a lesson
# ran in 90 seconds or less; on older ones it takes one to five minutes. A GPU is used
# when there is one. `make doctor` prints the same report in a terminal.

# %% [markdown]
# ## Where this goes next
# Open `01_image_encoders.ipynb` in the list on the left. **How do thousands of pixels
# become one short vector that says what is in the picture?**
#
# ## Read more
# - Radford et al. 2021, *Learning transferable visual models from natural language
#   supervision* (CLIP): arXiv 2103.00020
# - The data set's card, with its licences: `assets/emoji/README.md`
#
# **Words:** 图文对 image–text pair · 图像编码器 image encoder · 文本编码器 text
# encoder · 对比学习 contrastive learning · 零样本 zero-shot · 提示词 prompt · 码本
# codebook · 扩散模型 diffusion model
