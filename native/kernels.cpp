// The kernels, compiled once for each instruction set with VECTOR_BYTES and TABLE to match.
//
// Only plain types here: an inline function of the standard library, compiled for one instruction set, might be the
// copy that the linker keeps for all.
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

// First unit whose synapses begin at `synapse` or later.
INLINE int64_t first_unit(const Synapses& synapses, int64_t synapse) {
  int64_t low = 0, high = synapses.num_post;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (synapses.post_ptr[middle] < synapse) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Calls body(unit, first, last) for each unit with synapses in begin .. end.
template <class F>
INLINE void for_each_unit(const Synapses& synapses, int64_t begin, int64_t end, F&& body) {
  for (int64_t s = begin; s < end;) {
    int64_t unit = synapses.post[s], last = min(synapses.post_ptr[unit + 1], end);
    body(unit, s, last);
    s = last;
  }
}

template <class T>
void to_rows(const T* x, int64_t columns, int64_t stride, T* rows, int64_t pitch, int64_t begin, int64_t end) {
  // Units in small groups, so that both sides stay in the cache.
  constexpr int64_t group = 16;
  for (int64_t i = begin; i < end; i += group)
    for (int64_t c = 0; c < pitch; ++c)
      for (int64_t j = i; j < min(i + group, end); ++j) rows[j * pitch + c] = c < columns ? x[c * stride + j] : T(0);
}

// The sum over one run of synapses of weight * row, for the columns of one group.
template <class T, int G>
struct RowSum {
  static constexpr int width = G < lanes<T> ? G : lanes<T>, count = G / width;
  typedef pack<T, width> V;
  static INLINE void run(const Product<T>& work, int64_t column, int64_t s, int64_t last, T* out) {
    constexpr int unroll = count >= 4 ? 1 : 4 / count;
    V sum[unroll][count] = {};
    const int32_t* pre = work.synapses.pre;
    const T* rows = work.rows + column;
    for (; s + unroll <= last; s += unroll) {
#pragma GCC unroll 4
      for (int u = 0; u < unroll; ++u) {
        const T* row = rows + int64_t(pre[s + u]) * work.pitch;
#pragma GCC unroll 16
        for (int v = 0; v < count; ++v) sum[u][v] += work.weight[s + u] * load<V>(row + v * width);
      }
    }
    for (; s < last; ++s)
      for (int v = 0; v < count; ++v)
        sum[0][v] += work.weight[s] * load<V>(rows + int64_t(pre[s]) * work.pitch + v * width);
    for (int v = 0; v < count; ++v) {
      V total = sum[0][v];
      for (int u = 1; u < unroll; ++u) total += sum[u][v];
      __builtin_memcpy(out + v * width, &total, sizeof total);
    }
  }
};
template <class T>
struct RowSum<T, 1> {
  static INLINE void run(const Product<T>& work, int64_t, int64_t s, int64_t last, T* out) {
#if VECTOR_BYTES == 64
    if (work.bits) {
      *out = of_bits(work, s, last);
      return;
    }
#endif
    constexpr int unroll = 8;
    T sum[unroll] = {};
    const int32_t* pre = work.synapses.pre;
    for (; s + unroll <= last; s += unroll)
#pragma GCC unroll 8
      for (int u = 0; u < unroll; ++u) sum[u] += work.weight[s + u] * work.rows[pre[s + u]];
    for (; s < last; ++s) sum[0] += work.weight[s] * work.rows[pre[s]];
    *out = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
#if VECTOR_BYTES == 64
  static INLINE T of_bits(const Product<T>& work, int64_t s, int64_t last) {
    constexpr int n = lanes<T>;
    pack<T, n> sum = {};
    for (; s < last; s += n) {
      const uint32_t there = last - s < n ? (1 << (last - s)) - 1 : (1 << n) - 1;
      if constexpr (n == 16) {
        const __m512i at = _mm512_maskz_loadu_epi32(there, work.synapses.pre + s);
        const __m512i word = _mm512_i32gather_epi32(_mm512_srli_epi32(at, 5), work.bits, 4);
        const __m512i bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(at, _mm512_set1_epi32(31)));
        const __mmask16 sent = _mm512_mask_test_epi32_mask(there, word, bit);
        sum += (pack<T, n>)_mm512_maskz_loadu_ps(sent, work.weight + s);
      } else {
        const __m256i at = _mm256_maskz_loadu_epi32(there, work.synapses.pre + s);
        const __m256i word = _mm256_i32gather_epi32(reinterpret_cast<const int*>(work.bits), _mm256_srli_epi32(at, 5), 4);
        const __m256i bit = _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_and_si256(at, _mm256_set1_epi32(31)));
        const __mmask8 sent = _mm256_mask_test_epi32_mask(there, word, bit);
        sum += (pack<T, n>)_mm512_maskz_loadu_pd(sent, work.weight + s);
      }
    }
    if constexpr (n == 16) return _mm512_reduce_add_ps((__m512)sum);
    else return _mm512_reduce_add_pd((__m512d)sum);
  }
#endif
};

template <class T, int G>
INLINE void product_group(const Product<T>& work, int64_t column, int64_t begin, int64_t end, bool last, T* head) {
  const int32_t* ptr = work.synapses.post_ptr;
  int64_t n = min(G, work.columns - column), num_post = work.synapses.num_post;
  int64_t unit = first_unit(work.synapses, begin), stop = last ? num_post : first_unit(work.synapses, end);
  T sum[G];
  RowSum<T, G>::run(work, column, begin, unit < num_post ? min(ptr[unit], end) : end, sum);
  for (int64_t c = 0; c < n; ++c) head[column + c] = sum[c];
  for (; unit < stop; ++unit) {
    RowSum<T, G>::run(work, column, ptr[unit], min(ptr[unit + 1], end), sum);
    for (int64_t c = 0; c < n; ++c) work.y[(column + c) * num_post + unit] = sum[c];
  }
}

template <class T>
void product(const Product<T>& work, int64_t begin, int64_t end, bool last, T* head) {
  if (work.pitch == 1) return product_group<T, 1>(work, 0, begin, end, last, head);
  if (work.pitch == 4) return product_group<T, 4>(work, 0, begin, end, last, head);
  if (work.pitch == 8) return product_group<T, 8>(work, 0, begin, end, last, head);
  for (int64_t c = 0; c < work.columns; c += 16) product_group<T, 16>(work, c, begin, end, last, head);
}

