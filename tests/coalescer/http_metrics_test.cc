#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "coalescer/http/metrics.h"

namespace thaw::coalescer {
namespace {

TEST(Metrics, HistogramIsCumulative) {
  DurationHistogram histogram;
  histogram.observe(std::chrono::microseconds(500));
  histogram.observe(std::chrono::milliseconds(3));
  histogram.observe(std::chrono::hours(1));
  std::string out;
  histogram.append(out, "x", "help");
  EXPECT_NE(out.find("x_bucket{le=\"0.001\"} 1\n"), std::string::npos) << out;
  EXPECT_NE(out.find("x_bucket{le=\"0.005\"} 2\n"), std::string::npos);
  EXPECT_NE(out.find("x_bucket{le=\"120\"} 2\n"), std::string::npos);
  EXPECT_NE(out.find("x_bucket{le=\"+Inf\"} 3\n"), std::string::npos);
  EXPECT_NE(out.find("x_count 3\n"), std::string::npos);
}

/// Each sample line belongs to the TYPE line above it, and no metric is declared twice.
TEST(Metrics, FormatIsWellFormed) {
  Metrics metrics;
  metrics.requests[{"/v1/x", 200}] = 3;
  PoolStatus status;
  status.workers.resize(2);
  status.workers[1].worker = 1;
  status.workers[1].stats.tokens_prefilled = 7;
  status.files.hits = 5;
  status.arena.bytes = 1024;
  status.store.failures = 6;
  const std::string text = metrics.render(status, "1.0\"");
  EXPECT_NE(text.find("thaw_tier_hits_total{tier=\"arena\"} 0\n"), std::string::npos);
  EXPECT_NE(text.find("thaw_tier_hits_total{tier=\"files\"} 5\n"), std::string::npos);
  EXPECT_NE(text.find("thaw_tier_failures_total{tier=\"s3\"} 6\n"), std::string::npos);
  EXPECT_NE(text.find("thaw_tier_bytes{tier=\"arena\"} 1024\n"), std::string::npos);
  EXPECT_NE(text.find("thaw_tokens_prefilled_total{worker=\"1\"} 7\n"), std::string::npos);
  EXPECT_NE(text.find("thaw_info{version=\"1.0\\\"\"} 1\n"), std::string::npos);
  std::set<std::string> declared;
  std::string current;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# TYPE ", 0) == 0) {
      current = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(declared.insert(current).second) << line;
    } else if (line.rfind("# HELP ", 0) != 0) {
      EXPECT_EQ(line.rfind(current, 0), 0U) << line;
      EXPECT_NE(line.find(' '), std::string::npos) << line;
    }
  }
}

}  // namespace
}  // namespace thaw::coalescer
