// Work in blocks on threads of one's own.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>

namespace sparse_etrace {

// Calls body(block, scratch) for each block, in any order, on at most so many threads with a `Scratch` each. Throws
// std::bad_alloc if one of them did. Where the system gives fewer threads, those that there are do the work.
template <class Scratch, class F>
void in_threads(int64_t threads, int64_t blocks, F&& body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    try {
      Scratch scratch;
      for (int64_t block; (block = next.fetch_add(1)) < blocks;) body(block, scratch);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int64_t more = 1; more < threads && more < blocks; ++more) helpers.emplace_back(work);
  } catch (...) {
  }
  work();
  for (auto& helper : helpers) helper.join();
  if (failed) throw std::bad_alloc();
}

}  // namespace sparse_etrace
