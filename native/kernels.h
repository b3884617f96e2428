// What the kernels work on, and the table of functions that each instruction set provides.
//
// A kernel does one block of the work; ffi.cpp splits the work and calls it. Leading axes are columns: what it gathers
// from a unit lies together in memory as a row of `pitch` numbers, padded with zeros.
#pragma once

#include <cstdint>

namespace sparse_etrace {

struct Synapses {
  const int32_t* pre;
  const int32_t* post;
  const int32_t* post_ptr;
  int64_t num_pre, num_post, count;
};

// The same sorted by the sending unit.
struct Outgoing {
  const int32_t *pre_ptr, *by_pre, *post;
  int64_t count;
};

// y[c, post] = sum of weight * x[c, pre]. The sums of the unit whose synapses began before the block go to `head`.
template <class T>
struct Product {
  Synapses synapses;
  const T* weight;
  const T* rows;
  int64_t columns, pitch;
  T* y;
  const uint32_t* bits;  // of one column of spikes, one for each sender, in the place of rows, or null
};

// A window of steps: next[a] = carried[a, b] trace[b] + sum over k of entering[k, a] x[k], and the gradient
// signal . trace + sum over k of direct[k] x[k], summed over the batch. Null pointers are zeros, or not wanted. Where
// everything is connected there are no indices, and synapse (pre, post) is the one at pre * num_post + post.
//
// With `lag` the senders are `units` in slots of a ring, `pre = slot * units + unit`, and `x` and `rows` hold one time
// after the other: in its first step a synapse reads the time `slot`.
//
// Spikes, of which each is 0 or 1, take one bit each: `bits` hold the times of a unit, `stride` bytes for each. A synapse
// reads four bytes from the one on in which its first step is.
template <class T>
struct Window {
  Synapses synapses;
  int64_t steps, batch, pitch;
  const T *carried, *entering, *signal, *direct;
  const T* x;     // one step: (batch, pre), as it comes; with lag (times, batch, units)
  const T* rows;  // several steps: (batch, pre, pitch); with lag (batch, units, pitch)
  const void* trace;
  void* next;
  T* gradient;
  const uint32_t* noise;  // by which a trace in half precision is rounded; null: to the nearest
  const int32_t* lag;     // the slot of each synapse, or null
  int64_t units;          // without lag the senders
  const uint8_t* bits;    // at most 16 steps of spikes: (batch, units, stride) in the place of rows, or null
  int64_t stride;
  bool in_pairs;  // rows hold two elements of the batch together, 32 numbers of a unit; the last of an odd batch alone
};
constexpr int MOST_IN_PAIRS = 2;  // hidden variables

// A window of steps where each synapse has a trace for every feature of a unit and one weight for all, features last:
// next[a] = carried[a, b] trace[b] + sum over k of entering[k, a] x[k], and the gradient summed over features.
template <class T>
struct FeatureWindow {
  Synapses synapses;
  int64_t steps, batch, features;
  const T *carried, *entering, *signal, *direct;  // (.., batch, post, features); null: not wanted
  const T* x;                                     // (batch, pre, steps, features)
  const void* trace;                              // (variables, batch, synapses, features), as next
  void* next;
  T* gradient;
  const uint32_t* noise;
};

// A window of steps of the influence of columns on rows, as in sparse_etrace/_kernels/influence.py. Numbers of units
// have the steps in front and the batch last; `next` may be `influence`. `product` is for what a window makes of the old
// influences: hidden by hidden units, for so many batch elements as fill vectors; `from_zero`: these are zero.
template <class T>
struct Influence {
  const int32_t *hidden, *row_ptr, *rows, *out_ptr, *term_ptr, *term_row, *term_edge;
  const int32_t *pattern, *first_column, *first_entry, *entry, *column_x, *link;
  int64_t steps, batch, num_cut, num_links, num_inputs, num_rows;
  const T *influence, *weight, *along, *x, *signal;
  T *next, *gradient, *product;
  bool from_zero;
};

// A chain of elementwise operations on numbers of type T, integers and truth values, by the instructions `code`: what is
// done, the value that it makes, and the three that it may read. The first values are the operands. It runs in so many
// steps; the first operands are carried from step to step, and the first outputs are what they are after the last.
struct Chain {
  struct Operand {
    void* data;
    int64_t kind;    // 0: T, 1: int32, 2: truth values, a byte for each
    bool is_one;     // for all units
    int64_t stride;  // from step to step; 0: the same in all
  };
  struct Instruction {
    int64_t what, to, a, b, c;
  };
  const Instruction* code;
  int64_t length, num_values, num_operands, num_outputs;
  const Operand *operands, *outputs;
  const int64_t* made;  // the values that are put out
  int64_t steps, num_carried;
  bool is_backward;
};

template <class T>
struct Kernels {
  // rows[unit * pitch + c] = x[c * stride + unit], padded with zeros, for the units of a range.
  void (*to_rows)(const T* x, int64_t columns, int64_t stride, T* rows, int64_t pitch, int64_t begin, int64_t end);
  // The same in bits, so many bytes for each unit; false where anything is neither 0 nor 1. Null: no windows of bits.
  bool (*to_bits)(const T* x, int64_t times, int64_t stride, uint8_t* bits, int64_t bytes, int64_t begin, int64_t end);
  // Rows of the elements b and b + 1 of a window's inputs, in which vectors are parted between them.
  void (*to_pairs)(const Window<T>& work, int64_t b, T* rows, int64_t begin, int64_t end);
  // One bit for each of n numbers, from the bit `first` on, where all are 0 yet; false where anything is neither 0 nor
  // 1. Writes up to four bytes behind. Null: no products of bits.
  bool (*one_bit)(const T* x, int64_t n, uint32_t* words, int64_t first);
  // Appends to a list those of the senders from `first` on, which send the n numbers x, that send anything and have
  // synapses, and what they send; false if all in it have more than `limit` synapses, up to which there is room, and one.
  bool (*active)(const T* x, int64_t first, int64_t n, const int32_t* pre_ptr, int64_t limit, int32_t* senders,
                 T* values, int64_t* count, int64_t* synapses);
  void (*product)(const Product<T>& work, int64_t begin, int64_t end, bool last, T* head);
  // y += what the listed senders send to the units whose synapses are begin .. end.
  void (*scatter)(const Outgoing& outgoing, const T* weight, const T* values, const int32_t* senders,
                  int64_t num_senders, T* y, int64_t begin, int64_t end);
  // into[pre, c] += weight * y[c, post].
  void (*transposed)(const Synapses& synapses, const T* weight, const T* y, int64_t columns, int64_t pitch, T* into,
                     int64_t begin, int64_t end);
  // For one batch element, or two in pairs, by number of hidden variables; those after the first add to the gradient.
  void (*window[5])(const Window<T>& work, int64_t b, int64_t begin, int64_t end);
  // The same where the trace is stored in bfloat16.
  void (*window_bf16[4])(const Window<T>& work, int64_t b, int64_t begin, int64_t end);
  // Where everything is connected, for all synapses of the senders of a range.
  void (*dense[5])(const Window<T>& work, int64_t begin, int64_t end);
  void (*dense_bf16[4])(const Window<T>& work, int64_t begin, int64_t end);
  // For one batch element, by number of hidden variables; those after the first add to the gradient.
  void (*features[4])(const FeatureWindow<T>& work, int64_t b, int64_t begin, int64_t end);
  void (*features_bf16[4])(const FeatureWindow<T>& work, int64_t b, int64_t begin, int64_t end);
  // For the units of a range; an output may be an operand of the same kind.
  void (*elementwise)(const Chain& chain, int64_t begin, int64_t end);
  // For some of the blocks a .. z of one pattern: the whole window; or with a batch the gradients alone, rows of the
  // product or of what entered, and the product with the old influences.
  void (*influence[4])(const Influence<T>& work, int64_t a, int64_t z, int64_t first_row, int64_t last_row);
};

struct Table {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  template <class T>
  const Kernels<T>& of() const;
};
template <>
inline const Kernels<float>& Table::of<float>() const { return f32; }
template <>
inline const Kernels<double>& Table::of<double>() const { return f64; }

extern const Table plain_table;
#ifdef SPARSE_ETRACE_X86
extern const Table avx2_table, avx512_table;
#endif

}  // namespace sparse_etrace
