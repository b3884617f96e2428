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
constexpr int64_t BATCH = 32, STEPS = 3, FIRST = 1 << 10;

// Ids in slots near those that a hash says, which are their numbers. The seed keeps a file from choosing ids that meet.
class Slots {
 public:
  explicit Slots(uint64_t seed) : seed_(seed) {}

  // The number of each of some ids: in turns, so that none waits for the memory of one before. `moved` takes which
  // numbers came in the place of those given before this id.
  template <class F>
  void of(const uint64_t* given, int64_t count, int32_t* to, F&& moved) {
    if (ids.empty()) {
      ids.assign(FIRST + STEPS, given[0]);
      home = place(given[0]);
    }
    size_t at[BATCH];
    for (int64_t k = 0; k < count; ++k) __builtin_prefetch(&ids[at[k] = place(given[k])]);
    for (int64_t k = 0; k < count; ++k) {
      size_t slot = at[k];
      for (int step = 0; step < STEPS; ++step) slot += ids[slot] != given[k];
      if (ids[slot] != given[k]) {
        if (3 * used_ > 2 * ids.size()) moved(grow(), to + k);
        slot = search(given[k]);
        used_ += !has(slot);
        ids[slot] = given[k];
      }
      to[k] = int32_t(slot);
    }
  }

  // An empty slot holds the first id of all, which has its home.
  bool has(size_t slot) const { return ids[slot] != ids[home] || slot == home; }

 private:
  // Where an id is, or may be put.
  size_t search(uint64_t id) const {
    size_t slot = place(id);
    while (has(slot) && ids[slot] != id) slot = slot + 1 < ids.size() ? slot + 1 : 0;
    return slot;
  }

  std::vector<uint32_t> grow() {
    if (ids.size() > UINT32_MAX / 2) throw std::bad_alloc();
    const Slots old = *this;
    ids.assign(2 * (ids.size() - STEPS) + STEPS, old.ids[home]);
    --shift_;
    home = place(ids[0]);
    std::vector<uint32_t> to(old.ids.size());
    for (size_t slot = 0; slot < to.size(); ++slot)
      if (old.has(slot)) ids[to[slot] = uint32_t(search(old.ids[slot]))] = old.ids[slot];
    return to;
  }

  size_t place(uint64_t id) const {
    id = (id ^ seed_) * 0x9E3779B97F4A7C15u;
    return ((id ^ (id >> 32)) * 0xD6E8FEB86659FD93u) >> shift_;
  }

  uint64_t seed_, used_ = 1;
  int shift_ = 54;

 public:
  size_t home = 0;
  std::vector<uint64_t> ids;
};

struct Ids {
  std::vector<Slots> own;  // of each thread
  std::vector<std::pair<int64_t, int32_t*>> pieces;

  // How many threads number a piece, and the rows of one of them.
  int64_t threads_for(int64_t rows) const { return std::clamp<int64_t>(rows / ROWS, 1, own.size()); }

  std::pair<int64_t, int64_t> part(int64_t rows, int64_t thread) const {
    const int64_t threads = threads_for(rows);
    auto start = [&](int64_t t) { return t < threads ? rows / threads * t + std::min(t, rows % threads) : rows; };
    return {start(thread), start(thread + 1)};
  }

  // Puts other numbers in the place of those of a thread's rows before one.
  void renumber(int64_t t, const std::vector<uint32_t>& by, const int32_t* end = nullptr) {
    for (auto [rows, to] : pieces)
      for (auto [row, last] = part(rows, t); row < last && to + row != end; ++row)
        to[row] = int32_t(by[uint32_t(to[row])]);
  }

  void add(const uint64_t* ids, int64_t rows, int32_t* to) {
    pieces.emplace_back(rows, to);
    const int64_t threads = threads_for(rows);
    in_threads<int>(threads, threads, [&](int64_t t, int) {
      for (auto [row, last] = part(rows, t); row < last; row += BATCH)
        own[t].of(ids + row, std::min(BATCH, last - row), to + row,
                  [&, t = t](const std::vector<uint32_t>& by, const int32_t* end) { renumber(t, by, end); });
    });
  }

  int64_t finish(uint64_t* labels, uint64_t sign) {
    std::vector<std::pair<uint64_t, uint32_t*>> all;
    std::vector<std::vector<uint32_t>> ranks;
    for (auto& slots : own) {
      auto& rank = ranks.emplace_back(slots.ids.size());
      for (size_t k = 0; k < rank.size(); ++k)
        if (slots.has(k)) all.emplace_back(slots.ids[k] ^ sign, &rank[k]);
    }
    std::sort(all.begin(), all.end());
    int64_t count = 0, sum = 0;
    for (auto& piece : pieces) sum += piece.first;
    for (size_t k = 0; k < all.size(); ++k) {
      if (k == 0 || all[k].first != all[k - 1].first) labels[count++] = all[k].first ^ sign;
      if (count > INT32_MAX) throw std::bad_alloc();
      *all[k].second = uint32_t(count - 1);
    }
    const int64_t threads = threads_for(sum);
    in_threads<int>(threads, own.size(), [&](int64_t t, int) { renumber(t, ranks[t]); });
    return count;
  }
};

}  // namespace
}  // namespace sparse_etrace

using sparse_etrace::Ids, sparse_etrace::Slots;

// Numbers the ids of a piece, whose places `to` gets at the end. `ids` is 0 for the first one, and what this returns
// for the others; where there is no memory it is let go, and this returns 0.
extern "C" Ids* sparse_etrace_number(Ids* ids, const uint64_t* piece, int64_t rows, int32_t* to, int64_t threads) try {
  if (!ids) ids = new Ids{{size_t(threads), Slots(std::chrono::steady_clock::now().time_since_epoch().count())}, {}};
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
