// Windows of two elements of a batch at once.
#pragma once

#include "layout.h"

namespace sparse_etrace {
namespace {

template <class T>
void to_pairs(const Window<T>& work, int64_t b, T* rows, int64_t begin, int64_t end) {
  auto row = [&](int64_t k, int64_t j) __attribute__((always_inline)) -> const T* {
    return work.x + (k * work.batch + b + j) * work.units + begin;
  };
  lay_out<T, 2>(row, end - begin, work.steps, 16, rows + (b * work.units + 2 * begin) * 16, 32, lanes<T>);
}

// As in window_of_steps.h, without a lag and in at most 16 steps: half of a vector are steps of the one element, half
// those of the other, so that lanes are summed for both together. The coefficients of a unit lie as the steps of
// entering and direct, 32 numbers for each, and then carried and signal, each for both elements.
template <class T, class Store, int A>
void window_of_pairs(const Window<T>& work, int64_t b, int64_t begin, int64_t end) {
  constexpr int n = lanes<T>, half = n / 2, vectors = 32 / n, width = (A + 1) * (32 + 2 * A);
  constexpr int64_t group = 16, ahead = 2, far = 16 * n;
  typedef pack<T, n> V;
  typedef typename Store::type Stored;
  const Synapses synapses = work.synapses;
  const int64_t num_post = synapses.num_post, count = synapses.count;
  const T* const rows = work.rows + b * work.units * 16;
  alignas(64) T room[group * width];
  std::make_integer_sequence<int, n> all;

  auto run = [&](const T* unit, int64_t s, int64_t some) __attribute__((always_inline)) {
    int32_t rest[n];
    const int32_t* pre = synapses.pre + s;
    if (some < n) {
      for (int64_t l = 0; l < n; ++l) rest[l] = pre[l < some ? l : 0];
      pre = rest;
    }
    const int32_t* soon = s + (ahead + 1) * n > count ? pre : synapses.pre + s + ahead * n;
    __builtin_prefetch(synapses.pre + s + far);
    if (b) __builtin_prefetch(work.gradient + s + far);
    for (int i = 0; i < 2 * A; ++i)
      __builtin_prefetch(static_cast<const Stored*>(work.trace) + (i / 2 * work.batch + b + i % 2) * count + s + far);
    auto leaf = [&](int l) __attribute__((always_inline)) {
      const T* row = rows + int64_t(pre[l]) * 32;
      for (int i = 0; i < 32; i += 64 / int(sizeof(T))) __builtin_prefetch(rows + int64_t(soon[l]) * 32 + i);
      Vectors<V, A + 1> total = {};
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const V now = load<V>(row + v * n);
#pragma GCC unroll 4
        for (int a = 0; a <= A; ++a) total.of[a] += load<V>(unit + a * 32 + v * n) * now;
      }
      return total;
    };
    const Vectors<V, A + 1> low = lane_sums<V, A + 1, half>(leaf), high = lane_sums<V, A + 1, half>(leaf, half);
    V taught =
        interleaved<half, false>(low.of[A], high.of[A], all) + interleaved<half, true>(low.of[A], high.of[A], all);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const T* by = unit + (A + 1) * 32 + j;  // carried (A x A) and signal (A), two of each
      const int64_t of_b = b + j;
      const uint32_t noise = work.noise ? *work.noise + uint32_t(of_b) * 0x27d4eb2fu : 0;
      V old[A + 1];
      for (int a = 0; a < A; ++a)
        old[a] = get<Store, n>(static_cast<const Stored*>(work.trace) + (a * work.batch + of_b) * count + s, some);
      for (int a = 0; a < A; ++a) {
        V sum = j ? second_half(low.of[a], high.of[a], all) : first_half(low.of[a], high.of[a], all);
        for (int c = 0; c < A; ++c) sum += by[2 * (a * A + c)] * old[c];
        taught += by[2 * (A * A + a)] * old[a];
        if (work.next)
          put(static_cast<Stored*>(work.next) + (a * work.batch + of_b) * count + s,
              Store::put(sum, uint32_t(a * count + s), work.noise ? &noise : nullptr), some);
      }
    }
    if (work.gradient) {
      if (b) taught += get<AsIs<T>, n>(work.gradient + s, some);
      put(work.gradient + s, taught, some);
    }
  };

  for (int64_t s = begin; s < end;) {
    const int64_t first = synapses.post[s], units = min(group, num_post - first);
    for (int a = 0; a <= A; ++a)
      lay_out<T, 2>(coefficients<A>(work, a, b, first), units, work.steps, 16, room + a * 32, width, units);
    for (int i = 0; i < A * (A + 1); ++i) {
      const T* from = i < A * A ? work.carried : work.signal;
      for (int j = 0; j < 2; ++j)
        for (int64_t u = 0; u < units; ++u)
          room[u * width + (A + 1) * 32 + 2 * i + j] =
              from ? from[((i < A * A ? i : i - A * A) * work.batch + b + j) * num_post + first + u] : T(0);
    }
    for (const T* unit = room; unit < room + units * width && s < end; unit += width) {
      const int64_t last = min(synapses.post_ptr[first + (unit - room) / width + 1], end);
      for (; s < last; s += n) run(unit, s, min(n, last - s));
      s = min(s, last);
    }
  }
}

}  // namespace
}  // namespace sparse_etrace
