// Windows of one element of a batch.
#pragma once

#include "layout.h"

namespace sparse_etrace {
namespace {

// The lanes of a vector are steps, then synapses. The coefficients of a unit lie as carried (A x A), signal (A), and for
// each variable the steps of entering, and the steps of direct, padded with zeros to a multiple of 16. Fixed: that
// number of steps where it is known, or 0. First to Last: the sums that are made, those of the new trace before that of
// the gradient. Across: the synapses of a vector may belong to several units of a group, where units have few. Lagged: there
// may be a lag; without it the rows are as long as that number.
template <class T, class Store, int A, int Fixed, int First, int Last, bool Across, bool Lagged>
INLINE void window_of_steps(const Window<T> work, int64_t b, int64_t begin, int64_t end) {
  constexpr int n = lanes<T>, sums = Last - First + 1;
  constexpr int64_t group = Across ? 32 : 16, ahead = 2, far = 16 * n;
  typedef pack<T, n> V;
  typedef typename Store::type Stored;
  const Synapses synapses = work.synapses;
  const int64_t num_post = synapses.num_post, padded = Fixed ? Fixed : (work.steps + 15) / 16 * 16;
  const int64_t width = (A + 1) * (A + padded);
  T* const room = new T[group * width]();
  const uint32_t noise = work.noise ? *work.noise + uint32_t(b) * 0x27d4eb2fu : 0;

  const T* x = work.x + b * work.units;
  const T* rows = work.rows + b * work.units * work.pitch;
  // What a slot says beyond the place of the same unit in the first one.
  const int64_t pitch = Fixed && !Lagged ? Fixed : work.pitch;
  const int64_t later = work.units * (work.batch - 1), back = work.units * pitch - 1;
  const Stored* trace[A + 1];
  Stored* next[A + 1];
  for (int a = 0; a < A; ++a) {
    trace[a] = static_cast<const Stored*>(work.trace) + (a * work.batch + b) * synapses.count;
    next[a] = static_cast<Stored*>(work.next) + (a * work.batch + b) * synapses.count;
  }

  // `pre`, `lag` and `at` say for each lane its sender, its slot and where its coefficients begin; all of one unit at[0].
  auto run = [&](int64_t s, int64_t count, const int32_t* pre, const int32_t* lag, const int64_t* at)
                 __attribute__((always_inline)) {
    auto of = [&](int64_t i) __attribute__((always_inline)) {
      if constexpr (!Across) return V{} + room[at[0] + i];
      V all;
#pragma GCC unroll 16
      for (int l = 0; l < n; ++l) all[l] = room[at[l] + i];
      return all;
    };
    V old[A + 1], sum[sums] = {};
    for (int a = 0; a < A; ++a) {
      old[a] = get<Store, n>(trace[a] + s, count);
      __builtin_prefetch(trace[a] + s + far);
    }
    if (b) __builtin_prefetch(work.gradient + s + far);
    __builtin_prefetch(synapses.pre + s + far);
    for (int a = First; a <= Last; ++a)
      for (int c = 0; c < A; ++c) sum[a - First] += of(a * A + c) * old[c];
    constexpr int64_t entering = A * (A + 1);
    if (work.steps == 1) {
      V now;
#pragma GCC unroll 16
      for (int l = 0; l < n; ++l) now[l] = x[Lagged && lag ? pre[l] + lag[l] * later : pre[l]];
      for (int a = First; a <= Last; ++a) sum[a - First] += of(entering + a * padded) * now;
    } else {
      // What later synapses will gather is fetched early, but not from after the last of them.
      const bool is_last = s + (ahead + 1) * n > synapses.count;
      const int32_t* soon = is_last ? pre : synapses.pre + s + ahead * n;
      const int32_t* soon_lag = is_last || !Lagged || !lag ? lag : work.lag + s + ahead * n;
      auto start = [&](const int32_t* pre, const int32_t* lag, int l) __attribute__((always_inline)) {
        return rows + pre[l] * pitch - (Lagged && lag ? lag[l] * back : 0);
      };
      // Coefficients of one unit stay in registers where these are enough.
      constexpr int vectors = Fixed / n;
      constexpr bool stay = Fixed && !Across && sums * vectors <= VECTOR_BYTES / 8;
      V known[sums][stay ? vectors : 1];
      if constexpr (stay)
        for (int a = 0; a < sums; ++a)
          for (int k = 0; k < vectors; ++k) known[a][k] = load<V>(room + at[0] + entering + (First + a) * padded + k * n);
      auto made = lane_sums<V, sums>([&](int l) __attribute__((always_inline)) {
        const T* row = start(pre, lag, l);
        const T* q = room + entering + at[Across ? l : 0];
        __builtin_prefetch(start(soon, soon_lag, l));
        if (Lagged && lag) __builtin_prefetch(start(soon, soon_lag, l) + n - 1);
        Vectors<V, sums> total = {};
#pragma GCC unroll 8
        for (int64_t k = 0; k < (Fixed ? Fixed : padded); k += n) {
          V now = load<V>(row + k);
#pragma GCC unroll 4
          for (int a = 0; a < sums; ++a) total.of[a] += (stay ? known[a][k / n] : load<V>(q + (First + a) * padded + k)) * now;
        }
        return total;
      });
      for (int a = 0; a < sums; ++a) sum[a] += made.of[a];
    }
    if (work.next)
      for (int a = First; a < A; ++a) {
        uint32_t place = uint32_t(a * synapses.count + s);
        put(next[a] + s, Store::put(sum[a - First], place, work.noise ? &noise : nullptr), count);
      }
    if (Last == A && work.gradient) {
      if (b) sum[A - First] += get<AsIs<T>, n>(work.gradient + s, count);
      put(work.gradient + s, sum[A - First], count);
    }
  };

  for (int64_t s = begin; s < end;) {
    const int64_t unit = synapses.post[s], units = min(group, num_post - unit);
    const int64_t last = min(synapses.post_ptr[unit + units], end);
    auto fill = [&](int64_t to, const T* from, int64_t i) __attribute__((always_inline)) {
      from = from ? from + (i * work.batch + b) * num_post + unit : nullptr;
      for (int64_t u = 0; u < units; ++u) room[u * width + to] = from ? from[u] : T(0);
    };
    int64_t to = 0;
    for (int64_t i = 0; i < A * A; ++i) fill(to++, work.carried, i);
    for (int64_t i = 0; i < A; ++i) fill(to++, work.signal, i);
    for (int64_t a = 0; a <= A; ++a, to += padded)
      if (work.steps == 1) fill(to, a < A ? work.entering : work.direct, a < A ? a : 0);
      else lay_out<T, 1>(coefficients<A>(work, a, b, unit), units, work.steps, padded, room + to, width, units);
    int64_t own = 0;
    for (int64_t count = n; s < last; s += count) {
      while (!Across && synapses.post_ptr[unit + own + 1] <= s) ++own;
      count = min(n, (Across ? last : min(synapses.post_ptr[unit + own + 1], end)) - s);
      const int32_t *pre = synapses.pre + s, *lag = Lagged && work.lag ? work.lag + s : nullptr;
      int32_t rest[n], rest_lag[n];
      int64_t at[n] = {own * width};
      if (count < n) {
        for (int64_t l = 0; l < n; ++l) rest[l] = l < count ? pre[l] : 0;
        for (int64_t l = 0; Lagged && lag && l < n; ++l) rest_lag[l] = l < count ? lag[l] : 0;
        pre = rest;
        if (Lagged && lag) lag = rest_lag;
      }
      if constexpr (Across)
        for (int64_t l = 0; l < n; ++l) at[l] = l < count ? (synapses.post[s + l] - unit) * width : 0;
      run(s, count, pre, lag, at);
    }
  }
  delete[] room;
}

}  // namespace
}  // namespace sparse_etrace
