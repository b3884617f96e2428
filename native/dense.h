// Windows where everything is connected.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

// The lanes of a vector are receivers; a tile of R senders and one vector stays in registers through all steps. `room`
// holds rows of `pitch` numbers for the receivers of one batch element: for each step those of entering and direct, then
// carried (A x A) and signal (A).
template <class T, class Store, int A>
struct DenseWindow {
  static constexpr int n = lanes<T>, most = (VECTOR_BYTES == 64 ? 24 : 12) / (A + 1);
  static constexpr int tile = most >= 8 ? 8 : most >= 4 ? 4 : 2;
  typedef pack<T, n> V;
  typedef typename Store::type Stored;
  const Window<T>& work;
  const int64_t pitch;
  T *const room, *const inputs;  // of a tile: (steps, R)

  template <int R>
  INLINE void run(int64_t b, int64_t sender, uint32_t noise) const {
    const int64_t num_pre = work.synapses.num_pre, num_post = work.synapses.num_post, count = work.synapses.count;
    for (int64_t k = 0; k < work.steps; ++k)
      for (int r = 0; r < R; ++r) inputs[k * R + r] = work.x[(k * work.batch + b) * num_pre + sender + r];
    const T* const units = room + work.steps * (A + 1) * pitch;
    auto column = [&](int64_t post, int64_t width) __attribute__((always_inline)) {
      V sum[A + 1][R] = {};
      const T *row = room + post, *x = inputs;
      for (int64_t k = 0; k < work.steps; ++k, row += (A + 1) * pitch, x += R)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int a = 0; a <= A; ++a) sum[a][r] += load<V>(row + a * pitch) * x[r];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t s = (sender + r) * num_post + post;
        V old[A];
#pragma GCC unroll 4
        for (int a = 0; a < A; ++a)
          old[a] = get<Store, n>(static_cast<const Stored*>(work.trace) + (a * work.batch + b) * count + s, width);
#pragma GCC unroll 8
        for (int a = 0; a <= A; ++a)
#pragma GCC unroll 4
          for (int c = 0; c < A; ++c) sum[a][r] += load<V>(units + (a * A + c) * pitch + post) * old[c];
        if (work.next)
#pragma GCC unroll 4
          for (int a = 0; a < A; ++a)
            put(static_cast<Stored*>(work.next) + (a * work.batch + b) * count + s,
                Store::put(sum[a][r], uint32_t(a * count + s), work.noise ? &noise : nullptr), width);
        if (work.gradient) {
          if (b) sum[A][r] += get<AsIs<T>, n>(work.gradient + s, width);
          put(work.gradient + s, sum[A][r], width);
        }
      }
    };
    int64_t post = 0;
    for (; post + n <= num_post; post += n) column(post, n);
    if (post < num_post) column(post, num_post - post);
  }

  void run(int64_t begin, int64_t end) const {
    const int64_t num_post = work.synapses.num_post;
    for (int64_t b = 0; b < work.batch; ++b) {
      T* row = room;
      auto copy = [&](const T* from, int64_t i) {
        if (from) __builtin_memcpy(row, from + (i * work.batch + b) * num_post, num_post * sizeof(T));
        row += pitch;
      };
      for (int64_t k = 0; k < work.steps; ++k) {
        for (int a = 0; a < A; ++a) copy(work.entering, k * A + a);
        copy(work.direct, k);
      }
      for (int i = 0; i < A * A; ++i) copy(work.carried, i);
      for (int a = 0; a < A; ++a) copy(work.signal, a);
      const uint32_t noise = work.noise ? *work.noise + uint32_t(b) * 0x27d4eb2fu : 0;
      int64_t sender = begin;
      for (; sender + tile <= end; sender += tile) run<tile>(b, sender, noise);
      for (; sender < end; ++sender) run<1>(b, sender, noise);
    }
  }
};

template <class T, class Store, int A>
void dense(const Window<T>& work, int64_t begin, int64_t end) {
  const int64_t pitch = (work.synapses.num_post + lanes<T> - 1) / lanes<T> * lanes<T>;
  const int64_t rows = work.steps * (A + 1) + A * (A + 1);
  T* const room = new T[rows * pitch + work.steps * DenseWindow<T, Store, A>::tile]();
  DenseWindow<T, Store, A>{work, pitch, room, room + rows * pitch}.run(begin, end);
  delete[] room;
}

}  // namespace
}  // namespace sparse_etrace