// Those of n numbers that are not zero.
template <class T>
INLINE int64_t not_zero(const T* x, int64_t n, int32_t first, int32_t* found) {
  constexpr int width = lanes<T>;
  int64_t count = 0, j = 0;
#if VECTOR_BYTES == 64
  const __m512i up = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; j + width <= n; j += width) {
    uint32_t is_any;
    if constexpr (sizeof(T) == 4) is_any = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + j), __m512{}, _CMP_NEQ_UQ);
    else is_any = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + j), __m512d{}, _CMP_NEQ_UQ);
    const __m512i at = _mm512_add_epi32(up, _mm512_set1_epi32(first + int32_t(j)));
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(is_any, at));
    count += __builtin_popcount(is_any);
  }
#else
  typedef pack<uint64_t, VECTOR_BYTES / 8> Bits;
  for (; j + width <= n; j += width) {
    Bits bits = load<Bits>(reinterpret_cast<const uint64_t*>(x + j));
    uint64_t any = 0;
#pragma GCC unroll 8
    for (int i = 0; i < VECTOR_BYTES / 8; ++i) any |= bits[i];
    if (any)
      for (int64_t k = j; k < j + width; ++k)
        if (x[k] != 0) found[count++] = first + int32_t(k);
  }
#endif
  for (; j < n; ++j)
    if (x[j] != 0) found[count++] = first + int32_t(j);
  return count;
}

template <class T>
bool active(const T* x, int64_t first, int64_t n, const int32_t* pre_ptr, int64_t limit, int32_t* senders, T* values,
            int64_t* count, int64_t* synapses) {
  constexpr int64_t at_once = 1024;
  int32_t found[at_once + lanes<float>];
  for (int64_t j = 0; j < n; j += at_once) {
    const int64_t some = not_zero(x + j, min(at_once, n - j), int32_t(first + j), found);
    for (int64_t i = 0; i < some; ++i) {
      const int32_t sender = found[i], of_it = pre_ptr[sender + 1] - pre_ptr[sender];
      *synapses += of_it;
      if (*synapses > limit) return false;
      senders[*count] = sender;
      values[*count] = x[sender - first];
      *count += of_it > 0;
    }
  }
  return true;
}

template <class T>
void scatter(const Outgoing& outgoing, const T* weight, const T* values, const int32_t* senders, int64_t num_senders,
             T* y, int64_t begin, int64_t end) {
  constexpr int64_t ahead = 16, few = 8;
  const int32_t *by_pre = outgoing.by_pre, *ptr = outgoing.pre_ptr;
  // What later senders will need is fetched early: where their synapses begin, these, and the weights of the first.
  auto fetch = [&](int64_t i) __attribute__((always_inline)) {
    if (i + 3 * few < num_senders) __builtin_prefetch(ptr + senders[i + 3 * few]);
    if (i + 2 * few < num_senders) {
      __builtin_prefetch(by_pre + ptr[senders[i + 2 * few]]);
      __builtin_prefetch(outgoing.post + ptr[senders[i + 2 * few]]);
    }
    if (i + few < num_senders) {
      const int64_t low = ptr[senders[i + few]], last = min(ptr[senders[i + few] + 1], low + few);
      for (int64_t s = low; s < last; ++s) __builtin_prefetch(weight + by_pre[s]);
    }
  };
  for (int64_t i = 0; i < num_senders; ++i) {
    fetch(i);
    int64_t low = ptr[senders[i]], last = ptr[senders[i] + 1], high = begin ? last : low;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (by_pre[middle] < begin) low = middle + 1;
      else high = middle;
    }
    T value = values[i];
    for (; low < last && by_pre[low] < end; ++low) {
      if (low + ahead < last) __builtin_prefetch(weight + by_pre[low + ahead]);
      y[outgoing.post[low]] += weight[by_pre[low]] * value;
    }
  }
}

template <class T, int G>
INLINE void transposed_group(const Synapses& synapses, const T* weight, const T* y, int64_t columns, int64_t pitch,
                             int64_t column, T* into, int64_t begin, int64_t end) {
  constexpr int width = G < lanes<T> ? G : lanes<T>;
  typedef pack<T, width> V;
  for_each_unit(synapses, begin, end, [&](int64_t unit, int64_t s, int64_t last) {
    T row[G] = {};
    for (int64_t c = 0; c < min(G, columns - column); ++c) row[c] = y[(column + c) * synapses.num_post + unit];
    for (; s < last; ++s) {
      T* to = into + int64_t(synapses.pre[s]) * pitch + column;
#pragma GCC unroll 16
      for (int v = 0; v < G; v += width) {
        V sum = load<V>(to + v) + weight[s] * load<V>(row + v);
        __builtin_memcpy(to + v, &sum, sizeof sum);
      }
    }
  });
}

template <class T>
void transposed(const Synapses& synapses, const T* weight, const T* y, int64_t columns, int64_t pitch, T* into,
                int64_t begin, int64_t end) {
  if (pitch == 1) return transposed_group<T, 1>(synapses, weight, y, columns, pitch, 0, into, begin, end);
  if (pitch == 4) return transposed_group<T, 4>(synapses, weight, y, columns, pitch, 0, into, begin, end);
  if (pitch == 8) return transposed_group<T, 8>(synapses, weight, y, columns, pitch, 0, into, begin, end);
  for (int64_t c = 0; c < columns; c += 16)
    transposed_group<T, 16>(synapses, weight, y, columns, pitch, c, into, begin, end);
}

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

template <class T>
bool to_bits(const T* x, int64_t times, int64_t stride, uint8_t* bits, int64_t bytes, int64_t begin, int64_t end) {
  constexpr int n = lanes<T>;
  typedef decltype(pack<T, n>{} == pack<T, n>{}) Mask;
  for (int64_t i = begin; i < end; i += n) {
    const int64_t count = min(n, end - i);
    Mask is_other = {};
    for (int64_t first = 0; first < bytes * 8; first += 8) {
      Mask word = {};
      for (int64_t k = first; k < min(first + 8, times); ++k) {
        const pack<T, n> now = get<AsIs<T>, n>(x + k * stride + i, count);
        const Mask is_one = now == 1;
        word |= is_one & (1 << (k - first));
        is_other |= ~(is_one | (now == 0));
      }
      for (int64_t l = 0; l < count; ++l) bits[(i + l) * bytes + first / 8] = uint8_t(word[l]);
    }
    for (int l = 0; l < n; ++l)
      if (is_other[l]) return false;
  }
  return true;
}

