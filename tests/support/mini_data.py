"""Write the mini benchmarks into ``tests/data/benchmarks``: ``cd tests && python -m support.mini_data``."""

from pathlib import Path

from support.mini_benchmarks import MINI, mini_rows
from support.mini_files import DATA, WRITERS

FORMS = {"mmbench": ("parquet", "tsv")}
"""Forms of those that are handed out in several; the others are Parquet."""


def files() -> list[tuple[str, str, str, Path]]:
    """Give data set, split, form and path of each file."""
    return [
        (data, split, form, _root(form) / data / f"{split}-00000-of-00001.{form}")
        for data, (split, _) in MINI.items()
        for form in FORMS.get(data, ("parquet",))
    ]


def _root(form: str) -> Path:
    """One form of a split is asked at a time: the others have a folder of their own."""
    return DATA if form == "parquet" else DATA / form


def main() -> None:
    """Draw all of them anew."""
    for data, split, form, path in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[form](path, mini_rows(data, split))


if __name__ == "__main__":
    main()
