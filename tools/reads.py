"""What an executed lesson has read: the code of utils/ that it reaches, and files of assets/.

The kernel tells which modules it loaded and which files it opened. Of a module there counts
what its bare statements do when it is imported, and what the lesson reaches by name: from its
cells on, through every function, class and constant that one names. So a new widget makes no
lesson stale. Where a name does not say enough, more counts rather than less: a class with all
its methods; a module whole, if it is passed around or loaded under a computed name. Comments
and layout never count, docstrings only for a lesson that reads a `__doc__`.
"""

import ast
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.export import DEFINITIONS, IMPORTS, names

# Run in a kernel before the first cell; leaves no name behind.
WATCH = """
def watch():
    import os, sys
    sys.opened = set()
    def see(event, args):
        if event == "open" and isinstance(args[0], str) and "assets" in args[0]:
            sys.opened.add(os.path.abspath(args[0]))
    sys.addaudithook(see)
watch()
del watch
"""
# Asked after the last cell: a line for each file that was opened or is a module of utils/.
SEEN = """"\\n".join(
    [*__import__("sys").opened]
    + [m.__file__ for n, m in [*__import__("sys").modules.items()]
       if n.startswith("utils") and getattr(m, "__file__", None)]
)"""
WHOLE = "*"  # in place of a name: all of a module
# A module, or a name in it, as a table such as `checkpoints.MODELS` has it.
REFERENCE = re.compile(r"(utils(?:\.\w+)+)(?::(\w+))?")
PLAIN = (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)  # in a target

Use = tuple[str, str | None]  # a module, and a name in it, WHOLE, or None: it is loaded


@dataclass(eq=False)
class Part:
    """A top-level statement of a module, one name that it imports or one entry of a table."""

    node: ast.AST
    names: set[str] = field(default_factory=set)  # that it defines
    always: bool = False  # it does something when the module is imported
    uses: set[Use] = field(default_factory=set)
    maybe: set[Use] = field(default_factory=set)  # what strings name: used if it is loaded
    entry: bool = False  # counts only if what it names is loaded
    text: str = ""
    docs: str = ""