#if VECTOR_BYTES == 64
// One bit for each of n numbers, from the bit `first` on, which is 0 as all after it; false where any is neither 0 nor 1.
template <class T>
bool one_bit(const T* x, int64_t n, uint32_t* words, int64_t first) {
  uint32_t is_other = 0;
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(words);
  for (int64_t i = 0; i < n && !is_other; i += lanes<T>) {
    const uint32_t there = n - i < lanes<T> ? (1 << (n - i)) - 1 : (1 << lanes<T>) - 1;
    uint32_t is_one, is_any;
    if constexpr (sizeof(T) == 4) {
      const __m512 now = _mm512_maskz_loadu_ps(there, x + i);
      is_one = _mm512_cmp_ps_mask(now, _mm512_set1_ps(1), _CMP_EQ_OQ);
      is_any = _mm512_cmp_ps_mask(now, __m512{}, _CMP_NEQ_UQ);
    } else {
      const __m512d now = _mm512_maskz_loadu_pd(there, x + i);
      is_one = _mm512_cmp_pd_mask(now, _mm512_set1_pd(1), _CMP_EQ_OQ);
      is_any = _mm512_cmp_pd_mask(now, __m512d{}, _CMP_NEQ_UQ);
    }
    is_other |= is_any & ~is_one;
    // In little-endian bytes, of which an unaligned word holds all bits of a vector.
    uint32_t word;
    uint8_t* const to = bytes + (first + i) / 8;
    __builtin_memcpy(&word, to, sizeof word);
    word |= is_one << (first + i) % 8;
    __builtin_memcpy(to, &word, sizeof word);
  }
  return !is_other;
}
#endif

template <class T>
void to_pairs(const Window<T>& work, int64_t b, T* rows, int64_t begin, int64_t end) {
  auto row = [&](int64_t k, int64_t j) __attribute__((always_inline)) -> const T* {
    return work.x + (k * work.batch + b + j) * work.units + begin;
  };
  lay_out<T, 2>(row, end - begin, work.steps, 16, rows + (b * work.units + 2 * begin) * 16, 32, lanes<T>);
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
      lay_out<T, 1>(coefficients<A>(work, a, b, unit), units, work.steps, padded, room + to, width, units);
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

// The same for two elements of a batch at once, without a lag and in at most 16 steps: half of a vector are steps of the
// one, half those of the other, so that lanes are summed for both together.
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

// Whether vectors find their entries in a table of 16 numbers faster than they multiply 16 steps.
template <class T>
constexpr bool has_tables = VECTOR_BYTES == 64 || (VECTOR_BYTES == 32 && sizeof(T) == 4);

// Entries of a table, by the lowest four bits of each lane.
template <class T, class I>
INLINE pack<T, lanes<T>> look_up(const T* table, I at) {
#if VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (pack<T, 16>)_mm512_permutexvar_ps((__m512i)at, _mm512_loadu_ps(table));
  else return (pack<T, 8>)_mm512_permutex2var_pd(_mm512_loadu_pd(table), (__m512i)at, _mm512_loadu_pd(table + 8));
#elif VECTOR_BYTES == 32
  const __m256i lane = (__m256i)at;
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), lane);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), lane);
  return (pack<T, 8>)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(lane, 28)));
#endif
}

// What the senders of `count` synapses sent in the steps of a window, from the lowest bit on. With `inverse` the slot is
// found from the sender, which reads less memory: n / units = n * inverse >> shift for all n below 2 ** 31.
template <int n, class T>
INLINE pack<uint32_t, n> spikes_of(const Window<T>& work, const uint8_t* bits, int64_t s, int64_t count,
                                   uint32_t inverse, int shift) {
  const int32_t *pre = work.synapses.pre + s, *lag = work.lag ? work.lag + s : nullptr;
#if VECTOR_BYTES == 64
  if constexpr (n == 16) {
    const __mmask16 there = (1 << count) - 1;
    typedef pack<int32_t, 16> I;
    const __m512i from = _mm512_maskz_loadu_epi32(there, pre), by = _mm512_set1_epi32(inverse);
    I slot = {};
    if (lag) {
      const __m128i move = _mm_cvtsi32_si128(shift);
      const __m512i even = _mm512_srl_epi64(_mm512_mul_epu32(from, by), move);
      const __m512i odd = _mm512_srl_epi64(_mm512_mul_epu32(_mm512_srli_epi64(from, 32), by), move);
      slot = (I)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    }
    const I unit = (I)from - slot * int32_t(work.units);
    const __m512i at = (__m512i)(unit * int32_t(work.stride) + (slot >> 3));
    return (pack<uint32_t, 16>)_mm512_mask_i32gather_epi32(__m512i{}, there, at, bits, 1) >> (pack<uint32_t, 16>)(slot & 7);
  }
#endif
  alignas(64) uint32_t word[n] = {};
  for (int64_t l = 0; l < count; ++l) {
    const int64_t slot = lag ? lag[l] : 0, byte = (pre[l] - slot * work.units) * work.stride + slot / 8;
    word[l] = load<uint32_t>(reinterpret_cast<const uint32_t*>(bits + byte)) >> slot % 8;
  }
  return load<pack<uint32_t, n>>(word);
}

