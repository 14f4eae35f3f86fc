"""Makes BUILD/python: a link for each file of the packages, beside the extension, and thaw_vllm/bin/thaw."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = [path.parent.name for path in HERE.glob("*/py.typed")]


def link(at: pathlib.Path, to: pathlib.Path) -> None:
    if at.is_symlink() and at.readlink() == to:
        return
    at.unlink(missing_ok=True)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to)


def main(build: pathlib.Path) -> None:
    tree = build / "python"
    wanted = {tree / "thaw_vllm" / "bin" / "thaw": build / "bin" / "thaw"}
    for package in PACKAGES:
        for path in (HERE / package).rglob("*"):
            if path.suffix in {".py", ".pyi", ".typed"}:
                wanted[tree / path.relative_to(HERE)] = path
    for at, to in wanted.items():
        link(at, to)
    for path in tree.rglob("*"):
        if path.is_symlink() and path not in wanted:
            path.unlink()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
