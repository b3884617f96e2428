// Handlers for XLA: they split the work into blocks, whose number depends on the work alone, so that the result does
// not depend on the number of threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace sparse_etrace {
namespace {

const Table* choose() {
  const char* asked = std::getenv("SPARSE_ETRACE_KERNELS");
  auto allowed = [asked](const char* name) { return !asked || !*asked || !std::strcmp(asked, name); };
#ifdef SPARSE_ETRACE_X86
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return &avx512_table;
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2_table;
#endif
  return allowed("plain") ? &plain_table : nullptr;
}

const Table* const table = choose();

int64_t blocks_of(int64_t work, int64_t block, int64_t most) {
  return std::clamp<int64_t>(work / block, 1, std::clamp<int64_t>(most, 1, 1024));
}

// An array of numbers; null where it is empty.
template <class T>
T* data(ffi::AnyBuffer buffer) {
  return buffer.element_count() ? static_cast<T*>(buffer.untyped_data()) : nullptr;
}

// Asks for large pages for a large array that this call is the first to write: they are handed out and found faster.
void expect_large(ffi::AnyBuffer buffer) {
#ifdef __linux__
  const uintptr_t page = 1 << 21, start = reinterpret_cast<uintptr_t>(buffer.untyped_data());
  const uintptr_t first = (start + page - 1) / page * page, last = (start + buffer.size_bytes()) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)buffer;
#endif
}

struct Ids {
  ffi::AnyBuffer pre, post, post_ptr;
  Synapses synapses(int64_t num_pre) const {
    return {data<int32_t>(pre), data<int32_t>(post), data<int32_t>(post_ptr), num_pre,
            int64_t(post_ptr.element_count()) - 1, int64_t(pre.element_count())};
  }
};

constexpr int64_t units_at_once = 1024;

template <class F>
void for_units(ffi::ThreadPool& pool, int64_t units, F&& body) {
  parallel_for(pool, std::max<int64_t>((units + units_at_once - 1) / units_at_once, 1), [&](int64_t block) {
    body(block * units_at_once, std::min((block + 1) * units_at_once, units));
  });
}

// What senders send, column c from c * stride on: the last ones lie in front where a ring is read over its end.
template <class T>
struct Sent {
  const T *x, *front;
  int64_t stride, before_end;
};

// Senders of a range that send anything, what they send, and how many synapses they have.
template <class T>
struct Active {
  std::unique_ptr<int32_t[]> senders;
  std::unique_ptr<T[]> values;
  int64_t count = 0, synapses = 0;

  // False if they have more synapses than `limit`.
  bool find(const Sent<T>& sent_by, const int32_t* pre_ptr, int64_t begin, int64_t end, int64_t limit) {
    const int64_t room = std::min(end - begin, limit) + 1, split = std::clamp(sent_by.before_end, begin, end);
    senders.reset(new int32_t[room]);
    values.reset(new T[room]);
    auto look = [&](const T* x, int64_t first, int64_t last) {
      return table->of<T>().active(x, first, last - first, pre_ptr, limit, &senders[0], &values[0], &count, &synapses);
    };
    return look(sent_by.x + begin, begin, split) && look(sent_by.front + (split - sent_by.before_end), split, end);
  }
};

// Parts of what few senders send, one for each thread at most: a unit's sum has the order of its senders in any number.
int64_t ranges_of(ffi::ThreadPool& pool, int64_t sent) {
  return sent < 4096 ? 1 : std::clamp<int64_t>(pool.num_threads(), 1, 64);
}

// The first synapse of such a part, where a unit's begin.
int64_t range_start(const Synapses& synapses, int64_t range, int64_t ranges) {
  const int32_t *ptr = synapses.post_ptr, *end = ptr + synapses.num_post;
  return *std::lower_bound(ptr, end, synapses.count * range / ranges);
}

