// Size checks for the boundary between Python and the kernels, which assume validity.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace specxai {

inline void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument("specxai._native: " + message);
}

// A count that may be zero, named in the message.
inline void require_count(std::int64_t value, const char* name) {
  require(value >= 0, std::string(name) + " = " + std::to_string(value) + " is negative");
}

// A pointer is needed as soon as there is something behind it.
inline void require_pointer(std::uintptr_t pointer, std::int64_t count, const char* name) {
  require(pointer != 0 || count == 0,
          std::string(name) + " is a null pointer but " + std::to_string(count) +
              " elements are to be read or written");
}

// The number of elements of an a by b array, refused if its bytes do not fit in 63 bits.
inline std::int64_t checked_area(std::int64_t a, std::int64_t b, const char* name) {
  constexpr std::int64_t limit = std::numeric_limits<std::int64_t>::max() / 8;
  require(b == 0 || a <= limit / b,
          std::string(name) + " of " + std::to_string(a) + " x " + std::to_string(b) + " elements is too large");
  return a * b;
}

}  // namespace specxai
