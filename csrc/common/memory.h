// Blocks of memory that are used again: pages that are new cost more than most products write to them.
#pragma once

#include <cstddef>

namespace specxai {

// A block of at least `size` bytes, aligned to a page of 2 MB; null where that is none.  Its end gives it back to the pool.
class Block {
 public:
  // Throws std::bad_alloc where there is no memory left.
  explicit Block(std::size_t size);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void* data_;
  std::size_t size_, room_;
};

// Give all idle blocks back to the system.  Threads may take and give blocks meanwhile.
void release_idle();

}  // namespace specxai
