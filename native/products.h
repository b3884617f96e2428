// Products of a sparse layer: forward by receivers, by the senders that send anything, and transposed.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
