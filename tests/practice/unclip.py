"""Lesson 15: answers that must be refused, and others that are right."""

LESSON = "15"
GIVEN = {}

WRONG = [
    ("slerp", "(parts[0] * start + parts[1] * end) / angle.sin()",
     "torch.lerp(start, end, torch.as_tensor(share).expand(len(start), 1))", "go round"),
    ("slerp", "(parts[0] * start + parts[1] * end) / angle.sin()",
     "F.normalize((1 - share) * start + share * end, dim=-1)", "its pace is uneven"),
    ("slerp", "parts[0] * start + parts[1] * end", "parts[1] * start + parts[0] * end",
     "are swapped"),
    ("slerp", " / angle.sin()", "", "to be divided"),
    ("slerp", "((1 - share) * angle).sin(), (share * angle).sin()",
     "((1 - share) * angle).cos(), (share * angle).cos()", "cosines where"),
    ("imagine", "argmax(0)", "argmin(0)", "the worse one"),
    ("imagine", "best = (drawn * texts).sum(2).argmax(0)",
     "best = torch.zeros(len(prompts), dtype=torch.long)", "always the first"),
    ("imagine", "best = (drawn * texts).sum(2).argmax(0)",
     "best = (drawn * texts).sum((1, 2)).argmax(0).expand(len(prompts))", "of its own"),
    ("imagine", "1000 * turn + ", "", "seeds of its own"),
    ("imagine", "1000 * turn", "turn", "1000 apart"),
    ("text_difference", "two - one", "one - two", "the other way"),
    ("text_difference", "two - one", "two", "not along the difference"),
    ("text_difference", "F.normalize(two - one, dim=0)", "(two - one)", "of length 1"),
    ("text_difference", ", share)", ", 1 - share)", "turned round"),
    ("text_difference", "slerp(", "torch.lerp(", "turn with"),
]  # fmt: skip

RIGHT = [
    ("slerp", """
angle = torch.acos(torch.clamp((start * end).sum(-1, keepdim=True), -1, 1))
angle = torch.clamp(angle, 1e-3, torch.pi - 1e-3)
one = torch.sin((1 - share) * angle) / angle.sin()
return one * start + torch.sin(share * angle) / angle.sin() * end
"""),
    ("imagine", """
texts = prior.clip.encode_text(list(prompts))
best, most = None, None
for turn in range(candidates):
    seeds = [seed + 1000 * turn + i for i in range(len(prompts))]
    drawn = prior.generate(prompts, seed=seeds, guidance=guidance, steps=steps)
    score = (drawn * texts).sum(1)
    if best is None:
        best, most = drawn.clone(), score
    better = score > most
    best[better], most = drawn[better], torch.maximum(most, score)
return best
"""),
    ("text_difference", """
clip = model.latent.clip
way = clip.encode_text([after])[0] - clip.encode_text([before])[0]
way = way / way.norm()
return torch.cat([slerp(v[None], way[None], share) for v in vectors])
"""),
]  # fmt: skip