class Code:
    """The modules of utils/ in a folder, each read once."""

    def __init__(self, root: Path):
        self.root = root
        self.modules: dict[str, list[Part]] = {}
        self.paths: dict[str, Path | None] = {}
        self.assets: dict[str, str] = {}

    def record(self, lesson: ast.Module, files: Iterable[str]) -> dict[str, str]:
        """{file: hash of what counts in it}; files as paths from the root, with slashes.

        files: what the kernel loaded and opened, or an earlier record: then what differs
        from it has changed since.
        """
        reads_docs = "__doc__" in {getattr(node, "attr", "") for node in ast.walk(lesson)}
        loaded = {module_name(file) for file in files if file.startswith("utils/")}
        loaded = {module for module in loaded if self.path(module)}
        while (found := self.reached(lesson, loaded)).keys() != loaded:
            loaded = set(found)
        hashes = {}
        for module, parts in found.items():
            texts = [p.text + p.docs * reads_docs for p in self.parts(module) if p in parts]
            path = self.path(module).relative_to(self.root).as_posix()
            hashes[path] = short_hash("\n".join(texts).encode())
        for file in files:
            path = self.root / file
            if file.startswith("assets/") and path.is_file():
                if file not in self.assets:
                    self.assets[file] = short_hash(path.read_bytes())
                hashes[file] = self.assets[file]
        return hashes

    def reached(self, lesson: ast.Module, loaded: set[str]) -> dict[str, set[Part]]:
        """{module: the parts that count} for a lesson whose kernel loaded these modules."""
        found, done = defaultdict(set), set()
        uses, maybe = self.uses(lesson, self.imports(lesson))
        todo = uses | {use for use in maybe if use[0] in loaded}
        while todo or (todo := {(module, WHOLE) for module in loaded - found.keys()}):
            use = module, name = todo.pop()
            if use in done or not self.path(module):
                continue
            done.add(use)
            todo.add((module.rpartition(".")[0], None))
            parts, chosen = self.parts(module), found[module]
            if name and not any(name in part.names for part in parts):
                name = WHOLE
            for part in parts:
                if isinstance(part.node, IMPORTS):  # it loads the module, used or not
                    todo |= {(other, None) for other, _ in part.uses}
                named = {use for use in part.maybe if use[0] in loaded}
                wanted = part.always or name == WHOLE or name in part.names
                if wanted and (named or not part.entry):
                    chosen.add(part)
                    todo |= part.uses | named
        return found

    def path(self, module: str) -> Path | None:
        """The file of a module or package of utils/; None if there is none."""
        if module not in self.paths:
            folder = self.root.joinpath(*module.split("."))
            places = [folder.with_suffix(".py"), folder / "__init__.py"]
            there = [path for path in places if path.is_file()]
            self.paths[module] = there[0] if there and module.split(".")[0] == "utils" else None
        return self.paths[module]

    def parts(self, module: str) -> list[Part]:
        """A module in parts, in order."""
        if module not in self.modules:
            path = self.path(module)
            text = path.read_text(encoding="utf-8")
            try:
                tree = ast.parse(text)
            except SyntaxError:  # such as a conflict of git's: all of it counts
                tree = ast.parse(f"print({text!r})")
            imports = self.imports(tree)
            parts = [part for node in tree.body for part in split(node)]
            known = {name for part in parts for name in part.names}
            for part in parts:
                part.uses, part.maybe = self.uses(part.node, imports)
                part.uses |= {(module, name) for name in names(part.node) & known}
                part.text = canonical([part.node])
                part.docs = documentation(part.node)
            self.modules[module] = parts
        return self.modules[module]

    def imports(self, tree: ast.AST) -> dict[str, set[Use]]:
        """What each name that is imported in a tree stands for."""
        found = defaultdict(set)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.split(".")[0]
                    found[alias.asname or name].add((name, None))
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    found[alias.asname or alias.name].add(self.member(node.module, alias.name))
        return found

    def member(self, module: str | None, name: str) -> Use:
        """What a name of a module is: a module, too, or something in it."""
        below = f"{module}.{name}"
        return (below, None) if self.path(below) else (str(module), name)

    def uses(self, tree: ast.AST, imports: dict[str, set[Use]]) -> tuple[set[Use], set[Use]]:
        """What a piece of code uses of modules, and what its strings name."""
        found, maybe, todo = set(), set(), [tree]
        while todo:
            node, below = todo.pop(), []
            inner = node
            while isinstance(inner, ast.Attribute):
                below, inner = [inner.attr, *below], inner.value
            if isinstance(inner, ast.Name):
                for module, name in imports.get(inner.id, ()):
                    rest = iter(below)
                    while name is None and (attribute := next(rest, None)):
                        module, name = self.member(module, attribute)
                    found.add((module, name or WHOLE))
                continue
            if isinstance(node, ast.Import):
                found |= {(alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {self.member(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Constant) and (match := reference(node)):
                maybe.add((match[1], match[2] or WHOLE))
            todo += ast.iter_child_nodes(node)
        return found, maybe


def seen(answer: str, root: Path) -> list[str]:
    """The files of an answer to SEEN that are under `root`, as paths from there."""
    paths = [Path(os.path.realpath(line)) for line in answer.splitlines()]
    root = Path(os.path.realpath(root))
    return [path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)]


def split(node: ast.stmt) -> Iterator[Part]:
    """A top-level statement in parts."""
    if isinstance(node, IMPORTS):
        for alias in node.names:
            one = ast.Import([alias])
            if isinstance(node, ast.ImportFrom):
                one = ast.ImportFrom(node.module, [alias], node.level)
            yield Part(one, {alias.asname or alias.name.split(".")[0]})
    elif isinstance(node, DEFINITIONS):
        yield Part(node, {node.name})
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        inside = [n for target in targets for n in ast.walk(target)]
        defines = {n.id for n in inside if isinstance(n, ast.Name)}
        if isinstance(node.value, ast.Dict):
            table, node.value = node.value, ast.Dict([], [])
            for key, value in zip(table.keys, table.values, strict=True):
                if reference(value):
                    yield Part(ast.Dict([key], [value]), defines, entry=True)
                else:
                    node.value.keys.append(key)
                    node.value.values.append(value)
        yield Part(node, defines, any(not isinstance(n, PLAIN) for n in inside))
    elif is_string(node):
        yield Part(node, {"__doc__"})
    else:
        yield Part(node, always=True)


def reference(node) -> re.Match | None:
    """What a string names of utils/, if it is one that does."""
    text = node.value if isinstance(node, ast.Constant) else None
    return REFERENCE.fullmatch(text) if isinstance(text, str) else None


def is_string(node) -> bool:
    """Whether a statement is a string and nothing else: documentation."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def canonical(node) -> str:
    """Code as text that is the same for every Python, without documentation."""
    if isinstance(node, list):
        return f"[{','.join(canonical(item) for item in node if not is_string(item))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    # what is None or empty is not in every version
    fields = [(k, v) for k, v in ast.iter_fields(node) if v not in (None, [])]
    return f"{type(node).__name__}({','.join(f'{k}={canonical(v)}' for k, v in fields)})"


def documentation(node: ast.AST) -> str:
    return "\n".join(n.value.value for n in ast.walk(node) if is_string(n))


def module_name(file: str) -> str:
    """utils/plots.py → utils.plots"""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