// Windows of spikes. The lanes of a vector are synapses of one unit, and what it adds up of four steps is found in a
// table by which of them had a spike: four tables for each sum.
template <class T, class Store, int A>
void window_of_bits(const Window<T>& work, int64_t b, int64_t begin, int64_t end) {
  constexpr int n = lanes<T>, group = 16, width = (A + 1) * (A + 16);
  typedef pack<T, n> V;
  typedef pack<std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>, n> Bits;
  typedef typename Store::type Stored;
  const Synapses synapses = work.synapses;
  const int64_t num_post = synapses.num_post;
  const uint32_t noise = work.noise ? *work.noise + uint32_t(b) * 0x27d4eb2fu : 0;
  const uint8_t* bits = work.bits + b * work.units * work.stride;
  int log = 0;
  while (int64_t(1) << log < work.units) ++log;
  const uint32_t inverse = uint32_t((int64_t(1) << (31 + log)) / work.units) + 1;
  T in[16 * 4], room[group * width], table[A + 1][4][16];
  for (int i = 0; i < 64; ++i) in[i] = i % 16 >> i / 16 & 1;  // whether a spike in a step is in an entry

  auto fill = [&](int64_t first, int64_t units) __attribute__((always_inline)) {
    for (int a = 0; a <= A; ++a) {
      T* const to = room + a * (A + 16);
      for (int i = 0; i < A; ++i) {
        const T* from = a < A ? work.carried : work.signal;
        from = from ? from + ((a * A * (a < A) + i) * work.batch + b) * num_post + first : nullptr;
        for (int64_t u = 0; u < units; ++u) to[u * width + i] = from ? from[u] : T(0);
      }
      lay_out<T, 1>(coefficients<A>(work, a, b, first), units, work.steps, 16, to + A, width, units);
    }
  };
  auto run = [&](const T* unit, int64_t s, int64_t count) __attribute__((always_inline)) {
    const Bits sent = __builtin_convertvector(spikes_of<n>(work, bits, s, count, inverse, 31 + log), Bits);
    V old[A + 1], sum[A + 1];
#pragma GCC unroll 4
    for (int a = 0; a < A; ++a)
      old[a] = get<Store, n>(static_cast<const Stored*>(work.trace) + (a * work.batch + b) * synapses.count + s, count);
#pragma GCC unroll 8
    for (int a = 0; a <= A; ++a) {
      sum[a] = (look_up<T>(table[a][0], sent) + look_up<T>(table[a][1], sent >> 4)) +
               (look_up<T>(table[a][2], sent >> 8) + look_up<T>(table[a][3], sent >> 12));
#pragma GCC unroll 4
      for (int c = 0; c < A; ++c) sum[a] += unit[a * (A + 16) + c] * old[c];
    }
    if (work.next)
#pragma GCC unroll 4
      for (int a = 0; a < A; ++a)
        put(static_cast<Stored*>(work.next) + (a * work.batch + b) * synapses.count + s,
            Store::put(sum[a], uint32_t(a * synapses.count + s), work.noise ? &noise : nullptr), count);
    if (work.gradient) {
      if (b) sum[A] += get<AsIs<T>, n>(work.gradient + s, count);
      put(work.gradient + s, sum[A], count);
    }
  };

  for (int64_t s = begin; s < end;) {
    const int64_t first = synapses.post[s], units = min(group, num_post - first);
    fill(first, units);
    for (const T* unit = room; unit < room + units * width; unit += width) {
      const int64_t last = min(synapses.post_ptr[first + (unit - room) / width + 1], end);
      if (s >= last) continue;
      for (int a = 0; a <= A; ++a)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 16
          for (int l = 0; l < 16; l += n) {
            const T* of = unit + a * (A + 16) + A + 4 * i;
            V all = load<V>(in + l) * of[0] + load<V>(in + 16 + l) * of[1];
            all += load<V>(in + 32 + l) * of[2] + load<V>(in + 48 + l) * of[3];
            put(table[a][i] + l, all, n);
          }
      for (; s + n <= last; s += n) run(unit, s, n);
      if (s < last) run(unit, s, last - s);
      s = last;
    }
  }
}

template <class T, class Store, int A>
void window(const Window<T>& work, int64_t b, int64_t begin, int64_t end) {
  if constexpr (has_tables<T>)
    if (work.bits) return window_of_bits<T, Store, A>(work, b, begin, end);
  if constexpr (A <= MOST_IN_PAIRS)
    if (work.in_pairs && b + 1 < work.batch) return window_of_pairs<T, Store, A>(work, b, begin, end);
  if (work.steps > 16) return window_of_steps<T, Store, A, 0, 0, A, false, true>(work, b, begin, end);
  if constexpr (A > 0 && std::is_same_v<T, typename Store::type>)
    if (work.synapses.count < 4 * lanes<T> * work.synapses.num_post) {
      if (!work.gradient) return window_of_steps<T, Store, A, 16, 0, A - 1, true, true>(work, b, begin, end);
      if (!work.next) return window_of_steps<T, Store, A, 16, A, A, true, true>(work, b, begin, end);
      return window_of_steps<T, Store, A, 16, 0, A, true, true>(work, b, begin, end);
    }
  if (work.lag) window_of_steps<T, Store, A, 16, 0, A, false, true>(work, b, begin, end);
  else window_of_steps<T, Store, A, 16, 0, A, false, false>(work, b, begin, end);
}

