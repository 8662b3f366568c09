"""`openqwen2vl <verb> [key=value ...]`: finds the command, or lists the commands."""

import pkgutil
import sys

from rich.console import Console
from rich.table import Table

from openqwen2vl import __version__, commands
from openqwen2vl.commands._help import purpose, show_help
from openqwen2vl.commands._hydra import launch
from openqwen2vl.config import nearest
from openqwen2vl.training.exit_note import USER_ERROR


def verbs() -> list[str]:
    """Name the commands there are."""
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    return sorted(name for name in names if not name.startswith("_"))


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the verb and its Hydra overrides; None: those of the process.

    Returns:
        The exit code: 0 done, 2 the user's mistake. Anything else leaves with its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    known = verbs()
    if not given or given[0] in ("-h", "--help", "help"):
        _list(known)
        return 0
    if given[0] in ("--version", "version"):
        Console().print(f"openqwen2vl {__version__}")
        return 0
    if given[0] not in known:
        hint = nearest(given[0], known)
        Console(stderr=True).print(
            f"openqwen2vl has no command {given[0]!r}{hint}; there are: {', '.join(known)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return USER_ERROR
    if {"-h", "--help"} & set(given[1:]):
        show_help(given[0])
        return 0
    return launch(given[0], given[1:])


def _list(known: list[str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for verb in known:
        table.add_row(f"  {verb}", purpose(verb).splitlines()[0])
    console = Console()
    usage = "openqwen2vl <verb> [key=value ...]      openqwen2vl <verb> --help shows its keys"
    console.print(usage, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