template <class T>
bool scatter_few(ffi::ThreadPool& pool, const Synapses& synapses, const Outgoing& outgoing, const T* weight,
                 const Sent<T>& sent_by, T* y) {
  constexpr int64_t most = 4;
  const int64_t limit = synapses.count / 16, units = synapses.num_post;
  // Many senders with few synapses each, as units in slots of a ring: every part of them adds to sums of its own.
  const bool is_own = synapses.num_pre >= std::max<int64_t>(1 << 16, most * units) && synapses.count < 16 * synapses.num_pre;
  const int64_t parts = is_own ? most : 1;
  std::unique_ptr<T[]> sums(new T[(parts - 1) * units]);
  Active<T> found[most];
  std::atomic<int64_t> sent{0};
  auto scatter = [&](const Active<T>& some, T* to, int64_t begin, int64_t end) {
    table->of<T>().scatter(outgoing, weight, some.values.get(), some.senders.get(), some.count, to, begin, end);
  };
  parallel_for(pool, parts, [&](int64_t part) {
    const int64_t begin = synapses.num_pre * part / parts, end = synapses.num_pre * (part + 1) / parts;
    const bool is_few = found[part].find(sent_by, outgoing.pre_ptr, begin, end, limit - std::min<int64_t>(sent, limit));
    const int64_t all = sent.fetch_add(found[part].synapses) + found[part].synapses;
    if (!is_own || !is_few || all > limit) return;
    T* const to = part ? &sums[(part - 1) * units] : y;
    std::fill_n(to, units, T(0));
    scatter(found[part], to, 0, synapses.count);
  });
  if (sent > limit) return false;
  if (is_own) {
    for (int64_t i = 0; i < units; ++i) y[i] = (y[i] + sums[i]) + (sums[units + i] + sums[2 * units + i]);
    return true;
  }
  std::fill_n(y, units, T(0));
  const int64_t ranges = ranges_of(pool, sent);
  parallel_for(pool, ranges, [&](int64_t range) {
    scatter(found[0], y, range_start(synapses, range, ranges), range_start(synapses, range + 1, ranges));
  });
  return true;
}

template <class T>
void product(ffi::ThreadPool& pool, const Synapses& synapses, const Outgoing& outgoing, const T* weight,
             const Sent<T>& sent, int64_t columns, int64_t pitch, T* rows, T* y) {
  if (columns == 1 && scatter_few(pool, synapses, outgoing, weight, sent, y)) return;
  const Kernels<T>& kernels = table->of<T>();
  const int64_t split = sent.before_end, rest = synapses.num_pre - split;
  Product<T> work{synapses, weight, columns > 1 || rest ? rows : sent.x, columns, pitch, y, nullptr};
  std::vector<uint32_t> bits;
  // One bit of each sender stays in a cache that all they send does not.
  if (columns == 1 && kernels.one_bit && synapses.num_pre >= 1 << 14 && synapses.count >= synapses.num_pre) {
    bits.resize(synapses.num_pre / 32 + 2);
    if (kernels.one_bit(sent.x, split, bits.data(), 0) && kernels.one_bit(sent.front, rest, bits.data(), split))
      work.bits = bits.data();
  }
  if (columns > 1) {
    auto to_rows = [&](const T* x, int64_t first, int64_t units) {
      for_units(pool, units, [&](int64_t begin, int64_t end) {
        kernels.to_rows(x, columns, sent.stride, rows + first * pitch, pitch, begin, end);
      });
    };
    to_rows(sent.x, 0, split);
    if (rest) to_rows(sent.front, split, rest);
  } else if (rest && !work.bits) {
    std::copy_n(sent.x, split, rows);
    std::copy_n(sent.front, rest, rows + split);
  }
  int64_t blocks = blocks_of(synapses.count * pitch, 1 << 16, synapses.count);
  auto start = [&](int64_t block) { return synapses.count * block / blocks; };
  std::vector<T> heads(blocks * columns);
  parallel_for(pool, blocks, [&](int64_t block) {
    kernels.product(work, start(block), start(block + 1), block == blocks - 1, &heads[block * columns]);
  });
  for (int64_t block = 1; block < blocks; ++block) {
    int64_t unit = synapses.post[start(block)];
    if (synapses.post_ptr[unit] < start(block))
      for (int64_t c = 0; c < columns; ++c) y[c * synapses.num_post + unit] += heads[block * columns + c];
  }
}

