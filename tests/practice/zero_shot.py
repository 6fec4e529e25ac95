"""Lesson 04: answers that must be refused, and others that are right."""

LESSON = "04"
GIVEN = {}

VECTORS = """
rows = []
for label in labels:
    vectors = clip.encode_text([t.replace("{}", label) for t in templates])
    mean = vectors.mean(0)
    rows.append(mean / mean.norm())
return torch.stack(rows)
"""
SHARES = """
cosines = image_vectors(clip, pictures) @ class_vectors(clip, labels, templates).T
return F.softmax(clip.logit_scale.exp() * cosines, dim=1)
"""
TOP_K = """
best = scores.argsort(dim=1, descending=True)[:, :k]
right = (best == targets[:, None]).any(1)
return right.sum().item() / len(scores)
"""
VOTES = """
votes = torch.zeros(len(query), classes)
for i, row in enumerate(query @ features.T):
    for j in row.argsort(descending=True)[:k]:
        votes[i, labels[j]] += row[j]
return votes
"""
PROBE = """
ones = torch.ones(len(features), 1)
inputs = torch.cat([features, ones], 1)
weights = torch.zeros(classes, inputs.shape[1], requires_grad=True)
optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

def loss():
    optimizer.zero_grad()
    value = F.cross_entropy(inputs @ weights.T, labels)
    value = value + decay * (weights[:, :-1] ** 2).sum()
    value.backward()
    return value

optimizer.step(loss)
return weights.detach()
"""
NEAREST = """
order = (query @ gallery.T).argsort(dim=-1, descending=True)
return order[:, :k]
"""

WRONG = [
    ("class_vectors", VECTORS.replace("mean / mean.norm()", "mean"), "not normalised"),
    ("class_vectors", VECTORS.replace("in templates]", "in templates[:1]]"), "first template"),
    (
        "class_vectors",
        "view(len(templates), len(labels), -1)",
        "view(len(labels), len(templates), -1).transpose(0, 1)",
        "do not fit",
    ),
    (
        "class_vectors",
        VECTORS.replace("return torch.stack(rows)", "return torch.stack(rows).T"),
        "the shape is",
    ),
    ("class_vectors", "vectors.mean(0)", "vectors.sum(0).mean(0)", "the shape is"),
    ("classify", SHARES.replace("dim=1", "dim=0"), "over the pictures"),
    ("classify", SHARES.replace("clip.logit_scale.exp() * ", ""), "the scale is missing"),
    ("classify", SHARES.replace(".exp()", ""), "take `.exp()`"),
    (
        "classify",
        "return 100 * image_vectors(clip, pictures) @ class_vectors(clip, labels, templates).T",
        "classify: ",
    ),
    ("classify", SHARES.replace(", templates", ""), "not passed on"),
    (
        "classify",
        SHARES.replace("return F.softmax(", "return (").replace(", dim=1", ""),
        "softmax is missing",
    ),
    ("top_k_accuracy", TOP_K.replace("descending=True", "descending=False"), "lowest"),
    ("top_k_accuracy", TOP_K.replace("[:, :k]", "[:, :1]"), "whatever k is"),
    ("top_k_accuracy", TOP_K.replace(" / len(scores)", " / 1"), "a count"),
    ("top_k_accuracy", TOP_K.replace("return ", "return 100 * "), "percentage"),
    (
        "top_k_accuracy",
        TOP_K.replace("right.sum().item() / len(scores)", "right.float().mean()"),
        "`.item()`",
    ),
    (
        "top_k_accuracy",
        TOP_K.replace(".any(1)", ".float()").replace(" / len(scores)", " / right.numel()"),
        "`any` of its k",
    ),
    ("nearest_neighbours", VOTES.replace("+= row[j]", "+= 1"), "weighs as much"),
    ("nearest_neighbours", VOTES.replace("+= row[j]", "= row[j]"), "nearest_neighbours: "),
    ("nearest_neighbours", VOTES.replace("descending=True", "descending=False"), "farthest"),
    ("nearest_neighbours", VOTES.replace("[:k]", ""), "only the k closest"),
    ("nearest_neighbours", "min(k, len(features))", "k", "RuntimeError"),
    ("nearest_neighbours", "scatter_add_", "scatter_", "does not replace"),
    (
        "linear_probe",
        PROBE.replace("    value = value + decay * (weights[:, :-1] ** 2).sum()\n", ""),
        "without the decay",
    ),
    ("linear_probe", PROBE.replace("** 2).sum()", "** 2).mean()"), "mean of squares"),
    ("linear_probe", PROBE.replace("labels)", 'labels, reduction="sum")'), "added up"),
    ("linear_probe", PROBE.replace("[features, ones]", "[ones, features]"), "linear_probe: "),
    ("linear_probe", PROBE.replace("weights.detach()", "weights"), "`detach` them"),
    (
        "linear_probe",
        PROBE.replace("weights.detach()", "weights.detach()[:, :-1]"),
        "its bias last",
    ),
    ("linear_probe", PROBE.replace("max_iter=steps", "max_iter=1"), "more steps"),
    ("retrieve", NEAREST.replace("descending=True", "descending=False"), "farthest"),
    ("retrieve", "indices", "values", "`.indices`"),
    ("retrieve", NEAREST.replace(":k]", ":k].flip(1)"), "worst comes first"),
    ("retrieve", NEAREST.replace("query @ gallery.T", "gallery @ query.T"), "from the gallery"),
    ("retrieve", "min(k, len(gallery))", "k", "RuntimeError"),
]
RIGHT = [
    ("class_vectors", VECTORS),
    ("class_vectors", VECTORS.replace('t.replace("{}", label)', "t.format(label)")),
    ("classify", SHARES),
    ("top_k_accuracy", TOP_K),
    ("nearest_neighbours", VOTES),
    ("linear_probe", PROBE),
    (
        "linear_probe",
        PROBE[: PROBE.index("optimizer =")]
        + """
optimizer = torch.optim.Adam([weights], lr=0.1)
for _ in range(300):
    optimizer.zero_grad()
    value = F.cross_entropy(inputs @ weights.T, labels)
    (value + decay * (weights[:, :-1] ** 2).sum()).backward()
    optimizer.step()
return weights.detach()
""",
    ),
    ("retrieve", NEAREST),
]
