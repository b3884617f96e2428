// Each pair of units once, of synapses and the same ones turned round.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "threads.h"

namespace sparse_etrace {
namespace {

constexpr int64_t BLOCK = 1 << 16;  // synapses of a block of units

// The synapses of a square graph by receiver and by sender: ends, runs of units, and `by_pre` for their numbers.
struct Both {
  const int32_t *pre, *ptr, *post_by_pre, *pre_ptr, *by_pre;
};

// Calls each(end, synapse) for what comes in to a unit and what goes out of it, merged by the other end; of one pair,
// incoming synapses come first.
template <class F>
void merged(const Both& both, int64_t unit, F&& each) {
  constexpr int32_t NONE = std::numeric_limits<int32_t>::max();
  int64_t in = both.ptr[unit], out = both.pre_ptr[unit];
  const int64_t in_end = both.ptr[unit + 1], out_end = both.pre_ptr[unit + 1];
  for (int64_t left = in_end - in + out_end - out; left; --left) {
    const int32_t a = in < in_end ? both.pre[in] : NONE, b = out < out_end ? both.post_by_pre[out] : NONE;
    const bool incoming = in < in_end && a <= b;
    each(incoming ? a : b, incoming ? int32_t(in) : both.by_pre[out]);
    in += incoming;
    out += !incoming;
  }
}

// Calls body(first, last) for blocks of units with some BLOCK synapses each.
template <class F>
void in_blocks(const Both& both, int64_t units, int64_t threads, F&& body) {
  std::vector<int64_t> start{0};
  auto before = [&](int64_t unit) { return int64_t(both.ptr[unit]) + both.pre_ptr[unit]; };
  for (int64_t unit = 1; unit <= units; ++unit)
    if (unit == units || before(unit) - before(start.back()) >= BLOCK) start.push_back(unit);
  in_threads<int>(threads, start.size() - 1, [&](int64_t k, int) { body(start[k], start[k + 1]); });
}

// NaN where one of them is.
double larger(double a, double b) { return a != a || b != b ? a + b : std::max(a, b); }

enum Reduce { SUM, MEAN, MAX, FIRST };

struct Pairs {
  int32_t *pre, *post, *post_by_pre, *by_pre;
};

template <class Weight>
void fill(const Both& both, int64_t units, int64_t threads, Reduce reduce, const Weight* weight, const int32_t* ptr,
          Pairs to, Weight* to_weight) {
  in_blocks(both, units, threads, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      int64_t at = ptr[unit] - 1, many = 0;
      int32_t before = -1;
      double sum = 0;
      merged(both, unit, [&](int32_t end, int32_t synapse) {
        const double more = weight[synapse];
        const bool fresh = end != before;
        at += fresh;
        many = fresh ? 1 : many + 1;
        sum = fresh ? more : reduce == FIRST ? sum : reduce == MAX ? larger(sum, more) : sum + more;
        before = end;
        to.pre[at] = to.post_by_pre[at] = end;
        to.post[at] = int32_t(unit);
        to_weight[at] = Weight(reduce == SUM ? 0.0 + sum : reduce == MEAN ? (0.0 + sum) / double(many) : sum);
      });
    }
  });
  // What comes back from each: receivers ascend, so that a unit's own incoming synapses are met in their order.
  std::vector<int32_t> next(ptr, ptr + units);
  for (int64_t k = 0; k < ptr[units]; ++k) to.by_pre[k] = next[to.pre[k]]++;
}

}  // namespace
}  // namespace sparse_etrace

using namespace sparse_etrace;

// Returns how many pairs there are, -1 where there is no memory. Below 2^31 of them, `ptr` says then where those of each
// unit start, their number last.
extern "C" int64_t sparse_etrace_count_pairs(const int32_t* pre, const int32_t* post_ptr, const int32_t* post_by_pre,
                                             const int32_t* pre_ptr, const int32_t* by_pre, int64_t units, int32_t* ptr,
                                             int64_t threads) try {
  const Both both{pre, post_ptr, post_by_pre, pre_ptr, by_pre};
  in_blocks(both, units, threads, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      int32_t count = 0, before = -1;
      merged(both, unit, [&](int32_t end, int32_t) {
        count += end != before;
        before = end;
      });
      ptr[unit + 1] = count;
    }
  });
  int64_t count = 0;
  ptr[0] = 0;
  for (int64_t unit = 1; unit <= units; ++unit) ptr[unit] = int32_t(count += ptr[unit]);
  return count;
} catch (const std::bad_alloc&) {
  return -1;
}

// Writes the pairs that were counted, each with its weight, a float or a double.
extern "C" int64_t sparse_etrace_fill_pairs(const int32_t* pre, const int32_t* post_ptr, const int32_t* post_by_pre,
                                            const int32_t* pre_ptr, const int32_t* by_pre, int64_t units,
                                            const int32_t* ptr, const void* weight, int64_t is_wide, int64_t reduce,
                                            int32_t* to_pre, int32_t* to_post, int32_t* to_post_by_pre,
                                            int32_t* to_by_pre, void* to_weight, int64_t threads) try {
  auto run = [&](auto kind) {
    using Weight = decltype(kind);
    fill<Weight>({pre, post_ptr, post_by_pre, pre_ptr, by_pre}, units, threads, Reduce(reduce),
                 static_cast<const Weight*>(weight), ptr, {to_pre, to_post, to_post_by_pre, to_by_pre},
                 static_cast<Weight*>(to_weight));
  };
  is_wide ? run(double()) : run(float());
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
