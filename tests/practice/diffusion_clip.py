"""Lesson 13: answers that must be refused, and others that are right."""

LESSON = "13"
GIVEN = {}

WRONG = [
    ("text_direction", "ends[1] - ends[0]", "ends[0] - ends[1]", "the other way"),
    ("text_direction", "F.normalize((ends[1] - ends[0]).mean(0), dim=0)",
     "(ends[1] - ends[0]).mean(0)", "of length 1"),
    ("text_direction", ".mean(0)", "[0]", "over all"),
    ("text_direction", " - ends[0]", "", "take the source from it"),
    ("text_direction", "F.normalize((ends[1] - ends[0]).mean(0), dim=0)",
     "F.normalize(F.normalize(ends[1] - ends[0], dim=1).mean(0), dim=0)", ""),
    ("directional_loss", "1 - F", "F", "the loss is 1 less it"),
    ("directional_loss", "after - before", "before - after", "the other way"),
    ("directional_loss", "after - before", "after", "the global loss"),
    ("directional_loss", "F.cosine_similarity(after - before, direction, dim=-1)",
     "(after - before) @ direction", "take the cosine"),
    ("directional_loss", "dim=-1)", "dim=-1).mean()", "for each picture"),
    ("log_form", "-((2", "((2", "the sign"),
    ("log_form", " / 2", "", "the half is missing"),
    ("log_form", "(2 - loss)", "loss", "endless at L = 0"),
]  # fmt: skip

RIGHT = [
    ("text_direction", """
flat, solid = (class_vectors(clip, labels, template) for template in (source, target))
mean = solid.mean(0) - flat.mean(0)
return mean / mean.norm()
"""),
    ("directional_loss", """
away = F.normalize(after - before, dim=-1)
return 1 - away @ F.normalize(direction, dim=0)
"""),
    ("log_form", "return torch.log(2 / (2 - loss))"),
]  # fmt: skip
