#!/usr/bin/env python3
"""Fetches and builds the grammar library, xgrammar, into .deps/xgrammar.

Sources are those of the PyPI sdist xgrammar 0.2.8 (2.7 MB, Apache-2.0), checked by their SHA-256, with
the calls below put in; the build is cmake/xgrammar's, with ccache (about 90 seconds of one core).
"""

import hashlib
import pathlib
import shutil

from sdist_library import SdistLibrary

LIBRARY = SdistLibrary(
    name="xgrammar",
    sdist="xgrammar==0.2.8",
    size="2.7 MB",
    sha256="8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80",
    title="the grammar library",
    without="THAW_GRAMMAR",
    cmake_options=("-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG",),
)
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


def is_needed(parts: tuple[str, ...]) -> bool:
    return parts[:1] in (("cpp",), ("include",)) or parts[:2] in (
        ("3rdparty", "picojson"),
        ("3rdparty", "dlpack"),
        *((license_name,) for license_name in LICENSES),
    )


def make_source(scratch: pathlib.Path) -> pathlib.Path:
    """What is built of the sdist, with the bounds in."""
    source = LIBRARY.unpack(scratch, is_needed)
    edits = [(file, old, old + new) for file, old, new in ADDED] + CHANGED
    for file, old, new in edits:
        text = (source / file).read_text()
        if text.count(old) != 1:
            LIBRARY.fail(f"{file} has {text.count(old)} times the line {old!r}; once is right")
        (source / file).write_text(text.replace(old, new))
    shutil.copy(LIBRARY.recipe / "work_bound.h", source / "include" / "xgrammar")
    return source


def main() -> None:
    recipe = hashlib.sha256(repr((ADDED, CHANGED)).encode())
    for part in sorted(LIBRARY.recipe.iterdir()):
        recipe.update(part.read_bytes())
    LIBRARY.install(
        recipe.hexdigest(),
        make_source,
        lambda source, _: [
            (source / "include" / "xgrammar", "xgrammar"),
            (source / "3rdparty" / "dlpack" / "include" / "dlpack", "dlpack"),
        ],
        lambda source: [source / notice for notice in LICENSES],
    )


if __name__ == "__main__":
    main()
