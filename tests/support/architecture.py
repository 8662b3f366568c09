"""Reads the source with `ast` and says where it breaks the floor plan or the house rules."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A room or a file of the package, and its floor: imports go to lower floors, or stay in the room.
FLOORS = {
    "__init__": 0,
    "formats": 0,
    "engine": 1,
    "corpus": 1,
    "pages": 1,
    "model": 2,
    "packing": 2,
    "training": 3,
    "curation": 3,
    "evaluation": 4,
    "release": 4,
    "config": 5,
    "data_modules": 5,
    "callbacks": 5,
    "commands": 6,
    "__main__": 7,
}
PACKAGE = "openqwen2vl"
RING = ("data_modules", "callbacks")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
# PyTorch pickles a sharded checkpoint's table of contents: the one file that reads it, with care.
PICKLE_READER = "src/openqwen2vl/training/sharded.py"
DRAWERS = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
FILE_LINES = 300
FUNCTION_LINES = 45
"""Lines of a function without its docstring: about 40, and a few where a cut would hurt."""


@dataclass(frozen=True)
class Source:
    """One file: the room it is in, where it lies, its text as a tree."""

    room: str
    name: str
    package: tuple[str, ...]
    lines: int
    tree: ast.Module


def sources(root: Path) -> list[Source]:
    """Parse every file of the package under a repository's root, the ring's folders included."""
    found = []
    for folder, inside in (
        (root / "src" / PACKAGE, ()),
        *((root / name, (name,)) for name in RING),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = (*inside, *path.relative_to(folder).with_suffix("").parts)
            text = path.read_text()
            found.append(
                Source(
                    room=parts[0],
                    name=str(path.relative_to(root)),
                    package=(PACKAGE, *parts[:-1]),
                    lines=len(text.splitlines()),
                    tree=ast.parse(text),
                )
            )
    return found


def imports(source: Source) -> Iterator[tuple[int, int, str]]:
    """Yield line, number of leading dots and full dotted name of everything a file imports."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(source.package[: len(source.package) - node.level + 1])
            prefix = ".".join([*(base if node.level else []), *([node.module or ""])]).strip(".")
            for alias in node.names:
                yield node.lineno, node.level, f"{prefix}.{alias.name}"


def floor_faults(root: Path) -> list[str]:
    """Find rooms without a floor, and imports that go up or across."""
    faults = []
    for source in sources(root):
        if source.room not in FLOORS:
            faults.append(f"{source.room} stands on no floor: add it to FLOORS")
            continue
        for line, _, name in imports(source):
            head, _, rest = name.partition(".")
            room = rest.split(".")[0]
            if head != PACKAGE or room == source.room:
                continue
            # `from openqwen2vl import __version__` reads the package's own file.
            target = room if room in FLOORS else "__init__"
            if FLOORS[target] >= FLOORS[source.room]:
                faults.append(
                    f"{source.name}:{line} imports {name}: floor {FLOORS[source.room]} "
                    f"may not use floor {FLOORS[target]}"
                )
    return faults


def ring_faults(root: Path) -> list[str]:
    """Find those who name the outer ring beside conf/, and ring files that import it wrongly."""
    faults = []
    for source in sources(root):
        in_ring = source.room in RING
        for line, dots, name in imports(source):
            place = f"{source.name}:{line}"
            room = name.removeprefix(f"{PACKAGE}.").split(".")[0]
            if in_ring and dots and room != source.room:
                faults.append(f"{place} imports {name} relatively; only neighbours are imported so")
            if room in RING and not (in_ring and dots):
                faults.append(f"{place} imports {name}; only conf/ names the ring")
        faults += [
            f"{source.name}:{node.lineno} names {node.value!r}; only conf/ names the ring"
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " not in node.value
            and node.value.startswith(tuple(f"{PACKAGE}.{name}" for name in RING))
        ]
    return faults


def library_faults(root: Path) -> list[str]:
    """Find Hydra, OmegaConf, prints and pickles where they have no business."""
    faults = []
    for source in sources(root):
        command = source.room == "commands"
        for line, _, name in imports(source):
            top = name.split(".")[0]
            config = top == "hydra" or (top == "omegaconf" and source.room != "config")
            pickles = top in PICKLES and source.name != PICKLE_READER
            if (config and not command) or pickles:
                faults.append(f"{source.name}:{line} imports {top}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                faults += [f"{source.name}:{node.lineno} {fault}" for fault in _call(node, command)]
    return faults


def _call(node: ast.Call, command: bool) -> Iterator[str]:
    called = ast.unparse(node.func)
    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "print" and not command:
        yield "prints; libraries log"
    if called == "torch.load" and words.get("weights_only") != "True":
        yield "opens a file with torch.load without weights_only=True: it could run code"
    if called in ("np.load", "numpy.load") and words.get("allow_pickle", "False") != "False":
        yield "lets numpy open pickles: they could run code"


def size_faults(root: Path) -> list[str]:
    """Find files and functions that have grown too long, and drawers for everything."""
    faults = []
    for source in sources(root):
        if source.lines > FILE_LINES:
            faults.append(f"{source.name} has {source.lines} lines, at most {FILE_LINES}")
        if Path(source.name).name in DRAWERS:
            faults.append(f"{source.name}: name a file by what it is for")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _code_lines(node)
                if lines > FUNCTION_LINES:
                    faults.append(
                        f"{source.name}:{node.lineno} {node.name} has {lines} lines without its "
                        f"docstring, at most {FUNCTION_LINES}"
                    )
    return faults


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    said = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if said else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring
