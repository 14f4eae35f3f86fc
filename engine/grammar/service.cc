#include "engine/grammar/service.h"

#include <utility>

namespace thaw::grammar {
namespace {

constexpr std::size_t kRefusalBytes = 1024;  // of the cache, besides the document

}  // namespace

Service::Service(std::shared_ptr<const TokenTexts> texts, int vocab_size,
                 std::vector<TokenId> stop_token_ids, const ServiceOptions& options)
    : texts_(std::move(texts)),
      vocab_size_(vocab_size),
      stop_token_ids_(std::move(stop_token_ids)),
      options_(options),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

Service::~Service() = default;

Result<std::shared_ptr<Preparation>> Service::prepare(Order order) {
  auto preparation = std::make_shared<Preparation>();
  preparation->order_ = std::move(order);
  {
    const std::lock_guard lock(mutex_);
    if (queue_.size() >= options_.max_waiting)
      return make_error(Errc::kResourceExhausted,
                        std::to_string(queue_.size()) + " grammars are waiting to be compiled");
    queue_.push_back(preparation);
  }
  ordered_.notify_one();
  return preparation;
}

std::optional<Result<Preparation::Matchers>> Service::take(Preparation& preparation) {
  const std::lock_guard lock(mutex_);
  return std::exchange(preparation.result_, std::nullopt);
}

void Service::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  done_.wait_for(lock, timeout, [this] { return num_done_ != num_seen_; });
  num_seen_ = num_done_;
}

ServiceStats Service::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Service::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (ordered_.wait(lock, stop, [this] { return !queue_.empty(); }) && !stop.stop_requested()) {
    const std::shared_ptr<Preparation> preparation = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    auto result = serve(preparation->order_);
    lock.lock();
    preparation->result_ = std::move(result);
    ++num_done_;
    done_.notify_all();
  }
}

Result<Preparation::Matchers> Service::serve(const Order& order) {
  const Compiled grammar = find_or_compile(order.document);
  if (!grammar) return grammar.error();
  Preparation::Matchers matchers;
  const std::unique_ptr<Matcher> first = (*grammar)->start(order.stop_token_ids);
  for (const std::vector<TokenId>& generated : order.generated) {
    auto matcher = first->fork();
    for (const TokenId token : generated) {
      if (auto accepted = matcher->accept(token); !accepted) return accepted.error();
    }
    matchers.push_back(std::move(matcher));
  }
  return matchers;
}

Service::Compiled Service::find_or_compile(const std::string& document) {
  if (const auto found = by_document_.find(document); found != by_document_.end()) {
    cache_.splice(cache_.begin(), cache_, found->second);
    const std::lock_guard lock(mutex_);
    ++stats_.cache_hits;
    return found->second->grammar;
  }
  const auto started = std::chrono::steady_clock::now();
  if (!vocabulary_) vocabulary_ = make_vocabulary(*texts_, vocab_size_, stop_token_ids_);
  Compiled compiled = !*vocabulary_ ? Compiled(vocabulary_->error())
                                    : (**vocabulary_)->compile(document, options_.limits);
  const auto took = std::chrono::steady_clock::now() - started;
  keep(document, compiled);
  const std::lock_guard lock(mutex_);
  ++stats_.compiled;
  stats_.compile_us += static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(took).count());
  stats_.cached_bytes = 0;
  for (const Entry& entry : cache_)
    stats_.cached_bytes += entry.bytes;
  return compiled;
}

void Service::keep(const std::string& document, const Compiled& compiled) {
  const std::size_t bytes =
      document.size() + (compiled ? (*compiled)->size_bytes() : kRefusalBytes);
  if (bytes > options_.cache_bytes) return;
  std::size_t left = options_.cache_bytes - bytes;
  for (auto entry = cache_.begin(); entry != cache_.end();) {
    if (entry->bytes <= left) {
      left -= (entry++)->bytes;
      continue;
    }
    left = 0;  // what was used before this one goes too
    by_document_.erase(entry->document);
    entry = cache_.erase(entry);
  }
  cache_.push_front({document, compiled, bytes});
  by_document_.emplace(cache_.front().document, cache_.begin());
}

}  // namespace thaw::grammar
