"""Checks of the exercises in lesson 02."""

import numbers

import torch

from utils.bricks.text_encoders import END, START, Tokenizer, learn_merges, merge
from utils.exercises import close, exercise, expect, tried

TEXTS = ("red fox", "red foxes", "the red cat", "猫", "红色的猫", "a fox and a cat")


@exercise("count and merge")
def check_bpe_step(bpe_step):
    words = {("c", "a", "t</w>"): 1, ("c", "a", "r</w>"): 1, ("c", "a", "p</w>"): 1}
    words |= {("a", "t</w>"): 4}
    before = dict(words)
    answer = tried(bpe_step(words))
    expect(
        isinstance(answer, tuple) and len(answer) == 2,
        f"you returned a {type(answer).__name__}; return the pair and the new words",
    )
    pair, new = answer
    expect(
        len(pair) == 2 and not isinstance(pair, str),
        f"you returned {answer}; return the pair and the new words",
    )
    expect(words == before, "you changed the `words` you were given; build a new dict")
    expect(
        tuple(pair) != ("c", "a"),
        "c+a stands in 3 words, which occur once each; a+t</w> occurs 1 + 4 times: "
        "a pair counts as often as its word occurs",
    )
    expect(tuple(pair) == ("a", "t</w>"), f"a+t</w> occurs 5 times; you chose {pair}")
    right = {merge(symbols, ("a", "t</w>")): count for symbols, count in words.items()}
    expect(isinstance(new, dict), "the second part is a dict: symbols → count")
    expect(
        dict(new) == right,
        f"after merging a+t</w> the words are {right}, yours are {new}",
    )

    tie, _ = bpe_step({("a", "b", "c</w>"): 1})
    expect(
        tuple(tie) == ("b", "c</w>"),
        f"for 'abc' both pairs occur once; the one that sorts last wins, not {tie}",
    )
    pair, new = bpe_step({("a", "a", "a", "b</w>"): 3})
    expect(
        tuple(pair) == ("a", "a") and list(new) == [("aa", "a", "b</w>")],
        "'aaab' holds a+a twice, and merged from the left it is aa a b; "
        f"yours is {pair} and {new}",
    )
    return "that is one round of BPE"


@exercise("from ids back to text")
def check_decode(decode):
    tokenizer = Tokenizer(learn_merges(TEXTS, 12))
    ids = tokenizer.encode("red fox")
    answer = tried(decode(ids, tokenizer.tokens))
    expect(isinstance(answer, str), f"a text is a str, not a {type(answer).__name__}")
    expect("</w>" not in answer, f"{answer!r} still holds </w>: words end there")
    expect(answer != "redfox", "the words run together: put a space between them")
    expect(answer == answer.strip(), f"{answer!r}: spaces stand between words only")
    expect(answer == "red fox", f"'red fox' came back as {answer!r}")

    ids = tokenizer([TEXTS[1]])[0].tolist() + [tokenizer.end] * 2
    answer = decode(ids, tokenizer.tokens)
    expect(START not in answer and END not in answer, "START and END are not text")
    expect(answer == TEXTS[1], f"{TEXTS[1]!r} with START and END gave {answer!r}")

    plain = Tokenizer([])
    try:
        answer = decode(plain.encode("猫 café 🐈"), plain.tokens)
    except UnicodeDecodeError:
        answer = "�"
    expect(
        "�" not in answer,
        "a token may hold a third of a character: join the bytes of a word first",
    )
    expect(
        answer == "猫 café 🐈",
        f"'猫 café 🐈' came back as {answer!r}: turn each symbol into its byte",
    )
    return "every script comes back whole"


