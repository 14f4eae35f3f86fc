#!/usr/bin/env python3
"""Fetches and builds the grammar library, xgrammar, into .deps/xgrammar.

Sources are those of the PyPI sdist xgrammar 0.2.8 (2.7 MB, Apache-2.0), checked by their SHA-256, with
the calls below put in; the build is cmake/xgrammar's, with ccache (about 90 seconds of one core). Headers
and one static archive are kept. A folder is written under a temporary name and renamed. Does nothing where
it is done. Uses the standard library alone.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SDIST = "xgrammar==0.2.8"
SHA256 = "8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80"
TARGET = ROOT / ".deps" / "xgrammar"
RECIPE = ROOT / "cmake" / "xgrammar"
LICENSES = ("LICENSE", "NOTICE")

INCLUDE = '#include "xgrammar/work_bound.h"\n'
# File, a line that occurs once in it, and what goes behind that line. A schema of some bytes can ask for any
# amount of work; with these calls it ends at a bound of time and size (cmake/xgrammar/work_bound.h).
ADDED = [
    ("cpp/grammar_builder.cc", '#include "grammar_builder.h"\n', INCLUDE),
    (
        "cpp/grammar_builder.cc",
        "int32_t GrammarBuilder::AddGrammarExpr(const GrammarExpr& grammar_expr) {\n",
        "  WorkBound::make();\n",
    ),
    ("cpp/fsm.cc", '#include "fsm.h"\n', INCLUDE),
    ("cpp/fsm.cc", "  int AddState() {\n", "    WorkBound::make();\n"),
    (
        "cpp/fsm.cc",
        "  void AddEdge(int from, int to, int32_t min, int32_t max) {\n",
        "    WorkBound::make();\n",
    ),
    ("cpp/earley_parser.cc", '#include "earley_parser.h"\n', INCLUDE),
    (
        "cpp/earley_parser.cc",
        "bool EarleyParser::Advance(const uint8_t ch, bool debug_print) {\n",
        "  WorkBound::step();\n",
    ),
    (
        "cpp/earley_parser.cc",
        "void EarleyParser::Scan(const ParserState& state, const uint8_t ch) {\n",
        "  WorkBound::step();\n",
    ),
    (
        "cpp/earley_parser.cc",
        "void EarleyParser::Complete(const ParserState& state, bool debug_print, bool marker_present) {\n",
        "  WorkBound::step();\n",
    ),
    ("cpp/json_schema_converter.cc", '#include "json_schema_converter.h"\n', INCLUDE),
    (
        "cpp/json_schema_converter.cc",
        "  std::string cache_key = ComputeCacheKey(schema);\n",
        "  WorkBound::make();\n",
    ),
]
# JSON without a bound of its own on whitespace is written in one way, ", " and ": ": a small model fills its
# context with line breaks where it may.
CHANGED = [
    (
        "cpp/structural_tag.cc",
        "      /*any_whitespace=*/true,\n",
        "      /*any_whitespace=*/format.max_whitespace_cnt.has_value(),\n",
    ),
    # A string with a bound on its length may hold no control character either: JSON allows none.
    (
        "cpp/json_schema_converter.cc",
        r"""AddCharacterClass({{'"', '"'}, {'\\', '\\'}, {'\r', '\r'}, {'\n', '\n'}}, true);""",
        r"""AddCharacterClass({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}}, true);""",
    ),
]


def fetch(scratch: pathlib.Path) -> pathlib.Path:
    print(f"fetching {SDIST} (2.7 MB)", file=sys.stderr)
    # pip asks an sdist's build system what it is: scikit-build-core, which it fetches too.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "xgrammar", "--dest", str(scratch), SDIST]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"get_xgrammar: pip could not download {SDIST}; is PyPI reachable?")
    (archive,) = scratch.glob("xgrammar-*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"get_xgrammar: {archive.name} has SHA-256 {found}, expected {SHA256}; not used")
    return archive


def unpack(archive: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """What is built of the sdist, with the bounds in."""

    def is_needed(name: str) -> bool:
        parts = pathlib.PurePosixPath(name).parts[1:]
        return parts[:1] in (("cpp",), ("include",)) or parts[:2] in (
            ("3rdparty", "picojson"),
            ("3rdparty", "dlpack"),
            *((license_name,) for license_name in LICENSES),
        )

    with tarfile.open(archive) as sources:
        members = [member for member in sources.getmembers() if is_needed(member.name)]
        sources.extractall(scratch, members)  # checked: as published
    (source,) = scratch.glob("xgrammar-*/")
    edits = [(file, old, old + new) for file, old, new in ADDED] + CHANGED
    for file, old, new in edits:
        text = (source / file).read_text()
        if text.count(old) != 1:
            sys.exit(f"get_xgrammar: {file} has {text.count(old)} times the line {old!r}; once is right")
        (source / file).write_text(text.replace(old, new))
    shutil.copy(RECIPE / "work_bound.h", source / "include" / "xgrammar")
    return source


def build(source: pathlib.Path, folder: pathlib.Path) -> None:
    print("building the grammar library", file=sys.stderr)
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG"]
    commands = [
        ["cmake", "-S", RECIPE, "-B", folder, "-G", "Ninja", f"-DXGRAMMAR_SOURCE={source}", *options],
        ["cmake", "--build", folder, "-j", str(os.cpu_count() or 1)],
    ]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(done.stdout[-4000:], file=sys.stderr)
            sys.exit("get_xgrammar: it could not be built; without it: cmake -DTHAW_GRAMMAR=OFF")


def main() -> None:
    recipe = hashlib.sha256(repr((ADDED, CHANGED)).encode())
    for part in sorted(RECIPE.iterdir()):
        recipe.update(part.read_bytes())
    wanted = f"{SDIST} {SHA256} {recipe.hexdigest()}\n"
    stamp = TARGET / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="xgrammar-", dir=TARGET.parent) as name:
        scratch = pathlib.Path(name)
        source = unpack(fetch(scratch), scratch)
        build(source, scratch / "build")
        made = scratch / "made"
        shutil.copytree(source / "include" / "xgrammar", made / "include" / "xgrammar")
        shutil.copytree(source / "3rdparty" / "dlpack" / "include" / "dlpack", made / "include" / "dlpack")
        (made / "lib").mkdir()
        shutil.copy(scratch / "build" / "libthaw_xgrammar.a", made / "lib")
        for notice in LICENSES:
            shutil.copy(source / notice, made)
        (made / "stamp").write_text(wanted)
        if TARGET.exists():
            shutil.rmtree(TARGET)
        made.rename(TARGET)


if __name__ == "__main__":
    main()
