// Windows where each synapse has a trace for every feature.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
