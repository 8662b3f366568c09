"""Words of the command line that Hydra would read otherwise than people mean them."""

from collections.abc import Sequence

_SWEEP = {"-m", "--multirun"}
# What begins a value that is written for Hydra already.
_WRITTEN = ("{", "[", "'", '"')


def reword(words: Sequence[str]) -> list[str]:
    """Give the words of an evaluation as Hydra takes them; what is so already stays.

    ``model=PATH`` would choose a file of the config group ``model``, and ``benchmark=a,b`` would
    be a sweep; they become ``model={path:'PATH'}`` and ``benchmark=[a,b]``. In a sweep (``-m``)
    commas part its values.
    """
    sweep = bool(_SWEEP & set(words))
    return [_reworded(word, sweep) for word in words]


def _reworded(word: str, sweep: bool) -> str:
    key, given, value = word.partition("=")
    if not given or value.startswith(_WRITTEN):
        return word
    if key == "model":
        values = value.split(",") if sweep else [value]
        return "model=" + ",".join(f"{{path:{_quoted(one)}}}" for one in values)
    if key == "benchmark" and "," in value and not sweep:
        return f"benchmark=[{value}]"
    return word


def _quoted(path: str) -> str:
    if path == "null":
        return path
    escaped = path.replace("'", "\\'")
    return f"'{escaped}'"