template <class T>
void transposed(ffi::ThreadPool& pool, const Synapses& synapses, const T* weight, const T* y, int64_t columns,
                int64_t pitch, T* parts, int64_t num_parts, T* x) {
  const int64_t size = synapses.num_pre * pitch;
  parallel_for(pool, num_parts, [&](int64_t part) {
    std::fill_n(parts + part * size, size, T(0));
    table->of<T>().transposed(synapses, weight, y, columns, pitch, parts + part * size,
                              synapses.count * part / num_parts, synapses.count * (part + 1) / num_parts);
  });
  for_units(pool, synapses.num_pre, [&](int64_t begin, int64_t end) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t j = begin; j < end; ++j) {
        T sum = 0;
        for (int64_t part = 0; part < num_parts; ++part) sum += parts[part * size + j * pitch + c];
        x[c * synapses.num_pre + j] = sum;
      }
  });
}

template <class T>
void window(ffi::ThreadPool& pool, Window<T> work, int64_t times, T* rows, int64_t variables, bool is_bf16) {
  const Synapses& synapses = work.synapses;
  const Kernels<T>& kernels = table->of<T>();
  const int64_t units = work.units;
  work.rows = rows;
  work.stride = (times + 7) / 8;
  std::atomic<bool> is_spikes{kernels.to_bits && work.steps > 1 && work.steps <= 16 &&
                              synapses.count >= 16 * synapses.num_post && units * work.stride <= INT32_MAX};
  if (is_spikes) {
    uint8_t* const bits = reinterpret_cast<uint8_t*>(rows);
    for_units(pool, units, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < work.batch && is_spikes; ++b)
        if (!kernels.to_bits(work.x + b * units, times, work.batch * units, bits + b * units * work.stride, work.stride,
                             begin, end))
          is_spikes = false;
    });
    if (is_spikes) work.bits = bits;
  }
  // Two elements of a batch at once where units have enough synapses to fill vectors.
  work.in_pairs = !is_spikes && !work.lag && work.batch > 1 && work.steps > 1 && work.steps <= 16 &&
                  variables <= MOST_IN_PAIRS && (!variables || synapses.count >= 64 * synapses.num_post);
  auto in_pair = [&](int64_t b) { return work.in_pairs && b + 1 < work.batch; };
  if (work.steps > 1 && !is_spikes)
    for_units(pool, units, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < work.batch; b += 1 + in_pair(b))
        if (in_pair(b)) kernels.to_pairs(work, b, rows, begin, end);
        else
          kernels.to_rows(work.x + b * units, times, work.batch * units, rows + b * units * work.pitch, work.pitch,
                          begin, end);
    });
  auto kernel = (is_bf16 ? kernels.window_bf16 : kernels.window)[variables];
  int64_t blocks = blocks_of(synapses.count * work.steps, 1 << 18, synapses.count);
  // One batch element after the other, or two, because what the synapses gather of one may fit into a cache.
  for (int64_t b = 0; b < work.batch; b += 1 + in_pair(b))
    parallel_for(pool, blocks, [&](int64_t block) {
      kernel(work, b, synapses.count * block / blocks, synapses.count * (block + 1) / blocks);
    });
}

template <class T>
void dense(ffi::ThreadPool& pool, const Window<T>& work, int64_t variables, bool is_bf16) {
  auto kernel = (is_bf16 ? table->of<T>().dense_bf16 : table->of<T>().dense)[variables];
  // Blocks of some tiles of senders, because each lays out the coefficients of all receivers.
  constexpr int64_t tile = 8;
  const int64_t tiles = (work.synapses.num_pre + tile - 1) / tile;
  const int64_t blocks = blocks_of(work.synapses.count * work.steps * work.batch, 1 << 18, tiles / 2);
  auto start = [&](int64_t block) { return std::min(tiles * block / blocks * tile, work.synapses.num_pre); };
  parallel_for(pool, blocks, [&](int64_t block) { kernel(work, start(block), start(block + 1)); });
}