// The lanes of a vector are features. Coefficients of a unit stay in a cache while its synapses are read.
template <class T, class Store, int A>
void features(const FeatureWindow<T>& work, int64_t b, int64_t begin, int64_t end) {
  constexpr int n = lanes<T>;
  typedef pack<T, n> V;
  typedef typename Store::type Stored;
  const Synapses synapses = work.synapses;
  const int64_t F = work.features, one = synapses.num_post * F, all = work.batch * one, width = work.steps * F;
  const int64_t size = synapses.count * F;
  const Stored* const trace = static_cast<const Stored*>(work.trace) + b * size;
  Stored* const next = static_cast<Stored*>(work.next) + b * size;
  const T* const x = work.x + b * synapses.num_pre * width;
  constexpr uint32_t mixed = 0x27d4eb2f;  // each feature is rounded as an element of a batch
  for (int64_t s = begin; s < end; ++s) {
    const int64_t unit = b * one + synapses.post[s] * F;
    const T* const row = x + synapses.pre[s] * width;
    const T* const soon = x + synapses.pre[min(s + 2, synapses.count - 1)] * width;
    for (int64_t i = 0; i < width; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(soon + i);
    V taught = {};
    for (int64_t f = 0; f < F; f += n) {
      const int64_t count = min(n, F - f), at = unit + f;
      auto of = [&](const T* part, int64_t i) __attribute__((always_inline)) { return get<AsIs<T>, n>(part + i * all + at, count); };
      V old[A], sum[A] = {};
      for (int a = 0; a < A; ++a) old[a] = get<Store, n>(trace + a * work.batch * size + s * F + f, count);
      if (work.signal) {
        for (int a = 0; a < A; ++a) taught += of(work.signal, a) * old[a];
        for (int64_t k = 0; k < work.steps; ++k)
          taught += of(work.direct, k) * get<AsIs<T>, n>(row + k * F + f, count);
      }
      if (!work.carried) continue;
      for (int64_t k = 0; k < work.steps; ++k) {
        const V now = get<AsIs<T>, n>(row + k * F + f, count);
        for (int a = 0; a < A; ++a) sum[a] += of(work.entering, k * A + a) * now;
      }
      const uint32_t noise = work.noise ? *work.noise + uint32_t(b * F + f) * mixed : 0;
      for (int a = 0; a < A; ++a) {
        for (int c = 0; c < A; ++c) sum[a] += of(work.carried, a * A + c) * old[c];
        const uint32_t place = uint32_t(a * synapses.count + s);
        auto stored = Store::put(sum[a], place, work.noise ? &noise : nullptr, mixed);
        put(next + a * work.batch * size + s * F + f, stored, count);
      }
    }
    if (!work.signal) continue;
    T total = b ? work.gradient[s] : T(0);
    for (int l = 0; l < n; ++l) total += taught[l];
    work.gradient[s] = total;
  }
}

// Windows where everything is connected. The lanes of a vector are receivers; a tile of R senders and one vector stays
// in registers through all steps. `room` holds rows of `pitch` numbers for the receivers of one batch element: for each
// step those of entering and direct, then carried (A x A) and signal (A).
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

// Influences of one pattern through a window: the blocks a .. z. The lanes of a vector are batch elements; without a
// batch they are columns.
template <class T, bool Batched>
struct Influences {
  static constexpr int n = lanes<T>;
  static constexpr int64_t edges_at_once = (1 << 19) / VECTOR_BYTES, rows_at_once = 4;
  typedef pack<T, n> V;

  // A vector of columns: where its first row lies, how far rows are apart, how many columns there are, and, with a batch,
  // the output where its input enters.
  struct Columns {
    int64_t place, stride, first, there, output;
  };

  const Influence<T>& work;
  const int64_t a, p, hidden, rows, outputs, first_term, terms, batch, kept;
  const int32_t* const number;
  // For each term its row of the state, where hidden units lie before the outputs or after them; the terms by their
  // row, with the sum, with that on the learning signal of outputs where an edge is cut, and with the edge.
  int32_t *const ids, *const at, *const from_ptr, *const from_term, *const from_sum, *const from_heard, *const from_link;
  T* const from_weight;
  V *edge = nullptr, *state = nullptr, *heard = nullptr, *by_output = nullptr;
  bool* const enters;
  Columns* const columns;
  int64_t vectors = 0, l = 0, count = n;

  Influences(const Influence<T>& work, int64_t a, int64_t z)
      : work(work), a(a), p(work.pattern[a]), hidden(work.hidden[p]), rows(work.row_ptr[p + 1] - work.row_ptr[p]),
        outputs(rows - hidden), first_term(work.term_ptr[work.out_ptr[p]]),
        terms(work.term_ptr[work.out_ptr[p] + rows] - first_term), batch(work.batch),
        kept(min(work.steps, 4 + edges_at_once / (terms + 1))), number(work.rows + work.row_ptr[p]),
        ids(new int32_t[6 * terms + rows + 2]), at(ids), from_ptr(ids + 2 * terms), from_term(from_ptr + rows + 2),
        from_sum(from_term + terms), from_heard(from_sum + terms), from_link(from_heard + terms),
        from_weight(new T[terms]), enters(new bool[outputs]),
        columns(new Columns[work.first_column[z] - work.first_column[a]]) {
    for (int64_t k = a; k < z; ++k) {
      const int64_t first = work.first_column[k], width = work.first_column[k + 1] - first;
      for (int64_t c = 0; c < width; c += Batched ? 1 : n)
        columns[vectors++] = {(work.first_entry[k] + c) * batch, width * batch, first + c, min(Batched ? 1 : n, width - c),
                              entry(first + c)};
    }
    for (int64_t r = 0; r < rows + 2; ++r) from_ptr[r] = 0;
    const int32_t* row = work.term_row + first_term;
    for (int64_t t = 0; t < terms; ++t) ++from_ptr[row[t] + 2];
    for (int64_t r = 0; r < rows; ++r) from_ptr[r + 2] += from_ptr[r + 1];
    const int32_t* ends = work.term_ptr + work.out_ptr[p] + 1;
    for (int64_t t = 0, sum = 0; t < terms; ++t) {
      while (ends[sum] - first_term <= t) ++sum;
      const int64_t i = from_ptr[row[t] + 1]++;
      at[t] = row[t];
      at[terms + t] = row[t] < hidden ? rows + row[t] : row[t];
      from_term[i] = t;
      from_sum[i] = sum;
      const int32_t e = work.term_edge[first_term + t];
      from_heard[i] = sum + (sum < outputs && e < work.num_cut ? rows : 0);
      from_link[i] = work.link[e];
      from_weight[i] = work.weight[e];
    }
  }
  ~Influences() {
    delete[] ids;
    delete[] from_weight;
    delete[] enters;
    delete[] columns;
    delete[] edge;
    delete[] state;
    delete[] heard;
  }

  // Calls body() for the batch elements of each vector.
  template <class F>
  INLINE void for_lanes(F&& body) {
    for (l = 0; l < (Batched ? batch : 1); l += n) {
      count = Batched ? min(n, batch - l) : n;
      body();
    }
  }

  // A number of each batch element; lanes without one may hold anything.
  INLINE V value(const T* from, int64_t size, int64_t i) const {
    if (!Batched) return V{} + from[i];
    const int64_t at = i * batch + l;
    return get<AsIs<T>, n>(from + at, at + n <= size * batch ? n : count);
  }
  INLINE V input(int64_t step, int64_t column) const {
    return value(work.x + step * work.num_inputs * batch, work.num_inputs, work.column_x[column]);
  }
  // The edge of a term in their order by rows. It is asked for in a step after the other, backward.
  INLINE V along(int64_t step, int64_t i) const {
    const T* const links = work.along + step * work.num_links * batch;
    if (step) __builtin_prefetch(links + (from_link[i] - work.num_links) * batch + l);
    return from_weight[i] * value(links, work.num_links, from_link[i]);
  }
  INLINE int64_t entry(int64_t column) const { return work.entry[column] - hidden; }
  INLINE int64_t there(const Columns& c) const { return Batched ? count : c.there; }

  INLINE void find_edges(int64_t step, V* to) const {
    for (int64_t i = 0; i < terms; ++i) to[from_term[i]] = along(step, i);
  }
  INLINE bool keeps_all() const { return kept == work.steps; }

  // The learning signal of the window on each output at each step, and on the old hidden units: backward.
  void hear() {
    if (!heard) {
      heard = new V[2 * rows + hidden + work.steps * outputs];
      by_output = heard + 2 * rows + hidden;
      edge = new V[kept * terms];
    }
    V* const before = heard + 2 * rows;
    for (int64_t i = 0; i < 2 * rows; ++i) heard[i] = V{};
    for (int64_t step = work.steps; step-- > 0;) {
      V* const passed = edge + (keeps_all() ? step * terms : 0);
      const T* signal = work.signal + step * work.num_rows * batch;
      auto sum = [&](int64_t row, V total) __attribute__((always_inline)) {
        for (int64_t i = from_ptr[row]; i < from_ptr[row + 1]; ++i)
          total += (passed[from_term[i]] = along(step, i)) * heard[from_heard[i]];
        return total;
      };
      for (int64_t o = outputs; o-- > 0;) {
        by_output[step * outputs + o] = heard[o] = sum(hidden + o, V{});
        heard[rows + o] = heard[o] + value(signal, work.num_rows, number[hidden + o]);
      }
      for (int64_t r = 0; r < hidden; ++r) before[r] = sum(r, value(signal, work.num_rows, number[r]));
      for (int64_t r = 0; r < hidden; ++r) heard[outputs + r] = before[r];
    }
  }

  template <int g>
  INLINE void load_state(const Columns* c, const T* from) {
    for (int64_t r = 0; r < hidden; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < g; ++i) state[r * g + i] = get<AsIs<T>, n>(from + c[i].place + r * c[i].stride + l, there(c[i]));
  }

  // What the learning signal says to some columns: by the old influences, and as their inputs enter.
  template <int g>
  INLINE void hear_old(V* taught) const {
    for (int64_t r = 0; r < hidden; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < g; ++i) taught[i] += heard[outputs + r] * state[r * g + i];
  }

  template <int g>
  INLINE void hear_inputs(const Columns* c, int64_t step, V* taught, V* made) const {
    const V* const by = by_output + step * outputs;
    const T* const x = work.x + step * work.num_inputs * batch;
    for (int i = 0; i < g; ++i)
      if (Batched) {
        const V here = input(step, c[i].first);
        taught[i] += by[c[i].output] * here;
        if (made) made[c[i].output * g + i] = here;
      } else {
        for (int64_t k = 0, o; k < c[i].there; ++k) {
          o = entry(c[i].first + k);
          const T here = x[work.column_x[c[i].first + k]];
          taught[i][k] += by[o][0] * here;
          if (made) made[o * g + i][k] = here;
        }
      }
  }

  template <int g>
  INLINE void teach(const Columns* c, const V* taught) const {
    for (int i = 0; i < g; ++i)
      for (int64_t k = 0; k < (Batched ? count : c[i].there); ++k)
        work.gradient[c[i].first + (Batched ? 0 : k)] += taught[i][k];
  }

  // Some columns through some of the steps, whose edges are there.
  template <int g>
  INLINE void advance(const Columns* c, int64_t from, int64_t to) {
    load_state<g>(c, from ? work.next : work.influence);
    V taught[g] = {};
    if (!from) hear_old<g>(taught);
    for (int64_t o = 0; o < outputs; ++o) enters[o] = false;
    for (int i = 0; i < g; ++i)
      for (int64_t k = 0; k < c[i].there; ++k) enters[entry(c[i].first + k)] = true;
    V* const made = state + hidden * g;
    const int32_t* ends = work.term_ptr + work.out_ptr[p] + 1;
    for (int64_t step = from; step < to; ++step) {
      const bool odd = (step - from) % 2;
      const int32_t* const source = at + odd * terms;
      V* const later = state + (odd ? 0 : rows * g);
      const V* const passed = edge + (step - from) * terms - first_term;
      for (int64_t o = 0; o < outputs; ++o)
        if (enters[o])
          for (int i = 0; i < g; ++i) made[o * g + i] = V{};
      hear_inputs<g>(c, step, taught, made);
      int64_t t = first_term;
      auto sum = [&](int64_t o, V* to, bool has) __attribute__((always_inline)) {
        V total[g];
#pragma GCC unroll 8
        for (int i = 0; i < g; ++i) total[i] = has ? to[i] : V{};
        for (const int64_t last = ends[o]; t < last; ++t) {
          const V* one = state + int64_t(source[t - first_term]) * g;
#pragma GCC unroll 8
          for (int i = 0; i < g; ++i) total[i] += passed[t] * one[i];
        }
#pragma GCC unroll 8
        for (int i = 0; i < g; ++i) to[i] = total[i];
      };
      for (int64_t o = 0; o < outputs; ++o) sum(o, made + o * g, enters[o]);
      for (int64_t r = 0; r < hidden; ++r) sum(outputs + r, later + r * g, false);
    }
    teach<g>(c, taught);
    const V* const last = state + ((to - from) % 2 ? rows * g : 0);
    for (int64_t r = 0; r < hidden; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < g; ++i) put(work.next + c[i].place + r * c[i].stride + l, last[r * g + i], there(c[i]));
  }

  // Calls body(vectors, a constant that says how many) for all columns.
  template <class F>
  INLINE void for_columns(F&& body) {
    int64_t c = 0;
    for (; c + 8 <= vectors; c += 8) body(columns + c, std::integral_constant<int, 8>());
    if (c + 4 <= vectors) body(columns + c, std::integral_constant<int, 4>()), c += 4;
    for (; c < vectors; ++c) body(columns + c, std::integral_constant<int, 1>());
  }

  void no_gradient() const {
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t k = 0; k < columns[v].there; ++k) work.gradient[columns[v].first + k] = 0;
  }

  void forward() {
    state = new V[(rows + hidden) * 8];
    no_gradient();
    for_lanes([&] {
      hear();
      int64_t from = 0;
      do {
        const int64_t to = min(from + kept, work.steps);
        if (!keeps_all())
          for (int64_t step = from; step < to; ++step) find_edges(step, edge + (step - from) * terms);
        for_columns([&](const Columns* c, auto g) { advance<g()>(c, from, to); });
        from = to;
      } while (from < work.steps);
    });
  }

  void gradients() {
    state = new V[hidden * 8];
    no_gradient();
    for_lanes([&] {
      hear();
      for_columns([&](const Columns* c, auto g) {
        V taught[g()] = {};
        if (!work.from_zero) load_state<g()>(c, work.influence), hear_old<g()>(taught);
        for (int64_t step = 0; step < work.steps; ++step) hear_inputs<g()>(c, step, taught, nullptr);
        teach<g()>(c, taught);
      });
    });
  }

  // Some rows of what the window makes of the old influences, `work.product`; or, without it, what entered in the window
  // is added to these rows.
  template <int g>
  INLINE void backward_rows(int64_t first, V* const slots, V* const added, int64_t steps_at_once) {
    auto slot = [&](int64_t step) { return slots + (step + steps_at_once) % steps_at_once * rows * g; };
    if (!work.product)
      for (int64_t c = 0; c < vectors * g; ++c) added[c] = V{};
    V* const start = slot(work.steps - 1) + outputs * g;
    for (int64_t r = 0; r < hidden * g; ++r) start[r] = V{};
    for (int i = 0; i < g; ++i) start[(first + i) * g + i] += 1;
    for (int64_t step = work.steps; step-- > 0;) {
      V* const now = slot(step);
      V* const before = slot(step - 1) + outputs * g;
      auto sum = [&](int64_t row, V* to) __attribute__((always_inline)) {
        V total[g] = {};
        for (int64_t i = from_ptr[row]; i < from_ptr[row + 1]; ++i) {
          const V passed = edge ? edge[step * terms + i] : along(step, i);
          const V* one = now + int64_t(from_sum[i]) * g;
#pragma GCC unroll 8
          for (int j = 0; j < g; ++j) total[j] += passed * one[j];
        }
#pragma GCC unroll 8
        for (int j = 0; j < g; ++j) to[j] = total[j];
      };
      for (int64_t o = outputs; o-- > 0;) sum(hidden + o, now + o * g);
      if (!work.product && step % steps_at_once == 0) {
        const int64_t last = min(step + steps_at_once, work.steps);
        for (int64_t c = 0; c < vectors; ++c) {
          V* const to = added + c * g;
          V total[g];
          for (int j = 0; j < g; ++j) total[j] = to[j];
          for (int64_t k = step; k < last; ++k) {
            const V x = input(k, columns[c].first), *by = slots + ((k - step) * rows + columns[c].output) * g;
#pragma GCC unroll 8
            for (int j = 0; j < g; ++j) total[j] += by[j] * x;
          }
          for (int j = 0; j < g; ++j) to[j] = total[j];
        }
      }
      for (int64_t r = 0; r < hidden; ++r) sum(r, before + r * g);
    }
    if (work.product) {
      const V* const old = slot(-1) + outputs * g;
      for (int i = 0; i < g; ++i)
        for (int64_t r = 0; r < hidden; ++r) put(product(first + i, r), old[r * g + i], n);
      return;
    }
    for (int i = 0; i < g; ++i)
      for (int64_t c = 0; c < vectors; ++c) {
        T* to = work.next + columns[c].place + (first + i) * columns[c].stride + l;
        V total = added[c * g + i];
        if (!work.from_zero) total += get<AsIs<T>, n>(to, count);
        put(to, total, count);
      }
  }

  INLINE T* product(int64_t row, int64_t old) const {
    return work.product + ((l / n * hidden + row) * hidden + old) * n;
  }

  void backward(int64_t begin, int64_t end) {
    // So many that they stay in a cache with what is added.
    const int64_t room = (1 << 20) / VECTOR_BYTES / rows_at_once - vectors;
    const int64_t steps_at_once = min(8, room > 2 * rows ? room / rows : 2);
    V* const slots = state = new V[(steps_at_once * rows + vectors) * rows_at_once];
    V* const added = slots + steps_at_once * rows * rows_at_once;
    // All edges of the window in the order of their rows, where they are not too many.
    if (work.steps * terms <= (1 << 25) / VECTOR_BYTES) edge = new V[work.steps * terms];
    for_lanes([&] {
      for (int64_t step = edge ? work.steps : 0; step-- > 0;)
        for (int64_t i = 0; i < terms; ++i) edge[step * terms + i] = along(step, i);
      int64_t r = begin;
      for (; r + rows_at_once <= end; r += rows_at_once) backward_rows<rows_at_once>(r, slots, added, steps_at_once);
      for (; r < end; ++r) backward_rows<1>(r, slots, added, steps_at_once);
    });
  }

  // What the window makes of the old influences.
  void multiply() {
    constexpr int64_t g = rows_at_once;
    state = new V[hidden * g];
    for_lanes([&] {
      for (int64_t c = 0; c < vectors; c += g) {
        const int64_t there = min(g, vectors - c);
        for (int64_t r = 0; r < hidden; ++r)
          for (int64_t i = 0; i < g; ++i) {
            const Columns& one = columns[min(c + i, vectors - 1)];
            state[r * g + i] = get<AsIs<T>, n>(work.influence + one.place + r * one.stride + l, count);
          }
        for (int64_t r = 0; r < hidden; r += g) {
          V total[g][g] = {};
          const T* rows_of[g];
          for (int64_t j = 0; j < g; ++j) rows_of[j] = product(min(r + j, hidden - 1), 0);
          for (int64_t q = 0; q < hidden; ++q)
#pragma GCC unroll 8
            for (int j = 0; j < g; ++j) {
              const V by = load<V>(rows_of[j] + q * n);
#pragma GCC unroll 8
              for (int i = 0; i < g; ++i) total[j][i] += by * state[q * g + i];
            }
          for (int64_t j = 0; j < min(g, hidden - r); ++j)
            for (int64_t i = 0; i < there; ++i)
              put(work.next + columns[c + i].place + (r + j) * columns[c + i].stride + l, total[j][i], count);
        }
      }
    });
  }
};

