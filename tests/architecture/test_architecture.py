"""Rules of the tree that prose alone would not hold: include arrows, format, no machine paths."""

import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Room -> rooms it may include. A room may always include itself. docs/architecture.md draws this.
ARROWS = {
    "engine/base": [],
    "engine/cuda": ["engine/base"],
    "engine/text": ["engine/base"],
    "engine/checkpoint": ["engine/base"],
    "engine/ops": ["engine/base", "engine/cuda", "engine/checkpoint"],
    "engine/kv": ["engine/base", "engine/cuda", "engine/checkpoint"],
    "engine/sampling": ["engine/base", "engine/cuda", "engine/checkpoint", "engine/ops", "engine/kv"],
    "engine/model": ["engine/base", "engine/cuda", "engine/checkpoint", "engine/ops", "engine/kv"],
    "engine/grammar": ["engine/base"],
    "engine/scheduler": [
        "engine/base",
        "engine/cuda",
        "engine/ops",
        "engine/kv",
        "engine/model",
        "engine/sampling",
        "engine/grammar",
    ],
    "kvsnap": ["engine/base", "engine/cuda"],
    "forkpool": ["engine/base", "kvsnap"],
    "forkpool/worker": [
        "engine/base",
        "engine/cuda",
        "engine/checkpoint",
        "engine/ops",
        "engine/kv",
        "engine/model",
        "engine/sampling",
        "engine/grammar",
        "engine/scheduler",
        "kvsnap",
        "forkpool",
    ],
    "coalescer/core": ["engine/base", "engine/text"],
    "coalescer/openai": ["engine/base", "engine/text", "coalescer/core"],
    "coalescer/http": ["engine/base", "engine/text", "coalescer/core", "coalescer/openai"],
    "cli": None,  # joins everything
}
SOURCE_SUFFIXES = {".h", ".cc", ".cuh", ".cu"}


def tracked_files() -> list[pathlib.Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [pathlib.Path(line) for line in listed if (ROOT / line).is_file()]


def room_of(path: str) -> str | None:
    """The longest room name that `path` lies in."""
    rooms = [room for room in ARROWS if path.startswith(room + "/")]
    return max(rooms, key=len) if rooms else None


def includes(path: pathlib.Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', (ROOT / path).read_text(), re.M)


def test_every_source_is_in_a_room():
    # cmake/ has what is built into libraries of others.
    homes = ("tests/", "bench/", "cmake/", "demos/", "python/", "docs/", "scripts/")
    lost = [
        str(path)
        for path in tracked_files()
        if path.suffix in SOURCE_SUFFIXES and not str(path).startswith(homes) and not room_of(str(path))
    ]
    assert not lost, f"not in any room of ARROWS: {lost}"


def test_includes_follow_the_arrows():
    wrong = []
    checked = 0
    for path in tracked_files():
        room = room_of(str(path))
        if path.suffix not in SOURCE_SUFFIXES or room is None or ARROWS[room] is None:
            continue
        for include in includes(path):
            checked += 1
            target = room_of(include)
            if target is None:
                wrong.append(f'{path}: "{include}" is in no room; include from the root of the tree')
            elif target != room and target not in ARROWS[room]:
                wrong.append(f"{path}: {room} may not include {include}")
    assert checked > 100, "found hardly any include: is this the source tree?"
    assert not wrong, "\n".join(wrong)


def test_beast_stays_in_few_files():
    users = [
        str(path)
        for path in tracked_files()
        if path.suffix in SOURCE_SUFFIXES and "boost/beast" in (ROOT / path).read_text()
    ]
    assert not [path for path in users if path.endswith(".h") and "/detail/" not in path], users
    assert len(users) <= 6, f"each costs half a minute to compile: {users}"


def test_clang_format():
    formatter = shutil.which("clang-format-14") or shutil.which("clang-format")
    if formatter is None:
        pytest.fail("clang-format is missing; `make setup` installs it")
    version = subprocess.run([formatter, "--version"], capture_output=True, text=True).stdout
    if "version 14." not in version:
        pytest.skip(f"formatted with clang-format 14, this is {version.strip()}")
    sources = [str(path) for path in tracked_files() if path.suffix in SOURCE_SUFFIXES]
    result = subprocess.run(
        [formatter, "--dry-run", "-Werror", *sources], cwd=ROOT, capture_output=True, text=True
    )
    files = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error", result.stderr, re.M)))
    assert result.returncode == 0, f"run `make format`: {files}"


def test_ruff():
    ruff = ROOT / ".venv" / "bin" / "ruff"
    if not ruff.exists():
        pytest.fail("ruff is missing; `make setup` installs it")
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [str(ruff), *command, "--quiet", "demos", "scripts", "tests", "bench", "python"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_mypy():
    mypy = ROOT / ".venv" / "bin" / "mypy"
    if not mypy.exists():
        pytest.fail("mypy is missing; `make setup` installs it")
    result = subprocess.run([str(mypy)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_machine_paths_or_marks():
    bad = re.compile(r"(?<![\w.])/(?:wo[r]k|ro[o]t)/|\b(?:TO[D]O|FIX[M]E|X[X]X)\b")
    found = []
    for path in tracked_files():
        if path.suffix in SOURCE_SUFFIXES | {".py", ".md", ".sh", ".txt", ".cmake", ""}:
            try:
                text = (ROOT / path).read_text()
            except UnicodeDecodeError:
                continue
            found += [
                f"{path}:{number}: {line.strip()[:80]}"
                for number, line in enumerate(text.splitlines(), 1)
                if bad.search(line)
            ]
    assert not found, "\n".join(found)


def test_every_flag_is_documented():
    flags = re.findall(r'"(--[a-z-]+)"', (ROOT / "cli" / "settings.cc").read_text())
    assert len(flags) > 15
    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = [
        flag
        for flag in flags
        if f"`{flag}`" not in text or "THAW_" + flag[2:].upper().replace("-", "_") not in text
    ]
    assert not missing, f"docs/configuration.md lacks {missing}"


# Where bodies of requests are read.
PARSERS = [
    "admin_bodies",
    "cache_fields",
    "fork_call",
    "messages_call",
    "messages_conversation",
    "parse_call",
    "parse_messages",
    "parse_sampling",
    "reasoning",
    "response_format",
    "responses_call",
    "responses_items",
    "session_call",
    "token_endpoints",
    "tools",
]


def test_every_field_that_is_read_is_described():
    """A name that a parser reads is in the tables of which the OpenAPI document is written."""
    folder = ROOT / "coalescer" / "openai"
    tables = "".join(path.read_text() for path in sorted(folder.glob("shapes_*.cc")))
    kinds = "any_value|boolean|text|word|whole|number|list|map|object|one_of|nothing"
    described = set(re.findall(rf'(?:\b(?:{kinds})\(|\.name = )\s*"([a-z_]+)"', tables))
    for name in PARSERS:
        source = (folder / f"{name}.cc").read_text()
        read = set(re.findall(r'\b(?:read|integer|array|object|find)\(\s*"([a-z_]+)"', source))
        # Of messages that were made from requests, not of requests.
        read -= {"arguments"}
        assert read <= described, f"{name}.cc reads fields that no shape has: {sorted(read - described)}"