template <class F>
ffi::Error by_type(ffi::DataType type, F&& body) {
  if (type == ffi::F32) body(float());
  else if (type == ffi::F64) body(double());
  else return ffi::Error::InvalidArgument("sparse_etrace: expected float32 or float64");
  return ffi::Error::Success();
}

// Senders are units in slots of a ring, `slot * units + unit`, from the slot `first` of x on and then from its first
// one on; without `first` they are units.
ffi::Error Spmv(ffi::ThreadPool pool, ffi::AnyBuffer pre, ffi::AnyBuffer post, ffi::AnyBuffer post_ptr,
                ffi::AnyBuffer pre_ptr, ffi::AnyBuffer by_pre, ffi::AnyBuffer post_by_pre, ffi::AnyBuffer weight,
                ffi::AnyBuffer x, ffi::AnyBuffer first, ffi::Result<ffi::AnyBuffer> y,
                ffi::Result<ffi::AnyBuffer> rows, int64_t units) {
  auto size = x.dimensions();
  Synapses synapses = Ids{pre, post, post_ptr}.synapses(int64_t(pre_ptr.element_count()) - 1);
  Outgoing outgoing{data<int32_t>(pre_ptr), data<int32_t>(by_pre), data<int32_t>(post_by_pre), synapses.count};
  const bool is_ring = first.element_count();
  const int64_t begin = is_ring ? *data<int32_t>(first) * units : 0;
  const int64_t before_end = is_ring ? std::min(synapses.num_pre, size[2] - begin) : synapses.num_pre;
  return by_type(x.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    for (int64_t i = 0; i < size[0]; ++i) {
      const T* of = data<T>(x) + i * size[1] * size[2];
      product(pool, synapses, outgoing, data<T>(weight) + i * synapses.count, Sent<T>{of + begin, of, size[2], before_end},
              size[1], rows->dimensions()[1], data<T>(*rows), data<T>(*y) + i * size[1] * synapses.num_post);
    }
  });
}

// The product of zeros and, for each id, one more; of ids out of range nothing. Of many synapses, that of a frame.
ffi::Error SpmvIds(ffi::ThreadPool pool, ffi::AnyBuffer pre, ffi::AnyBuffer post, ffi::AnyBuffer post_ptr,
                   ffi::AnyBuffer pre_ptr, ffi::AnyBuffer by_pre, ffi::AnyBuffer post_by_pre, ffi::AnyBuffer weight,
                   ffi::AnyBuffer ids, ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> rows) {
  Synapses synapses = Ids{pre, post, post_ptr}.synapses(int64_t(pre_ptr.element_count()) - 1);
  Outgoing outgoing{data<int32_t>(pre_ptr), data<int32_t>(by_pre), data<int32_t>(post_by_pre), synapses.count};
  const int64_t columns = ids.dimensions()[0], capacity = ids.dimensions()[1], units = synapses.num_post;
  std::vector<int32_t> senders(columns * capacity), count(columns);
  int64_t sent = 0;
  for (int64_t i = 0; i < columns * capacity; ++i) {
    const int32_t sender = data<int32_t>(ids)[i];
    if (sender < 0 || sender >= synapses.num_pre) continue;
    senders[i / capacity * capacity + count[i / capacity]++] = sender;
    sent += outgoing.pre_ptr[sender + 1] - outgoing.pre_ptr[sender];
  }
  // Columns of a frame share what they read.
  const bool is_few = sent <= synapses.count / 16 * std::min<int64_t>(columns, 4);
  const int64_t ranges = columns > 1 ? 1 : ranges_of(pool, sent);
  return by_type(weight.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    T* const to = data<T>(*y);
    if (!is_few) {
      std::vector<T> x(columns * synapses.num_pre);
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = 0; i < count[c]; ++i) x[c * synapses.num_pre + senders[c * capacity + i]] += 1;
      Sent<T> frame{x.data(), x.data(), synapses.num_pre, synapses.num_pre};
      product(pool, synapses, outgoing, data<T>(weight), frame, columns, rows->dimensions()[1], data<T>(*rows), to);
      return;
    }
    const std::vector<T> ones(capacity, T(1));
    std::fill_n(to, columns * units, T(0));
    parallel_for(pool, columns * ranges, [&](int64_t part) {
      const int64_t c = part / ranges, range = part % ranges;
      table->of<T>().scatter(outgoing, data<T>(weight), ones.data(), &senders[c * capacity], count[c], to + c * units,
                             range_start(synapses, range, ranges), range_start(synapses, range + 1, ranges));
    });
  });
}

