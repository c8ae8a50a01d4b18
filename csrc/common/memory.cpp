#include "common/memory.h"

#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace specxai {
namespace {

constexpr std::size_t page = std::size_t{2} << 20;
constexpr std::size_t most_idle = std::size_t{48} << 20;  // bytes; what is given back beyond is freed

struct Pool {
  std::mutex mutex;
  std::multimap<std::size_t, void*> idle;  // by room
  std::size_t idle_bytes = 0;
};

Pool& pool() {
  static Pool* const the = new Pool;  // never destroyed: blocks may outlive the statics
  return *the;
}

void drop(void* data, std::size_t room) {
#ifdef __linux__
  madvise(data, room, MADV_DONTNEED);  // whole pages, which malloc might otherwise keep
#else
  (void)room;
#endif
  std::free(data);
}

}  // namespace

Block::Block(std::size_t size) : data_(nullptr), size_(size), room_(0) {
  if (size == 0) return;
  if (size > std::numeric_limits<std::size_t>::max() - page) throw std::bad_alloc();
  room_ = (size + page - 1) / page * page;
  {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    const auto found = p.idle.lower_bound(room_);
    if (found != p.idle.end() && found->first <= room_ + room_ / 2) {
      room_ = found->first;
      data_ = found->second;
      p.idle_bytes -= room_;
      p.idle.erase(found);
      return;
    }
    // A new block that will be kept takes the place of idle ones that are too small for it.
    auto end = room_ <= most_idle ? found : p.idle.begin();
    for (std::size_t freed = 0; freed < room_ && end != p.idle.begin();) {
      const auto last = std::prev(end);
      freed += last->first;
      p.idle_bytes -= last->first;
      drop(last->second, last->first);
      p.idle.erase(last);
    }
  }
  data_ = std::aligned_alloc(page, room_);
  if (data_ == nullptr) {
    release_idle();
    data_ = std::aligned_alloc(page, room_);
  }
  if (data_ == nullptr) throw std::bad_alloc();
#ifdef __linux__
  madvise(data_, room_, MADV_HUGEPAGE);  // a hint: where it is refused the pages are small
#endif
}

Block::~Block() {
  if (data_ == nullptr) return;
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    // The large ones are worth keeping: smaller ones go where that makes room.
    std::size_t smaller = 0;
    for (auto it = p.idle.begin(); it != p.idle.end() && it->first < room_; ++it) smaller += it->first;
    while (p.idle_bytes + room_ > most_idle && p.idle_bytes - smaller + room_ <= most_idle) {
      smaller -= p.idle.begin()->first;
      p.idle_bytes -= p.idle.begin()->first;
      drop(p.idle.begin()->second, p.idle.begin()->first);
      p.idle.erase(p.idle.begin());
    }
    if (p.idle_bytes + room_ <= most_idle) {
      p.idle.emplace(room_, data_);
      p.idle_bytes += room_;
      return;
    }
  }
  drop(data_, room_);
}

void release_idle() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (const auto& [room, data] : p.idle) drop(data, room);
  p.idle.clear();
  p.idle_bytes = 0;
}

}  // namespace specxai