template <class T>
void influence(const Influence<T>& work, int64_t a, int64_t z, int64_t, int64_t) {
  if (work.batch == 1) Influences<T, false>(work, a, z).forward();
  else Influences<T, true>(work, a, z).forward();
}

template <class T>
void influence_gradients(const Influence<T>& work, int64_t a, int64_t z, int64_t, int64_t) {
  Influences<T, true>(work, a, z).gradients();
}

template <class T>
void influence_rows(const Influence<T>& work, int64_t a, int64_t z, int64_t begin, int64_t end) {
  Influences<T, true>(work, a, z).backward(begin, end);
}

template <class T>
void influence_product(const Influence<T>& work, int64_t a, int64_t z, int64_t, int64_t) {
  Influences<T, true>(work, a, z).multiply();
}

// Some units go through the whole chain at once, so that what lies between two operations stays in a cache. Integers have
// the width of T there, and truth values are all bits of it.
template <class T>
struct Elementwise {
  static constexpr int64_t n = lanes<T>, at_once = 256, pitch = at_once + n;  // so that they do not meet in a cache
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Int;
  typedef pack<T, n> V;
  typedef pack<Int, n> I;

  template <class To, class From, class F>
  static INLINE bool each(const Chain::Instruction& now, T* const* at, F&& f) {
    const T *a = at[now.a], *b = at[now.b], *c = at[now.c];
    T* to = at[now.to];
#pragma GCC unroll 4
    for (int64_t i = 0; i < at_once; i += n) {
      const To made = f(load<From>(a + i), load<From>(b + i), load<From>(c + i));
      __builtin_memcpy(to + i, &made, sizeof made);
    }
    return true;
  }

