// Work in blocks on the thread pool of the caller.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace sparse_etrace {

// Calls body(block) for each block, in any order and on any thread.
//
// The calling thread takes blocks too and waits only for blocks that another thread is at work on, never for a task
// that has not started: the pool may have no thread left for it. A task that starts late finds nothing to do, and does
// not touch `body`, which is gone by then.
template <class F>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t blocks, F&& body) {
  if (blocks == 1) return body(int64_t(0));
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, blocks, &body] {
    for (int64_t block; (block = progress->next.fetch_add(1)) < blocks;) {
      body(block);
      progress->done.fetch_add(1);
    }
  };
  for (int64_t helpers = std::min(pool.num_threads(), blocks) - 1; helpers > 0; --helpers) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  while (progress->done.load() < blocks) std::this_thread::yield();
}

}  // namespace sparse_etrace
