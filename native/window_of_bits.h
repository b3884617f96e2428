// Windows of spikes.
#pragma once

#include "layout.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
