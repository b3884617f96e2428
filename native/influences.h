// Influences of columns of synapses on rows of units, through a window.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
