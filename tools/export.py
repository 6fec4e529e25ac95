"""Turn the brick cells of a lesson into the text of its modules.

A brick holds imports, constants, functions and classes, nothing that runs, and imports
only what a learner has: torch, the standard library, utils and earlier bricks. A module
gets those of its lesson's imports that it uses, and an import of what it uses from the
lesson's other modules: in the notebook these names are there already.
"""

import ast
import sys
from collections import defaultdict
from itertools import groupby

DOORS = {"huggingface_hub", "safetensors"}  # to the outside: inside functions only
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)


def module_texts(
    lesson: str, bricks: dict[str, dict[str, str]], earlier: set[str]
) -> dict[str, str]:
    """{module: {place: source}}, the brick cells of a lesson in order → {module: text}.

    `earlier` names the bricks that may be imported. Raises ValueError, with the place.
    """
    imports, bodies, home = [], {}, {}
    for module, cells in bricks.items():
        parts = []
        for place, source in cells.items():
            try:
                found, rest = split_imports(source, earlier)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{place}: {error}") from None
            imports += found
            parts += [rest] if rest else []
        bodies[module] = "\n\n\n".join(parts)
        for name in defined(ast.parse(bodies[module])):
            if home.setdefault(name, module) != module:
                raise ValueError(
                    f"lessons/{lesson}.py: both {home[name]} and {module} define {name}, "
                    "which is one name in the notebook; rename one."
                )
    used = {module: names(ast.parse(body)) for module, body in bodies.items()}
    borrowed = {
        module: {name for name in used[module] & home.keys() if home[name] != module}
        for module in bodies
    }
    refuse_circle(lesson, borrowed, home)
    texts = {}
    for module, body in bodies.items():
        header = (
            f'"""The bricks of lesson {lesson}.\n\n'
            f"Built by `make build` from lessons/{lesson}.py: edit them there.\n"
            '"""\n'
        )
        others = [
            ast.ImportFrom(f"utils.bricks.{home[name]}", [ast.alias(name)], 0)
            for name in borrowed[module]
        ]
        first = ast.parse(body).body[:1]
        gap = "\n\n" if first and isinstance(first[0], DEFINITIONS) else "\n"
        top = "\n".join(filter(None, [header, merge(imports + others, used[module])]))
        texts[module] = top + gap + body + "\n"
    return texts


def defined(tree: ast.Module) -> set[str]:
    """The names that a module gives to its functions, classes and constants."""
    found = {node.name for node in tree.body if isinstance(node, DEFINITIONS)}
    constants = [n for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign)]
    stored = [n for node in constants for n in ast.walk(node) if isinstance(n, ast.Name)]
    return found | {name.id for name in stored if isinstance(name.ctx, ast.Store)}


def names(tree: ast.AST) -> set[str]:
    """Every name that is read somewhere in a piece of code."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {name.id for name in found if isinstance(name.ctx, ast.Load)}


def refuse_circle(
    lesson: str, borrowed: dict[str, set[str]], home: dict[str, str]
) -> None:
    """Raise ValueError if a module uses, through others or not, one that uses it."""

    def follow(module: str, trail: list[str]) -> None:
        for name in sorted(borrowed[module]):
            step = [*trail, f"{module} uses {name} of {home[name]}"]
            if home[name] == start:
                raise ValueError(
                    f"lessons/{lesson}.py: its modules go in a circle, as "
                    f"{' and '.join(step)}; move one of these cells to the other module."
                )
            if len(step) < len(borrowed):
                follow(home[name], step)

    for start in borrowed:
        follow(start, [])


def split_imports(source: str, earlier: set[str]) -> tuple[list, str]:
    """The top-level imports of a brick cell, and its text without them."""
    tree, lines = ast.parse(source), source.split("\n")
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, IMPORTS):
            for module in imported(node):
                check_import(module, DOORS if node in inside else set(), earlier)
    found = []
    for node in tree.body:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if isinstance(node, IMPORTS):
            if ast.get_source_segment(source, node) != text:
                line = lines[node.lineno - 1]
                raise ValueError(f"`{line}` shares its line; give the import its own.")
            found.append(node)
            lines[node.lineno - 1 : node.end_lineno] = [None] * (text.count("\n") + 1)
        elif not isinstance(node, (*DEFINITIONS, ast.Assign, ast.AnnAssign)):
            raise ValueError(
                f"`{lines[node.lineno - 1]}` runs when the brick is imported; a brick "
                "holds imports, constants, functions and classes: move it out."
            )
    return found, "\n".join(line for line in lines if line is not None).strip("\n")


def imported(node) -> list[str]:
    """The dotted modules that an import statement reads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = "." * node.level + (node.module or "")
    if node.names[0].name == "*":
        raise ValueError(f"it imports * from {module}; name what it needs.")
    if module == "utils.bricks":
        return [f"{module}.{alias.name}" for alias in node.names]
    return [module]


def check_import(module: str, doors: set[str], earlier: set[str]) -> None:
    top, *rest = module.split(".")
    if (top, *rest[:1]) == ("utils", "bricks") and not earlier.intersection(rest[1:2]):
        raise ValueError(
            f"it imports {module}, which no earlier lesson builds; use earlier bricks."
        )
    if top not in sys.stdlib_module_names | {"torch", "utils"} | doors:
        raise ValueError(
            f"it imports {module}; a brick imports torch, the standard library, utils "
            "and bricks of earlier lessons (inside functions also "
            f"{' and '.join(sorted(DOORS))})."
        )


def merge(nodes: list, used: set[str]) -> str:
    """The import statements of `used` names, each once, in the order that ruff wants."""
    lines, members = set(), defaultdict(set)
    for node in nodes:
        for alias in node.names:
            name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
            if not future and (alias.asname or alias.name.split(".")[0]) not in used:
                continue
            if isinstance(node, ast.Import):
                lines.add((section(name), 0, name.lower(), (), f"import {name}"))
            else:  # `from m import a as b` keeps a line of its own
                members[node.module, name if alias.asname else ""].add(name)
    for (module, _), names in members.items():
        names = sorted(names, key=member_order)
        text = f"from {module} import {', '.join(names)}"
        if len(text) > 88:
            rows = "".join(f"    {name},\n" for name in names)
            text = f"from {module} import (\n{rows})"
        lines.add((section(module), 1, module.lower(), member_order(names[0]), text))
    blocks = groupby(sorted(lines), key=lambda line: line[0])
    texts = ["\n".join(line[-1] for line in block) for _, block in blocks]
    return "\n\n".join(texts) + "\n" if texts else ""


def section(module: str) -> int:
    top = module.split(" ")[0].split(".")[0]
    return {"__future__": 0, "torch": 2, "utils": 3}.get(top, 1)


def member_order(name: str) -> tuple:
    """CONSTANTS, then Classes, then functions, each by name."""
    word = name.split(" as ")[0]
    kind = 0 if len(word) > 1 and word.isupper() else 1 if word[0].isupper() else 2
    return kind, word.lower(), name
