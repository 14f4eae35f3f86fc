#pragma once

#include <string>
#include <string_view>

namespace thaw::checkpoint {

/// Text from a file as it may stand in a message: in quotes, short, one line, printable ASCII.
std::string in_quotes(std::string_view text);

}  // namespace thaw::checkpoint
