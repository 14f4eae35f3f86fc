#include "cli/served_model.h"

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

TEST(ServedModel, TheCheckpointsSamplingGoesOverOpenAis) {
  model::GenerationDefaults generation;
  EXPECT_EQ(default_sampling(generation).temperature, 1.0F);
  EXPECT_EQ(default_sampling(generation).top_k, 0);
  generation.do_sample = false;
  generation.temperature = 0.6F;
  generation.top_p = 0.95F;
  generation.top_k = 20;
  generation.min_p = 0.05F;
  generation.repetition_penalty = 1.1F;
  const SamplingParams sampling = default_sampling(generation);
  EXPECT_EQ(sampling.temperature, 0.6F);
  EXPECT_EQ(sampling.top_p, 0.95F);
  EXPECT_EQ(sampling.top_k, 20);
  EXPECT_EQ(sampling.min_p, 0.05F);
  EXPECT_EQ(sampling.repetition_penalty, 1.1F);
}

TEST(ServedModel, WhatNoRequestCouldAskForIsLeftAlone) {
  model::GenerationDefaults generation;
  generation.temperature = 5.0F;
  generation.top_p = 0.0F;
  generation.repetition_penalty = 50.0F;
  const SamplingParams sampling = default_sampling(generation);
  EXPECT_EQ(sampling.temperature, 1.0F);
  EXPECT_EQ(sampling.top_p, 1.0F);
  EXPECT_EQ(sampling.repetition_penalty, 1.0F);
}

}  // namespace
}  // namespace thaw::cli
