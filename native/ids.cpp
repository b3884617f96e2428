// Where each id is among the sorted distinct ids: each thread numbers those of its rows by a hash, then all are sorted.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "threads.h"

namespace sparse_etrace {
namespace {

constexpr int64_t ROWS = 1 << 15;  // that are worth a thread
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

struct Ids {
  std::vector<Numbers> own;  // of each thread
  std::vector<std::pair<int64_t, int32_t*>> pieces;

  // The threads that number a piece, each some rows of it, one after the other.
  template <class F>
  void each(std::pair<int64_t, int32_t*> piece, F&& rows_of_thread) {
    const int64_t rows = piece.first, threads = std::clamp<int64_t>(rows / ROWS, 1, own.size());
    auto part = [&](int64_t t) { return rows / threads * t + std::min(t, rows % threads); };
    in_threads<int>(threads, threads, [&](int64_t t, int) { rows_of_thread(t, part(t), part(t + 1)); });
  }

  void add(const uint64_t* ids, int64_t rows, int32_t* to) {
    pieces.emplace_back(rows, to);
    each(pieces.back(), [&](int64_t t, int64_t row, int64_t end) {
      for (; row < end; row += BATCH) own[t].of(ids + row, std::min(BATCH, end - row), to + row);
    });
  }

  int64_t finish(uint64_t* labels, uint64_t sign) {
    std::vector<std::pair<uint64_t, int32_t*>> all;
    std::vector<std::vector<int32_t>> ranks;
    for (auto& numbers : own) {
      auto& rank = ranks.emplace_back(numbers.ids.size());
      for (size_t k = 1; k < rank.size(); ++k) all.emplace_back(numbers.ids[k] ^ sign, &rank[k]);
    }
    std::sort(all.begin(), all.end());
    int64_t count = 0;
    for (size_t k = 0; k < all.size(); ++k) {
      if (k == 0 || all[k].first != all[k - 1].first) labels[count++] = all[k].first ^ sign;
      if (count > INT32_MAX) throw std::bad_alloc();
      *all[k].second = int32_t(count - 1);
    }
    for (auto& piece : pieces)
      each(piece, [&](int64_t t, int64_t row, int64_t end) {
        for (int32_t* to = piece.second; row < end; ++row) to[row] = ranks[t][to[row]];
      });
    return count;
  }
};

}  // namespace
}  // namespace sparse_etrace

using sparse_etrace::Ids, sparse_etrace::Numbers;

// Numbers the ids of a piece, whose places `to` gets at the end. `ids` is 0 for the first one, and what this returns
// for the others; where there is no memory it is let go, and this returns 0.
extern "C" Ids* sparse_etrace_number(Ids* ids, const uint64_t* piece, int64_t rows, int32_t* to, int64_t threads) try {
  if (!ids) ids = new Ids{{size_t(threads), Numbers(std::chrono::steady_clock::now().time_since_epoch().count())}, {}};
  ids->add(piece, rows, to);
  return ids;
} catch (const std::bad_alloc&) {
  delete ids;
  return nullptr;
}

// Lets go of `ids` and, where there is room for them, returns the number of labels, of which as many as rows may come;
// -1 where there is no memory. `sign` turns the order of signed ids into that of unsigned ones.
extern "C" int64_t sparse_etrace_labels(Ids* ids, uint64_t* labels, uint64_t sign, int64_t) try {
  std::unique_ptr<Ids> held(ids);
  return labels ? held->finish(labels, sign) : 0;
} catch (const std::bad_alloc&) {
  return -1;
}
