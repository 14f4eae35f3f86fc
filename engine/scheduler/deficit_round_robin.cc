#include "engine/scheduler/deficit_round_robin.h"

#include <algorithm>
#include <vector>

namespace thaw::scheduler {
namespace {

using Job = DeficitRoundRobin::Job;

// The first job from `order` on that wants more, round again from the start; null if none does.
Job* next_job(std::span<Job* const> jobs, std::uint64_t order) {
  const auto wants = [](const Job* job) { return job->grant < job->demand; };
  const auto turn = std::find_if(jobs.begin(), jobs.end(),
                                 [&](const Job* job) { return job->order >= order && wants(job); });
  if (turn != jobs.end()) return *turn;
  const auto first = std::find_if(jobs.begin(), jobs.end(), wants);
  return first == jobs.end() ? nullptr : *first;
}

}  // namespace

std::uint32_t DeficitRoundRobin::share(std::span<Job> jobs, std::uint32_t budget) {
  std::map<std::string, std::vector<Job*>, std::less<>> queues;
  for (Job& job : jobs)
    queues[std::string(job.tenant)].push_back(&job);
  for (auto& [name, queue] : queues) {
    std::sort(queue.begin(), queue.end(),
              [](const Job* a, const Job* b) { return a->order < b->order; });
  }
  std::erase_if(tenants_, [&](const auto& tenant) { return !queues.contains(tenant.first); });

  auto turn = queues.lower_bound(next_tenant_);
  while (budget > 0 && !queues.empty()) {
    if (turn == queues.end()) turn = queues.begin();
    Tenant& tenant = tenants_[turn->first];
    tenant.deficit += kQuantum;
    Job* job = next_job(turn->second, tenant.next_order);
    while (job != nullptr && tenant.deficit > 0 && budget > 0) {
      const std::uint32_t rows = std::min({job->demand - job->grant, tenant.deficit, budget});
      job->grant += rows;
      tenant.deficit -= rows;
      budget -= rows;
      tenant.next_order = job->order + 1;
      job = next_job(turn->second, tenant.next_order);
    }
    if (job == nullptr) {
      tenants_.erase(turn->first);
      turn = queues.erase(turn);
    } else {
      ++turn;
    }
  }
  next_tenant_ = turn == queues.end() ? std::string() : turn->first;
  return budget;
}

}  // namespace thaw::scheduler