  // A maximum or minimum beside nan is nan.
  template <class U>
  static INLINE bool numbers(const Chain::Instruction& now, T* const* at) {
    auto choose = [](I which, U a, U b) __attribute__((always_inline)) { return (U)((which & (I)a) | (~which & (I)b)); };
    switch (now.what / 2) {
      case 0: return each<U, U>(now, at, [](U a, U b, U) { return a + b; });
      case 1: return each<U, U>(now, at, [](U a, U b, U) { return a - b; });
      case 2: return each<U, U>(now, at, [](U a, U b, U) { return a * b; });
      case 3: return each<U, U>(now, at, [](U a, U, U) { return -a; });
      case 4: return each<U, U>(now, at, [&](U a, U b, U) { return choose((a > b) | (a != a), a, b); });
      case 5: return each<U, U>(now, at, [&](U a, U b, U) { return choose((a < b) | (a != a), a, b); });
      case 6: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a == b); });
      case 7: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a != b); });
      case 8: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a < b); });
      case 9: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a <= b); });
      case 10: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a > b); });
      case 11: return each<I, U>(now, at, [](U a, U b, U) { return (I)(a >= b); });
    }
    return false;
  }

  static bool run(const Chain::Instruction& now, T* const* at) {
    if (now.what % 2 ? numbers<I>(now, at) : numbers<V>(now, at)) return true;
    switch (now.what / 2) {
      case 12: return each<I, I>(now, at, [](I a, I b, I c) { return (a & c) | (~a & b); });
      case 13: return each<I, I>(now, at, [](I a, I b, I) { return a & b; });
      case 14: return each<I, I>(now, at, [](I a, I b, I) { return a | b; });
      case 15: return each<I, I>(now, at, [](I a, I, I) { return ~a; });
      case 16: return each<V, V>(now, at, [](V a, V b, V) { return a / b; });
      case 17: return each<V, I>(now, at, [](I a, I, I) { return __builtin_convertvector(a, V); });
      case 18: return each<V, I>(now, at, [](I a, I, I) { return __builtin_convertvector(a & 1, V); });
      case 19: return each<I, I>(now, at, [](I a, I, I) { return a & 1; });
    }
    return false;
  }

  // Whether an operand has the width of T, so that the whole of a block is read where it lies.
  static bool is_wide(const Chain::Operand& operand) { return operand.kind == 0 || (operand.kind == 1 && sizeof(T) == 4); }

  static void copy(T* to, const T* from, int64_t count) {
    int64_t i = 0;
    for (; i + n <= count; i += n) put(to + i, load<V>(from + i), n);
    for (; i < count; ++i) to[i] = from[i];
  }

  static void read(T* to, const Chain::Operand& operand, int64_t first, int64_t count) {
    if (is_wide(operand) && !operand.is_one) return copy(to, static_cast<const T*>(operand.data) + first, count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = operand.is_one ? 0 : first + i;
      if (operand.kind == 0) to[i] = static_cast<const T*>(operand.data)[at];
      else {
        const bool is_int = operand.kind == 1;
        reinterpret_cast<Int*>(to)[i] = is_int ? static_cast<const int32_t*>(operand.data)[at]
                                               : -Int(static_cast<const uint8_t*>(operand.data)[at]);
      }
    }
  }

  static void write(const T* from, const Chain::Operand& output, int64_t first, int64_t count) {
    if (is_wide(output)) return copy(static_cast<T*>(output.data) + first, from, count);
    const Int* const bits = reinterpret_cast<const Int*>(from);
    for (int64_t i = first; i < first + count; ++i)
      if (output.kind == 1) static_cast<int32_t*>(output.data)[i] = int32_t(bits[i - first]);
      else static_cast<uint8_t*>(output.data)[i] = bits[i - first] & 1;
  }
};

