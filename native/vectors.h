// Vectors of the width of an instruction set, and a trace in memory.
//
// Only plain types here and in what includes it: an inline function of the standard library, compiled for one
// instruction set, might be the copy that the linker keeps for all.
#pragma once

#include "kernels.h"

#include <type_traits>
#include <utility>

#if VECTOR_BYTES > 16
#include <immintrin.h>
#endif

namespace sparse_etrace {
namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T, int N>
struct Pack {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using pack = typename Pack<T, N>::type;

template <class T>
constexpr int lanes = VECTOR_BYTES / sizeof(T);

template <class V, class T>
INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// A trace in memory: as it is, or the upper half of a float.
template <class T>
struct AsIs {
  typedef T type;
  static INLINE pack<T, lanes<T>> get(const T* p) { return load<pack<T, lanes<T>>>(p); }
  static INLINE pack<T, lanes<T>> put(pack<T, lanes<T>> v, uint32_t, const uint32_t*, uint32_t = 0) { return v; }
};
struct Bfloat16 {
  typedef uint16_t type;
  static constexpr int n = lanes<float>;
  typedef pack<float, n> wide;
  typedef pack<uint32_t, n> bits;
  static INLINE wide get(const uint16_t* p) {
    return (wide)(__builtin_convertvector(load<pack<uint16_t, n>>(p), bits) << 16);
  }
  // To the nearest, or by noise as in sparse_etrace/_sums.py; `place` is that of the first lane, `step` leads on.
  static INLINE pack<uint16_t, n> put(wide v, uint32_t place, const uint32_t* noise, uint32_t step = 0x9e3779b1u) {
    bits u = (bits)v, added = 0x7fff + ((u >> 16) & 1);
    if (noise) {
      bits h = {};
#pragma GCC unroll 16
      for (int l = 0; l < n; ++l) h[l] = l;
      h = h * step + (place * 0x9e3779b1u + *noise);
      h = (h ^ (h >> 16)) * 0x85ebca6bu;
      h = (h ^ (h >> 13)) * 0xc2b2ae35u;
      added = (h ^ (h >> 16)) >> 16;
    }
    bits is_nan = (bits)(v != v);
    return __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & ((u + added) >> 16)), pack<uint16_t, n>);
  }
};

// In the lanes whose number lacks the bit H those of `a`, in the others those of `b`; if Other, from H lanes to the other
// side. A vector of the one kind is a blend, which more ports of a processor do than a shuffle.
template <int H, bool Other, class V, int... I>
INLINE V interleaved(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), move = Other ? H : 0;
  return __builtin_shufflevector(a, b, ((I & H) ? I + n - move : I + move)...);
}

// The first halves of two vectors, or the second ones.
template <class V, int... I>
INLINE V first_half(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I < n / 2 ? I : I + n / 2)...);
}
template <class V, int... I>
INLINE V second_half(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I < n / 2 ? I + n / 2 : I + n)...);
}

template <class V, int Count>
struct Vectors {
  V of[Count];
};

// In lane l of each vector the sum over all lanes of that of leaf(l). One half after the other, so that few are alive.
// With fewer lanes to sum over, the same in each part of so many lanes.
template <class V, int Count, int Over = sizeof(V) / sizeof(V{}[0]), int H = 1, class F>
INLINE Vectors<V, Count> lane_sums(F&& leaf, int l = 0) {
  if constexpr (H >= Over) return leaf(l);
  else {
    std::make_integer_sequence<int, sizeof(V) / sizeof(V{}[0])> all;
    Vectors<V, Count> a = lane_sums<V, Count, Over, 2 * H>(leaf, l), b = lane_sums<V, Count, Over, 2 * H>(leaf, l + H);
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i)
      a.of[i] = interleaved<H, false>(a.of[i], b.of[i], all) + interleaved<H, true>(a.of[i], b.of[i], all);
    return a;
  }
}

// Swaps the lanes whose number has the bit H, and those of later bits, between vectors.
template <int H = 1, class V, int... I>
INLINE void transpose(V* rows, std::integer_sequence<int, I...> all) {
  constexpr int n = sizeof...(I);
  if constexpr (H < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      if (!(i & H)) {
        const V a = rows[i], b = rows[i + H];
        rows[i] = __builtin_shufflevector(a, b, ((I & H) ? I + n - H : I)...);
        rows[i + H] = __builtin_shufflevector(a, b, ((I & H) ? I + n : I + H)...);
      }
    transpose<2 * H>(rows, all);
  }
}

// `count` numbers of a trace, or from a vector, the rest zero.
template <class Store, int n>
INLINE auto get(const typename Store::type* from, int64_t count) {
  if (count == n) return Store::get(from);
#if VECTOR_BYTES == 64
  if constexpr (sizeof *from == 4) return (pack<float, n>)_mm512_maskz_loadu_ps((1 << count) - 1, from);
  else if constexpr (sizeof *from == 8) return (pack<double, n>)_mm512_maskz_loadu_pd((1 << count) - 1, from);
#endif
  typename Store::type rest[n] = {};
  for (int64_t l = 0; l < count; ++l) rest[l] = from[l];
  return Store::get(rest);
}

template <class E, class P>
INLINE void put(E* to, P value, int64_t count) {
  if (count == sizeof(P) / sizeof(E)) __builtin_memcpy(to, &value, sizeof value);
#if VECTOR_BYTES == 64
  else if constexpr (sizeof(E) == 4) _mm512_mask_storeu_ps(to, (1 << count) - 1, (__m512)value);
  else if constexpr (sizeof(E) == 8) _mm512_mask_storeu_pd(to, (1 << count) - 1, (__m512d)value);
#endif
  else
    for (int64_t l = 0; l < count; ++l) to[l] = value[l];
}

}  // namespace
}  // namespace sparse_etrace
