// Windows of sparse traces.
#pragma once

#include "window_of_bits.h"
#include "window_of_pairs.h"
#include "window_of_steps.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
