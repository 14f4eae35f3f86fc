#pragma once

#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/http/server_context.h"

namespace thaw::coalescer {

/// Does on a text thread what turns a call into requests; the window waits for it. I/O thread only.
template <typename Result>
boost::asio::awaitable<Result> prepare_on_text_thread(ServerContext* context,
                                                      boost::asio::awaitable<Result> work) {
  const Dispatcher::Preparation preparation(&context->dispatcher);
  co_return co_await boost::asio::co_spawn(context->text_pool, std::move(work),
                                           boost::asio::use_awaitable);
}

}  // namespace thaw::coalescer
