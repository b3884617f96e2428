// Chains of operations on each unit by itself.
#pragma once

#include "vectors.h"

namespace sparse_etrace {
namespace {

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

}  // namespace
}  // namespace sparse_etrace
