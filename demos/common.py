"""What the demos of the Python package have in common: finding the package, arguments, tables, JSON files."""

import argparse
import importlib.util
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
if importlib.util.find_spec("thaw_vllm") is None:
    tree = ROOT / "build" / "release" / "python"
    if not tree.is_dir():
        sys.exit("thaw_vllm is not installed; run `pip install .` or `make build`")
    sys.path.insert(0, str(tree))

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402


def parser(description: str) -> argparse.ArgumentParser:
    """With the arguments that all have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--model", default="", help="what `thaw serve` takes; default: the default model")
    made.add_argument("--kv-bytes", default="512MiB", help="KV cache of a worker")
    made.add_argument("--json", help="also write what was measured to this file")
    return made


def console() -> Console:
    """Of the terminal's width; wide enough for the tables where there is none."""
    made = Console(markup=False)  # what models write is no markup
    return made if made.is_terminal else Console(width=120, markup=False)


def progress(console: Console) -> Progress:
    """Bars with counts and seconds, shown on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def table(title: str, left: list[str], right: list[str]) -> Table:
    """Columns with texts, then columns with numbers."""
    made = Table(title=title)
    for name in left:
        made.add_column(name, overflow="fold")
    for name in right:
        made.add_column(name, justify="right")
    return made


def write_json(path: str | None, report: dict) -> None:
    """Nothing where there is no path."""
    if path:
        pathlib.Path(path).write_text(json.dumps(report, indent=1) + "\n")


def one_line(text: str, limit: int = 60) -> str:
    """For tables."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else joined[: limit - 3] + "..."