@exercise("a window")
def check_window_mask(window_mask):
    answer = torch.as_tensor(tried(window_mask(5, 2)))
    expect(
        tuple(answer.shape) == (5, 5), f"the shape is {tuple(answer.shape)}, not (5, 5)"
    )
    expect(
        answer.is_floating_point(),
        f"the mask is added to scores: it holds 0.0 and -inf, yours is {answer.dtype}",
    )
    expect(not answer.isnan().any(), "there is a NaN: 0 · inf is not a number")
    expect(
        (answer.diagonal() == 0).all(),
        "a token may always look at itself: 0 on the diagonal",
    )
    seen = answer == 0
    expect(
        (answer[~seen] == -torch.inf).all(),
        "where a token may not look stands −inf; anything else leaks through",
    )
    place = torch.arange(5)
    back = place[:, None] - place
    expect(
        not (seen & (back < 0)).any(),
        "a token sees one that comes after it; is the mask the wrong way round?",
    )
    expect(
        (seen == ((back >= 0) & (back < 2))).all(),
        f"with width 2 the last token sees 2 tokens, itself included; "
        f"yours sees {int(seen[-1].sum())}",
    )
    wide = torch.as_tensor(window_mask(4, 9))
    expect(
        (wide == torch.full((4, 4), -torch.inf).triu(1)).all(),
        "a window wider than the text is the plain causal mask",
    )
    place = torch.arange(6)
    back = place[:, None] - place
    three = torch.as_tensor(window_mask(6, 3)) == 0
    expect(
        (three == ((back >= 0) & (back < 3))).all(),
        "with width 3 the last token sees 3 tokens, itself included; "
        f"yours sees {int(three[-1].sum())}",
    )
    return "each token sees itself and a little of the past"


@exercise("the vector at END")
def check_pool(pool):
    end = 9
    ids = torch.tensor([[8, 3, 9, 9, 9], [8, 3, 4, 5, 9], [8, 9, 9, 9, 9]])
    states = torch.arange(3 * 5 * 2, dtype=torch.float32).view(3, 5, 2)
    answer = torch.as_tensor(tried(pool(states, ids, end)))
    expect(
        tuple(answer.shape) == (3, 2),
        f"one vector a row: (3, 2), not {tuple(answer.shape)}",
    )
    expect(
        not close(answer, states[:, -1]),
        "that is the last place of the table; in a short row it is padding",
    )
    expect(not close(answer, states[:, 0]), "that is START, which has seen nothing yet")
    mean = torch.stack(
        [states[0, :3].mean(0), states[1].mean(0), states[2, :2].mean(0)]
    )
    expect(
        not close(answer, mean),
        "that is the mean up to END, a bag of words; take the one vector at END",
    )
    before = states[torch.arange(3), torch.tensor([1, 3, 0])]
    expect(not close(answer, before), "that is the token before END, one too early")
    right = states[torch.arange(3), torch.tensor([2, 4, 1])]
    expect(
        close(answer, right),
        "the first END of the rows stands at places 2, 4 and 1; yours are others",
    )
    one = torch.eye(4)[None]
    expect(
        close(pool(one, torch.tensor([[5, 2, 2, 2]]), 2), one[:, 1]),
        "END is the id you are given, not always the largest in the row",
    )
    expect(
        close(pool(one, torch.tensor([[5, 2, 7, 2]]), 2), one[:, 1]),
        "what follows END may be anything; look for the first END, count nothing",
    )
    return "the vector that has read the whole caption"


@exercise("how large a vocabulary")
def check_merges_needed(merges_needed):
    merges = learn_merges(TEXTS, 25)

    def mean(n: int) -> float:
        tokenizer = Tokenizer(merges[:n])
        return sum(len(tokenizer.encode(text)) for text in TEXTS) / len(TEXTS)

    means = [mean(n) for n in range(len(merges) + 1)]
    answer = tried(merges_needed(list(TEXTS), merges, 1000))
    expect(answer == 0, f"bytes alone are shorter than 1000: 0 merges, not {answer}")
    for target in (means[0] / 2, means[7], means[-1]):
        right = next(n for n, value in enumerate(means) if value <= target)
        answer = merges_needed(list(TEXTS), merges, target)
        expect(
            answer is not None,
            f"{right} merges give {target:.2f} tokens a text; you returned None. Count "
            "encode(text), without START and END, and take the mean over texts",
        )
        expect(
            isinstance(answer, numbers.Integral) and not isinstance(answer, bool),
            f"the number of merges is an int, not a {type(answer).__name__}",
        )
        expect(
            answer != right + 1,
            f"one too many: {right} merges already reach {target:.2f} tokens a text "
            "(at most the target, not less)",
        )
        expect(
            answer != right - 1,
            f"one too few: merges[:{answer}] gives more than {target:.2f} tokens",
        )
        expect(
            answer == right,
            f"for {target:.2f} tokens a text {right} merges are needed, not {answer}; "
            "is it the mean over texts, and the first merges?",
        )
    answer = merges_needed(list(TEXTS), merges, 0.5)
    expect(answer is None, f"half a token a text cannot be had: None, not {answer}")
    return "now the price of a shorter text is a number"
