// A stable sort of edges by (major, minor), each with 32 bits that it carries: in buckets of neighbouring major units,
// and each of these in cache.
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "threads.h"

namespace sparse_etrace {
namespace {

constexpr int64_t BUCKET = 1 << 15;  // edges, of an even graph; two copies of them lie in a core's own cache
constexpr int MOST_BUCKETS = 512, DIGIT = 11;

struct Edge {
  uint32_t major, minor, carried;
};

struct Scratch {
  std::unique_ptr<Edge[]> edges;
  int64_t size = 0;

  Edge* room(int64_t wanted) {
    if (wanted > size) {
      edges.reset();
      edges.reset(new Edge[wanted]);
      size = wanted;
    }
    return edges.get();
  }
};

int bits_of(uint64_t most) {
  int bits = 0;
  for (; most; most >>= 1) ++bits;
  return bits;
}

// Sorts by `bits` bits of one field, the lowest digits first; the edges are in the first or the second place then.
template <uint32_t Edge::*field>
void by_digits(Edge*& edges, Edge*& other, int64_t count, int bits) {
  const int digits = (bits + DIGIT - 1) / DIGIT, width = digits ? (bits + digits - 1) / digits : 0;
  const uint32_t mask = (uint32_t(1) << width) - 1;
  for (int shift = 0; shift < bits; shift += width) {
    std::array<uint32_t, 1 << DIGIT> start{};
    for (int64_t k = 0; k < count; ++k) ++start[(edges[k].*field >> shift) & mask];
    if (start[(edges[0].*field >> shift) & mask] == count) continue;
    uint32_t sum = 0;
    for (uint32_t digit = 0; digit <= mask; ++digit) sum += std::exchange(start[digit], sum);
    for (int64_t k = 0; k < count; ++k) other[start[(edges[k].*field >> shift) & mask]++] = edges[k];
    std::swap(edges, other);
  }
}

struct Columns {
  int32_t *major, *minor, *carried;
};

// Sorts the edges of one bucket in place; their major units agree but for the lowest bits.
void sort_bucket(Columns to, int64_t count, int major_bits, int minor_bits, Scratch& scratch) {
  int64_t k = 1;
  while (k < count && (to.major[k - 1] < to.major[k] || (to.major[k - 1] == to.major[k] && to.minor[k - 1] <= to.minor[k]))) ++k;
  if (k >= count) return;
  Edge *edges = scratch.room(2 * count), *other = edges + count;
  for (k = 0; k < count; ++k) edges[k] = {uint32_t(to.major[k]), uint32_t(to.minor[k]), uint32_t(to.carried[k])};
  by_digits<&Edge::minor>(edges, other, count, minor_bits);
  by_digits<&Edge::major>(edges, other, count, major_bits);
  for (k = 0; k < count; ++k) {
    to.major[k] = int32_t(edges[k].major);
    to.minor[k] = int32_t(edges[k].minor);
    to.carried[k] = int32_t(edges[k].carried);
  }
}

template <class Index>
void sort_edges(int64_t count, const Index* major, const Index* minor, const int32_t* carried, int64_t num_major,
                int64_t num_minor, bool minor_is_sorted, int64_t threads, Columns to, int32_t* ptr) {
  const int bits = bits_of(num_major ? num_major - 1 : 0);
  const int shift = std::max(0, bits - bits_of(std::min<int64_t>(MOST_BUCKETS - 1, count / BUCKET)));
  const int64_t buckets = num_major ? ((num_major - 1) >> shift) + 1 : 0;
  threads = std::clamp<int64_t>(count / BUCKET, 1, threads);
  std::vector<std::vector<int64_t>> start(threads, std::vector<int64_t>(buckets));
  auto part = [&](int64_t thread) { return count / threads * thread + std::min(thread, count % threads); };
  in_threads<int>(threads, threads, [&](int64_t t, int) {
    int64_t* own = start[t].data();
    for (int64_t k = part(t); k < part(t + 1); ++k) ++own[major[k] >> shift];
  });
  std::vector<int64_t> first(buckets + 1, count);
  int64_t sum = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    first[bucket] = sum;
    for (auto& own : start) sum += std::exchange(own[bucket], sum);
  }
  in_threads<int>(threads, threads, [&](int64_t t, int) {
    int64_t* own = start[t].data();
    for (int64_t k = part(t); k < part(t + 1); ++k) {
      const int64_t at = own[major[k] >> shift]++;
      to.major[at] = int32_t(major[k]);
      to.minor[at] = int32_t(minor[k]);
      to.carried[at] = carried ? carried[k] : int32_t(k);
    }
  });
  const int minor_bits = minor_is_sorted ? 0 : bits_of(num_minor ? num_minor - 1 : 0);
  in_threads<Scratch>(threads, buckets, [&](int64_t bucket, Scratch& scratch) {
    const int64_t begin = first[bucket], end = first[bucket + 1];
    sort_bucket({to.major + begin, to.minor + begin, to.carried + begin}, end - begin, shift, minor_bits, scratch);
    int64_t unit = bucket << shift, last = std::min((bucket + 1) << shift, num_major);
    for (int64_t k = begin; k < end; ++k)
      while (unit <= to.major[k]) ptr[unit++] = int32_t(k);
    while (unit < last) ptr[unit++] = int32_t(end);
  });
  ptr[num_major] = int32_t(count);
}

}  // namespace
}  // namespace sparse_etrace

using sparse_etrace::sort_edges;

// Returns 0, or 1 where there is no memory. Indices are from 0 and below the number of units, which int32 holds. An
// edge carries its number where nothing else is given.
extern "C" int64_t sparse_etrace_sort_edges(const void* major, const void* minor, const int32_t* carried,
                                            int32_t* to_major, int32_t* to_minor, int32_t* to_carried, int32_t* ptr,
                                            int64_t count, int64_t is_wide, int64_t num_major, int64_t num_minor,
                                            int64_t minor_is_sorted, int64_t threads) try {
  auto sort = [&](auto index) {
    using Index = const decltype(index)*;
    sort_edges(count, static_cast<Index>(major), static_cast<Index>(minor), carried, num_major, num_minor,
               minor_is_sorted, threads, {to_major, to_minor, to_carried}, ptr);
  };
  is_wide ? sort(int64_t()) : sort(int32_t());
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// The same number in sparse_etrace/_graph/sorting.py: what the functions take and give.
extern "C" int sparse_etrace_edges_interface() { return 5; }
