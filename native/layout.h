// What units say in the steps of a window, a unit after the other.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

// For each of some units its steps side by side, `width` numbers after those of the unit before, with zeros up to
// `padded`; of B elements of a batch each vector has the same steps, one element after the other. `row(k, j)` are all
// units in step k of element j, or null. Units that are so many `ahead` are fetched early.
template <class T, int B, class F>
INLINE void lay_out(F&& row, int64_t units, int64_t steps, int64_t padded, T* to, int64_t width, int64_t ahead) {
  constexpr int n = lanes<T>, of_each = n / B;
  for (int64_t u = 0; u < units; u += n) {
    const int64_t count = min(n, units - u);
    for (int64_t k = 0; k < padded; k += of_each) {
      pack<T, n> rows[n] = {};
#pragma GCC unroll 16
      for (int l = 0; l < n; ++l) {
        const T* from = k + l % of_each < steps ? row(k + l % of_each, l / of_each) : nullptr;
        if (!from) continue;
        rows[l] = get<AsIs<T>, n>(from + u, count);
        __builtin_prefetch(from + u + ahead);
        __builtin_prefetch(from + u + ahead + n - 1);
      }
      transpose(rows, std::make_integer_sequence<int, n>());
      for (int64_t l = 0; l < count; ++l) put(to + (u + l) * width + k * B, rows[l], n);
    }
  }
}

// Rows of what enters variable `a` of A, or with a = A of what teaches, from an element of the batch and a unit on.
template <int A, class T>
INLINE auto coefficients(const Window<T>& work, int64_t a, int64_t b, int64_t unit) {
  const T* const from = a < A ? work.entering : work.direct;
  const int64_t first = a < A ? a : 0, stride = a < A ? A : 1, batch = work.batch, num_post = work.synapses.num_post;
  return [=](int64_t k, int64_t j) __attribute__((always_inline)) -> const T* {
    return from ? from + ((first + k * stride) * batch + b + j) * num_post + unit : nullptr;
  };
}

}  // namespace
}  // namespace sparse_etrace