// Writes what is sent to a slot of a ring, in place.
ffi::Error Push(ffi::AnyBuffer ring, ffi::AnyBuffer sent, ffi::AnyBuffer pointer, ffi::Result<ffi::AnyBuffer> result) {
  const auto size = ring.dimensions();
  const int64_t units = size.back(), slots = size[size.size() - 2], slot = *data<int32_t>(pointer);
  if (result->untyped_data() != ring.untyped_data())
    std::memcpy(result->untyped_data(), ring.untyped_data(), ring.size_bytes());
  if (!sent.element_count()) return ffi::Error::Success();
  const int64_t at = std::clamp<int64_t>(slot, 0, slots - 1), batch = int64_t(sent.element_count()) / units;
  const int64_t bytes = int64_t(sent.size_bytes()) / batch;
  for (int64_t b = 0; b < batch; ++b)
    std::memcpy(static_cast<char*>(result->untyped_data()) + (b * slots + at) * bytes,
                static_cast<const char*>(sent.untyped_data()) + b * bytes, bytes);
  return ffi::Error::Success();
}

ffi::Error SpmvT(ffi::ThreadPool pool, ffi::AnyBuffer pre, ffi::AnyBuffer post, ffi::AnyBuffer post_ptr,
                 ffi::AnyBuffer weight, ffi::AnyBuffer y, ffi::Result<ffi::AnyBuffer> x,
                 ffi::Result<ffi::AnyBuffer> parts) {
  auto size = x->dimensions(), split = parts->dimensions();
  Synapses synapses = Ids{pre, post, post_ptr}.synapses(size[2]);
  return by_type(y.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    for (int64_t i = 0; i < size[0]; ++i)
      transposed(pool, synapses, data<T>(weight) + i * synapses.count, data<T>(y) + i * size[1] * synapses.num_post,
                 size[1], split[2], data<T>(*parts), split[0], data<T>(*x) + i * size[1] * size[2]);
  });
}

// With lag, x are times of units, of which each step reads those of so many slots.
ffi::Error WindowOf(ffi::ThreadPool pool, ffi::AnyBuffer pre, ffi::AnyBuffer post, ffi::AnyBuffer post_ptr,
                    ffi::AnyBuffer lag, ffi::AnyBuffer carried, ffi::AnyBuffer entering, ffi::AnyBuffer signal, ffi::AnyBuffer direct,
                    ffi::AnyBuffer x, ffi::AnyBuffer noise, ffi::AnyBuffer trace, ffi::Result<ffi::AnyBuffer> next,
                    ffi::Result<ffi::AnyBuffer> gradient, ffi::Result<ffi::AnyBuffer> rows, int64_t variables,
                    int64_t slots) {
  auto size = x.dimensions();
  const int64_t count = size[0], steps = size[1] - slots + 1, batch = size[2];
  for (ffi::AnyBuffer buffer : {*next, *gradient, *rows}) expect_large(buffer);
  Synapses synapses = Ids{pre, post, post_ptr}.synapses(size[3]);
  const bool is_dense = !post_ptr.element_count();
  if (is_dense) {
    synapses.num_post = trace.dimensions().back();
    synapses.count = synapses.num_pre * synapses.num_post;
  }
  return by_type(x.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    auto part = [&](ffi::AnyBuffer buffer, int64_t i) {
      return static_cast<T*>(buffer.element_count() ? data<T>(buffer) + i * (buffer.element_count() / count) : nullptr);
    };
    const uint32_t* bits = data<uint32_t>(noise);
    auto trace_part = [&](ffi::AnyBuffer buffer, int64_t i) {
      return buffer.element_count() ? data<char>(buffer) + i * (buffer.size_bytes() / count) : nullptr;
    };
    for (int64_t i = 0; i < count; ++i) {
      Window<T> work{synapses,        steps, batch, rows->dimensions()[1], part(carried, i), part(entering, i),
                     part(signal, i), part(direct, i), part(x, i), nullptr, trace_part(trace, i),
                     trace_part(*next, i), part(*gradient, i), bits ? bits + i : nullptr, data<int32_t>(lag),
                     size[3],         nullptr, 0, false};
      const bool is_bf16 = trace.element_type() == ffi::BF16;
      if (is_dense) dense(pool, work, variables, is_bf16);
      else window(pool, work, size[1], data<T>(*rows), variables, is_bf16);
    }
  });
}