template <class T>
void elementwise(const Chain& chain, int64_t begin, int64_t end) {
  typedef Elementwise<T> Work;
  constexpr int64_t at_once = Work::at_once, bytes = Work::pitch * sizeof(T);
  // Vectors that lie in one line of a cache each are read twice as fast.
  char* const given = new char[chain.num_values * bytes + 64]();
  char* const room = given + 64 - reinterpret_cast<uintptr_t>(given) % 64;
  auto** const at = new T*[chain.num_values];
  auto own = [&](int64_t i) { return reinterpret_cast<T*>(room + i * bytes); };
  for (int64_t i = 0; i < chain.num_values; ++i) {
    at[i] = own(i);
    if (i < chain.num_operands && chain.operands[i].is_one) Work::read(at[i], chain.operands[i], 0, at_once);
  }
  const int64_t carried = chain.steps > 1 ? chain.num_carried : 0;
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t count = min(at_once, end - first);
    auto look = [&](int64_t i, int64_t place) {
      const Chain::Operand& operand = chain.operands[i];
      const bool is_there = count == at_once && Work::is_wide(operand) && i >= carried;
      at[i] = is_there ? static_cast<T*>(operand.data) + place : own(i);
      if (!is_there) Work::read(at[i], operand, place, count);
    };
    for (int64_t i = 0; i < chain.num_operands; ++i)
      if (!chain.operands[i].is_one && !chain.operands[i].stride) look(i, first);
    for (int64_t s = 0; s < chain.steps; ++s) {
      const int64_t step = chain.is_backward ? chain.steps - 1 - s : s;
      for (int64_t i = 0; i < chain.num_operands; ++i)
        if (chain.operands[i].stride) look(i, step * chain.operands[i].stride + first);
      for (int64_t i = 0; i < chain.length; ++i) Work::run(chain.code[i], at);
      for (int64_t i = 0; i < chain.num_outputs; ++i) {
        const Chain::Operand& output = chain.outputs[i];
        if (i < carried && s + 1 < chain.steps) Work::copy(at[i], at[chain.made[i]], at_once);
        else Work::write(at[chain.made[i]], output, step * output.stride + first, count);
      }
    }
  }
  delete[] given;
  delete[] at;
}

template <class T>
constexpr Kernels<T> kernels() {
  return {to_rows<T>,
          has_tables<T> ? to_bits<T> : nullptr,
          to_pairs<T>,
#if VECTOR_BYTES == 64
          one_bit<T>,
#else
          nullptr,
#endif
          active<T>,
          product<T>,
          scatter<T>,
          transposed<T>,
          {window<T, AsIs<T>, 0>, window<T, AsIs<T>, 1>, window<T, AsIs<T>, 2>, window<T, AsIs<T>, 3>,
           window<T, AsIs<T>, 4>},
          {},
          {nullptr, dense<T, AsIs<T>, 1>, dense<T, AsIs<T>, 2>, dense<T, AsIs<T>, 3>, dense<T, AsIs<T>, 4>},
          {},
          {nullptr, features<T, AsIs<T>, 1>, features<T, AsIs<T>, 2>, features<T, AsIs<T>, 3>},
          {},
          elementwise<T>,
          {influence<T>, influence_gradients<T>, influence_rows<T>, influence_product<T>}};
}
constexpr Kernels<float> kernels_f32() {
  Kernels<float> all = kernels<float>();
  all.window_bf16[1] = window<float, Bfloat16, 1>;
  all.window_bf16[2] = window<float, Bfloat16, 2>;
  all.window_bf16[3] = window<float, Bfloat16, 3>;
  all.dense_bf16[1] = dense<float, Bfloat16, 1>;
  all.dense_bf16[2] = dense<float, Bfloat16, 2>;
  all.dense_bf16[3] = dense<float, Bfloat16, 3>;
  all.features_bf16[1] = features<float, Bfloat16, 1>;
  all.features_bf16[2] = features<float, Bfloat16, 2>;
  all.features_bf16[3] = features<float, Bfloat16, 3>;
  return all;
}

}  // namespace

#define STRING_OF(name) #name
#define STRING(name) STRING_OF(name)
extern const Table TABLE = {STRING(TABLE), kernels_f32(), kernels<double>()};

}  // namespace sparse_etrace
