// Where each id is among the sorted distinct ids: each thread numbers those of its rows by a hash, then all are sorted.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "threads.h"

namespace sparse_etrace {
namespace {

constexpr int64_t ROWS = 1 << 16;  // that are worth a thread
constexpr int64_t BATCH = 64;

// Numbers ids by first appearance. The seed keeps a file from choosing ids that meet in one place.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : seed_(seed), slots_(size_t(1) << 10, 0), ids(1) {}

  // The number of each of some ids, from 1: in turns, so that none waits for the memory of one before.
  void of(const uint64_t* given, int64_t count, int32_t* to) {
    size_t at[BATCH];
    for (int64_t k = 0; k < count; ++k) __builtin_prefetch(&slots_[at[k] = place(given[k])]);
    for (int64_t k = 0; k < count; ++k) __builtin_prefetch(&ids[to[k] = slots_[at[k]]]);
    for (int64_t k = 0; k < count; ++k)
      if (to[k] == 0 || ids[to[k]] != given[k]) to[k] = search(given[k]);
  }

 private:
  int32_t search(uint64_t id) {
    size_t at = place(id);
    for (; slots_[at]; at = (at + 1) & (slots_.size() - 1))
      if (ids[slots_[at]] == id) return slots_[at];
    if (ids.size() == INT32_MAX) throw std::bad_alloc();
    const int32_t number = slots_[at] = int32_t(ids.size());
    ids.push_back(id);
    if (3 * ids.size() > slots_.size()) grow();
    return number;
  }

  void grow() {
    slots_.assign(4 * slots_.size(), 0);
    shift_ -= 2;
    for (size_t k = 1; k < ids.size(); ++k) {
      size_t at = place(ids[k]);
      while (slots_[at]) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = int32_t(k);
    }
  }

  size_t place(uint64_t id) const {
    id = (id ^ seed_) * 0x9E3779B97F4A7C15u;
    return ((id ^ (id >> 32)) * 0xD6E8FEB86659FD93u) >> shift_;
  }

  uint64_t seed_;
  int shift_ = 54;
  std::vector<int32_t> slots_;

 public:
  std::vector<uint64_t> ids;  // from the second on
};

int64_t positions(const uint64_t* const* pieces, const int64_t* lengths, int64_t num_pieces, bool is_signed,
                  int64_t threads, int32_t* to, uint64_t* labels) {
  int64_t rows = 0;
  for (int64_t piece = 0; piece < num_pieces; ++piece) rows += lengths[piece];
  threads = std::clamp<int64_t>(rows / ROWS, 1, threads);
  const uint64_t seed = std::chrono::steady_clock::now().time_since_epoch().count();
  std::vector<Numbers> own(threads, Numbers(seed));
  auto part = [&](int64_t thread) { return rows / threads * thread + std::min(thread, rows % threads); };
  in_threads<int>(threads, threads, [&](int64_t t, int) {
    int64_t start = 0;
    for (int64_t piece = 0; piece < num_pieces; start += lengths[piece++]) {
      const int64_t end = std::min(part(t + 1), start + lengths[piece]);
      for (int64_t row = std::max(part(t), start); row < end; row += BATCH)
        own[t].of(pieces[piece] + (row - start), std::min(BATCH, end - row), to + row);
    }
  });
  const uint64_t sign = is_signed ? uint64_t(1) << 63 : 0;  // turns the order of signed ids into that of unsigned ones
  std::vector<std::pair<uint64_t, int32_t*>> all;
  std::vector<std::vector<int32_t>> ranks(threads);
  for (int64_t t = 0; t < threads; ++t) {
    ranks[t].resize(own[t].ids.size());
    for (size_t k = 1; k < ranks[t].size(); ++k) all.emplace_back(own[t].ids[k] ^ sign, &ranks[t][k]);
  }
  std::sort(all.begin(), all.end());
  int64_t count = 0;
  for (size_t k = 0; k < all.size(); ++k) {
    if (k == 0 || all[k].first != all[k - 1].first) labels[count++] = all[k].first ^ sign;
    if (count > INT32_MAX) throw std::bad_alloc();
    *all[k].second = int32_t(count - 1);
  }
  in_threads<int>(threads, threads, [&](int64_t t, int) {
    const int32_t* rank = ranks[t].data();
    for (int64_t row = part(t); row < part(t + 1); ++row) to[row] = rank[to[row]];
  });
  return count;
}

}  // namespace
}  // namespace sparse_etrace

// Returns the number of labels, for as many of which as there are rows there is room, or -1 where there is no memory.
extern "C" int64_t sparse_etrace_positions(const uint64_t* const* pieces, const int64_t* lengths, int32_t* to,
                                           uint64_t* labels, int64_t num_pieces, int64_t is_signed,
                                           int64_t threads) try {
  return sparse_etrace::positions(pieces, lengths, num_pieces, is_signed, threads, to, labels);
} catch (const std::bad_alloc&) {
  return -1;
}