ffi::Error FeaturesOf(ffi::ThreadPool pool, ffi::AnyBuffer pre, ffi::AnyBuffer post, ffi::AnyBuffer post_ptr,
                      ffi::AnyBuffer carried, ffi::AnyBuffer entering, ffi::AnyBuffer signal, ffi::AnyBuffer direct,
                      ffi::AnyBuffer x, ffi::AnyBuffer noise, ffi::AnyBuffer trace, ffi::Result<ffi::AnyBuffer> next,
                      ffi::Result<ffi::AnyBuffer> gradient, ffi::Result<ffi::AnyBuffer>) {
  auto size = x.dimensions(), slots = trace.dimensions();
  expect_large(*next);
  Synapses synapses = Ids{pre, post, post_ptr}.synapses(size[1]);
  return by_type(x.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    FeatureWindow<T> work{synapses, size[2], size[0], size[3], data<T>(carried), data<T>(entering), data<T>(signal),
                          data<T>(direct), data<T>(x), trace.untyped_data(), next->untyped_data(), data<T>(*gradient),
                          data<uint32_t>(noise)};
    const Kernels<T>& kernels = table->of<T>();
    auto kernel = (trace.element_type() == ffi::BF16 ? kernels.features_bf16 : kernels.features)[slots[0]];
    const int64_t blocks = blocks_of(synapses.count * size[2] * size[3], 1 << 18, synapses.count);
    for (int64_t b = 0; b < work.batch; ++b)
      parallel_for(pool, blocks, [&](int64_t block) {
        kernel(work, b, synapses.count * block / blocks, synapses.count * (block + 1) / blocks);
      });
  });
}

// Influences of one pattern by their rows, backward through the window. Worth it where there are many more columns, and
// where a window is long or the old influences are zero.
template <class T>
bool by_rows(ffi::ThreadPool& pool, Influence<T> work, int64_t a, int64_t z) {
  const int64_t p = work.pattern[a], columns = work.first_column[z] - work.first_column[a], rows = work.hidden[p];
  const int64_t terms = work.term_ptr[work.out_ptr[p + 1]] - work.term_ptr[work.out_ptr[p]];
  const double forward = double(terms) * columns, backward = double(rows) * (terms + columns);
  if (work.batch <= 1 || !work.steps || 2 * backward > forward) return false;
  const int64_t parts = blocks_of(rows * columns * work.batch, 1 << 18, z - a);
  auto block = [&](int64_t part) { return a + (z - a) * part / parts; };
  std::atomic<bool> has_old{false};
  parallel_for(pool, parts, [&](int64_t part) {
    const int64_t last = block(part + 1), width = work.first_column[last] - work.first_column[last - 1];
    const T* const end = work.influence + (work.first_entry[last - 1] + rows * width) * work.batch;
    for (const T* at = work.influence + work.first_entry[block(part)] * work.batch; at < end && !has_old; at += 4096) {
      bool any = false;
      for (const T* one = at; one < std::min(at + 4096, end); ++one) any |= *one != 0;
      if (any) has_old = true;
    }
  });
  work.from_zero = !has_old;
  const double product = double(rows) * (terms + double(rows) * columns / work.steps);
  if (has_old && 2 * (backward + product) > forward) return false;
  const auto& kernel = table->of<T>().influence;
  const int64_t groups = (rows + 31) / 32;
  auto all_rows = [&] {
    parallel_for(pool, groups, [&](int64_t k) { kernel[2](work, a, z, 32 * k, std::min(32 * k + 32, rows)); });
  };
  const int64_t shares = std::min<int64_t>(z - a, 2);
  parallel_for(pool, shares, [&](int64_t k) {
    kernel[1](work, a + (z - a) * k / shares, a + (z - a) * (k + 1) / shares, 0, 0);
  });
  if (has_old) {
    std::unique_ptr<T[]> room(work.product = new T[rows * rows * ((work.batch + 15) / 16 * 16)]);
    all_rows();
    parallel_for(pool, parts, [&](int64_t part) { kernel[3](work, block(part), block(part + 1), 0, 0); });
    work.product = nullptr;
  }
  all_rows();
  return true;
}

