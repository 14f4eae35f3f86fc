#include "cli/terminal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/tree_lines.h"

namespace thaw::cli {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::SizeIs;

const Look kPlain{false, false, 60};
const Look kRich{true, true, 60};

TEST(Terminal, TextOfFilesCannotDriveIt) {
  EXPECT_EQ(printable(kRich, "a\x1b[31mb\n\x07"), "a\\u001b[31mb\\n\\u0007");
  EXPECT_EQ(printable(kRich, "\xE2\x80\xAE|\xC2\x9B|"), "\\u202e|\\u009b|");
  EXPECT_EQ(printable(kRich, "caf\xC3\xA9 \xFF"), "caf\xC3\xA9 \xEF\xBF\xBD");
  EXPECT_EQ(printable(kPlain, "caf\xC3\xA9 \xFF"), "caf\\u00e9 ?");
  EXPECT_EQ(styled(kPlain, Style::kBold, "x"), "x");
  EXPECT_EQ(styled(kRich, Style::kBold, "x"), "\x1b[1mx\x1b[0m");
}

TEST(Terminal, ColumnsAreCountedAsTheyShow) {
  EXPECT_EQ(columns_of("abc"), 3U);
  EXPECT_EQ(columns_of("\xE6\xBC\xA2\xE5\xAD\x97"), 4U) << "two wide characters";
  EXPECT_EQ(columns_of("e\xCC\x81"), 1U) << "a combining accent";
  EXPECT_EQ(columns_of(styled(kRich, Style::kId, "abc")), 3U);
  EXPECT_EQ(padded("\xE6\xBC\xA2", 4), "\xE6\xBC\xA2  ");
  EXPECT_EQ(clipped(kPlain, "abcdefgh", 6), "abc...");
  EXPECT_EQ(clipped(kPlain, "abcdefgh", 6, true), "...fgh");
  EXPECT_EQ(clipped(kPlain, "abcdef", 6), "abcdef");
  EXPECT_EQ(clipped(kRich, "abcdefgh", 6), "abcde\xE2\x80\xA6");
}

TEST(Terminal, TablesAreAligned) {
  Table table({1});
  table.add({styled(kRich, Style::kBold, "a"), "1", "x"});
  table.add({"bcd", "1,000"});
  EXPECT_EQ(table.render("> "), "> \x1b[1ma\x1b[0m        1  x\n> bcd  1,000\n");
}

TEST(Terminal, BarsShowAlmostNothingAndAlmostAll) {
  EXPECT_EQ(bar(kPlain, 0, 100, 10), "----------");
  EXPECT_EQ(bar(kPlain, 1, 100, 10), "#---------");
  EXPECT_EQ(bar(kPlain, 50, 100, 10), "#####-----");
  EXPECT_EQ(bar(kPlain, 99, 100, 10), "#########-");
  EXPECT_EQ(bar(kPlain, 100, 100, 10), "##########");
  EXPECT_EQ(bar(kPlain, 0, 0, 3), "---");
  EXPECT_EQ(bar(kRich, 1, 2, 2), "\xE2\x96\x88\xE2\x96\x91");
}

TEST(Terminal, TextsStandBesideEachOther) {
  const Look narrow{false, false, 25};
  EXPECT_EQ(side_by_side(narrow, "A", "one two three", "B", "x\ny"),
            "  A          | B\n  one two th | x\\ny\n  ree        |\n");
}

TEST(Terminal, NumbersAndTimesAreForPeople) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(counted(1, "block"), "1 block");
  EXPECT_EQ(counted(2, "block"), "2 blocks");
  EXPECT_EQ(utc_time(1781234567.25), "2026-06-12 03:22:47 UTC");
  EXPECT_EQ(utc_time(0), "unknown");
  EXPECT_EQ(utc_time(1e300), "unknown");
  EXPECT_EQ(age(1000, 1000.5), "just now");
  EXPECT_EQ(age(1000, 1090), "1 min ago");
  EXPECT_EQ(age(1000, 1000 + 3 * 86400), "3 d ago");
  EXPECT_EQ(age(2000, 1000), "just now") << "of a clock that is ahead";
  EXPECT_EQ(age(0, 1000), "unknown");
}

TEST(Tree, IsDrawnFromTopToBottom) {
  const std::vector<TreeNode> nodes{{{1, 2}}, {{3}}, {}, {}, {}};
  const std::vector<std::size_t> roots{0, 4};
  std::vector<std::string> prefixes;
  std::vector<std::size_t> order;
  for (const TreeLine& line : tree_lines(kPlain, nodes, roots)) {
    prefixes.push_back(line.prefix);
    order.push_back(line.node);
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 3, 2, 4));
  EXPECT_THAT(prefixes, ElementsAre("", "|- ", "|  `- ", "`- ", ""));
  EXPECT_EQ(tree_lines(kRich, nodes, roots)[2].prefix, "\xE2\x94\x82  \xE2\x94\x94\xE2\x94\x80 ");
}

TEST(Tree, MayBeDeep) {
  std::vector<TreeNode> nodes(100000);
  for (std::size_t i = 0; i + 1 < nodes.size(); ++i)
    nodes[i].children = {i + 1};
  const std::vector<std::size_t> roots{0};
  const auto lines = tree_lines(kPlain, nodes, roots);
  ASSERT_EQ(lines.size(), nodes.size());
  EXPECT_LT(lines.back().prefix.size(), 200U);
}

}  // namespace
}  // namespace thaw::cli
