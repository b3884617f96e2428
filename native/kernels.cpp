// The kernels, compiled once for each instruction set with VECTOR_BYTES and TABLE to match.
#include "kernels.h"

#include "dense.h"
#include "elementwise.h"
#include "influences.h"
#include "products.h"
#include "window.h"
#include "window_of_features.h"

namespace sparse_etrace {
namespace {

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