// Pattern by pattern, those with many columns in several parts.
template <class T>
void influences(ffi::ThreadPool& pool, const Influence<T>& work, int64_t blocks) {
  std::vector<int64_t> begin, end;
  for (int64_t a = 0, z; a < blocks; a = z) {
    for (z = a + 1; z < blocks && work.pattern[z] == work.pattern[a];) ++z;
    if (by_rows(pool, work, a, z)) continue;
    for (int64_t k = a; k < z; k += 8) begin.push_back(k), end.push_back(std::min(k + 8, z));
  }
  const int64_t parts = begin.size(), ranges = std::clamp<int64_t>(parts, 1, 256);
  parallel_for(pool, ranges, [&](int64_t range) {
    for (int64_t k = parts * range / ranges; k < parts * (range + 1) / ranges; ++k)
      table->of<T>().influence[0](work, begin[k], end[k], 0, 0);
  });
}

ffi::Error InfluenceOf(ffi::ThreadPool pool, ffi::AnyBuffer hidden, ffi::AnyBuffer row_ptr, ffi::AnyBuffer rows,
                       ffi::AnyBuffer out_ptr, ffi::AnyBuffer term_ptr, ffi::AnyBuffer term_row,
                       ffi::AnyBuffer term_edge, ffi::AnyBuffer pattern, ffi::AnyBuffer first_column,
                       ffi::AnyBuffer first_entry, ffi::AnyBuffer entry, ffi::AnyBuffer column_x, ffi::AnyBuffer link,
                       ffi::AnyBuffer influence, ffi::AnyBuffer weight, ffi::AnyBuffer along, ffi::AnyBuffer x,
                       ffi::AnyBuffer signal, ffi::Result<ffi::AnyBuffer> next, ffi::Result<ffi::AnyBuffer> gradient,
                       ffi::Result<ffi::AnyBuffer>, int64_t num_cut) {
  auto size = signal.dimensions();
  const int64_t count = size[0], blocks = pattern.element_count();
  expect_large(*next);
  return by_type(x.element_type(), [&](auto zero) {
    typedef decltype(zero) T;
    auto part = [&](ffi::AnyBuffer buffer, int64_t i) {
      return data<T>(buffer) + i * (buffer.element_count() / count);
    };
    auto ids = [](ffi::AnyBuffer buffer) { return static_cast<const int32_t*>(data<int32_t>(buffer)); };
    for (int64_t i = 0; i < count; ++i) {
      Influence<T> work{ids(hidden), ids(row_ptr), ids(rows), ids(out_ptr), ids(term_ptr), ids(term_row),
                        ids(term_edge), ids(pattern), ids(first_column), ids(first_entry), ids(entry), ids(column_x),
                        ids(link), size[1], size[3], num_cut, along.dimensions()[2], x.dimensions()[2], size[2],
                        part(influence, i), part(weight, i), part(along, i), part(x, i), part(signal, i),
                        part(*next, i), part(*gradient, i), nullptr, false};
      influences(pool, work, blocks);
    }
  });
}

int64_t kind_of(ffi::DataType type) { return type == ffi::PRED ? 2 : type == ffi::S32 ? 1 : 0; }

// `code` has five numbers for each instruction, `made` says which values are the outputs. `operands` and `outputs` say of
// each in which buffer it lies, from which number on, and how many numbers on in the next step.
ffi::Error ElementwiseOf(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                         ffi::Span<const int64_t> code, ffi::Span<const int64_t> made,
                         ffi::Span<const int64_t> operands, ffi::Span<const int64_t> outputs, int64_t num_values,
                         int64_t units, int64_t steps, int64_t num_carried, bool is_backward) {
  ffi::DataType type = ffi::F32;
  auto parts = [&](ffi::Span<const int64_t> places, auto&& buffer_of) {
    std::vector<Chain::Operand> found;
    for (const int64_t* place = places.begin(); place != places.end(); place += 3) {
      ffi::AnyBuffer buffer = buffer_of(place[0]);
      const int64_t kind = kind_of(buffer.element_type());
      if (kind == 0) type = buffer.element_type();
      char* const data = static_cast<char*>(buffer.untyped_data()) + place[1] * ffi::ByteWidth(buffer.element_type());
      found.push_back({data, kind, buffer.element_count() == 1 && units != 1, place[2]});
    }
    return found;
  };
  const auto in = parts(operands, [&](int64_t i) { return *args.get<ffi::AnyBuffer>(i); });
  const auto out = parts(outputs, [&](int64_t i) { return **results.get<ffi::AnyBuffer>(i); });
  const Chain chain{reinterpret_cast<const Chain::Instruction*>(code.begin()), int64_t(code.size() / 5), num_values,
                    int64_t(in.size()), int64_t(out.size()), in.data(), out.data(), made.begin(), steps, num_carried,
                    is_backward};
  return by_type(type, [&](auto zero) {
    const int64_t block = steps > 1 ? 1 << 10 : 1 << 14;
    parallel_for(pool, (units + block - 1) / block, [&](int64_t i) {
      table->of<decltype(zero)>().elementwise(chain, i * block, std::min((i + 1) * block, units));
    });
  });
}

// Memory that XLA has handed out for what a loop will write.
ffi::Error Room(ffi::ThreadPool, ffi::AnyBuffer, ffi::Result<ffi::AnyBuffer> room, ffi::Result<ffi::AnyBuffer>, int64_t) {
  expect_large(*room);
  return ffi::Error::Success();
}

// A binding to threads, to so many buffers that are given, and then to so many that are made.
template <int args, int rets>
auto buffers() {
  if constexpr (rets > 0) return buffers<args, rets - 1>().template Ret<ffi::AnyBuffer>();
  else if constexpr (args > 0) return buffers<args - 1, 0>().template Arg<ffi::AnyBuffer>();
  else return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_elementwise, ElementwiseOf,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("code")
                                  .Attr<ffi::Span<const int64_t>>("made")
                                  .Attr<ffi::Span<const int64_t>>("operands")
                                  .Attr<ffi::Span<const int64_t>>("outputs")
                                  .Attr<int64_t>("num_values")
                                  .Attr<int64_t>("units")
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("num_carried")
                                  .Attr<bool>("is_backward"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_influence, InfluenceOf, (buffers<18, 3>()).Attr<int64_t>("num_cut"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_push, Push,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_spmv, Spmv, (buffers<9, 2>()).Attr<int64_t>("units"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_spmv_ids, SpmvIds, (buffers<8, 2>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_spmv_t, SpmvT, (buffers<5, 2>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_window, WindowOf,
                              (buffers<11, 3>())
                                  .Attr<int64_t>("variables")
                                  .Attr<int64_t>("slots"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_features, FeaturesOf, (buffers<10, 3>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparse_etrace_room, Room, (buffers<1, 2>()).Attr<int64_t>("number"));

// The same number in sparse_etrace/_kernels/native.py.
extern "C" int sparse_etrace_interface() { return 12; }

extern "C" const char* sparse_etrace_kernels() {
  return table ? table->name : nullptr;
}

}  // namespace sparse_etrace
