// What surrounds the matrix products of a pass on a CPU, each as one pass over its data, and the
// products themselves where the processor has wide registers.
//
// Plain C functions on plain pointers, compiled on the machine they run on (build.py). A row's
// result depends on that row alone, in the same order of operations whatever rows are beside it.
// Sums are in float; a NaN that comes in comes out. The caller checks shapes.

#include "decode.h"

namespace helix {
namespace {

template <class T>
void add_norm(const T *x, const T *delta, const T *weight, T *sum, T *out, int64_t rows,
              int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const T *from = x + row * width;
    if (delta) {
      add_row(from, delta + row * width, sum + row * width, width);
      from = sum + row * width;
    }
    norm_row(from, weight, out + row * width, width, eps);
  }
}

template <class T>
void silu_mul(const T *gate_up, T *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + 2 * row * width;
    silu_row(gate, gate + width, out + row * width, width);
  }
}

template <class T>
void rotate_store(T *qkv, const T *q_norm, const T *k_norm, const T *cos, const T *sin,
                  const int64_t *slots, T *keys, T *values, int64_t tokens, int64_t heads,
                  int64_t kv_heads, int64_t width, float eps, int threads) {
  const Heads of{heads, kv_heads, width, eps};
  const int64_t each = of.all() * width;
#pragma omp parallel for num_threads(threads) if (threads > 1 && tokens * each > kWorthThreads)
  for (int64_t token = 0; token < tokens; ++token)
    rotate_store_row(of, qkv + token * each, q_norm, k_norm, cos + token * width,
                     sin + token * width, slots + token * kv_heads, keys, values);
}

template <class T>
void attend_tokens(const T *query, int64_t query_stride, const T *keys, const T *values,
                   const int32_t *tables, int64_t table_stride, const int32_t *owners,
                   const int32_t *firsts, const int32_t *ends, T *out, int64_t tokens,
                   int64_t heads, int64_t kv_heads, int64_t width, int64_t page_tokens,
                   int threads) {
  const Seen<T> seen{query, query_stride, tables, table_stride, owners, firsts, ends};
  together(threads, true, [&](Member &member) {
    attend(seen, Pages<T>{keys, values, page_tokens, 0}, out, tokens, heads, kv_heads, width,
           member);
  });
}

}  // namespace
}  // namespace helix

using helix::bfloat;

#define HELIX_FOR(T, SUFFIX)                                                                       \
  extern "C" void add_norm_##SUFFIX(const T *x, const T *delta, const T *weight, T *sum, T *out,   \
                                    int64_t rows, int64_t width, float eps, int threads) {         \
    helix::add_norm(x, delta, weight, sum, out, rows, width, eps, threads);                        \
  }                                                                                                \
  extern "C" void silu_mul_##SUFFIX(const T *gate_up, T *out, int64_t rows, int64_t width,         \
                                    int threads) {                                                 \
    helix::silu_mul(gate_up, out, rows, width, threads);                                           \
  }                                                                                                \
  extern "C" void rotate_store_##SUFFIX(                                                           \
      T *qkv, const T *q_norm, const T *k_norm, const T *cos, const T *sin, const int64_t *slots,  \
      T *keys, T *values, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width,          \
      float eps, int threads) {                                                                    \
    helix::rotate_store(qkv, q_norm, k_norm, cos, sin, slots, keys, values, tokens, heads,         \
                        kv_heads, width, eps, threads);                                            \
  }                                                                                                \
  extern "C" void attend_##SUFFIX(const T *query, int64_t query_stride, const T *keys,             \
                                  const T *values, const int32_t *tables, int64_t table_stride,    \
                                  const int32_t *owners, const int32_t *firsts,                    \
                                  const int32_t *ends, T *out, int64_t tokens, int64_t heads,      \
                                  int64_t kv_heads, int64_t width, int64_t page_tokens,            \
                                  int threads) {                                                   \
    helix::attend_tokens(query, query_stride, keys, values, tables, table_stride, owners, firsts,  \
                         ends, out, tokens, heads, kv_heads, width, page_tokens, threads);         \
  }

HELIX_FOR(float, float32)
HELIX_FOR(bfloat, bfloat16)

// Missing where the processor has no instructions that make them worth while; kernels.py looks.
#define HELIX_PRODUCT(T, SUFFIX)                                                                 \
  extern "C" void product_##SUFFIX(const T *x, const T *packed, const T *bias, T *out,           \
                                   int64_t rows, int64_t outputs, int64_t inputs, int threads) { \
    helix::product(x, packed, bias, out, rows, outputs, inputs, threads);                        \
  }                                                                                              \
  extern "C" void product_floats_##SUFFIX(const T *x, const T *packed, const T *bias,            \
                                          float *out, int64_t rows, int64_t outputs,             \
                                          int64_t inputs, int threads) {                         \
    helix::product(x, packed, bias, out, rows, outputs, inputs, threads);                        \
  }                                                                                              \
  extern "C" void layers_##SUFFIX(const helix::Layer<T> *layers, const helix::Sizes *sizes,      \
                                  const helix::Pass<T> *pass, float eps, int threads) {          \
    helix::run_layers(layers, *sizes, *pass, eps, threads);                                      \
  }                                                                                              \
  extern "C" int decode_##SUFFIX(const helix::Layer<T> *layers, const helix::Sizes *sizes,       \
                                 const helix::Step<T> *step, float eps, int threads,             \
                                 int head_threads) {                                             \
    return helix::decode(layers, *sizes, *step, eps, threads, head_threads);                     \
  }                                                                                              \
  HELIX_CREW_DECODE(T, SUFFIX)

#if defined(__linux__)
#define HELIX_CREW_DECODE(T, SUFFIX)                                                             \
  extern "C" void crew_decode_##SUFFIX(helix::Crew *crew, const helix::Layer<T> *layers,         \
                                       const helix::Sizes *sizes, const helix::Step<T> *step,    \
                                       float eps, int threads, int head_threads) {               \
    const bool wide_end = step->head && helix::worth_threads(step->vocabulary * sizes->hidden);  \
    crew->post(                                                                                  \
        [=, of = *sizes, step = *step] {                                                         \
          return helix::decode(layers, of, step, eps, threads, head_threads);                    \
        },                                                                                       \
        wide_end ? head_threads : threads);                                                      \
  }

// Nothing where no thread starts.
extern "C" helix::Crew *crew_start(int threads, int bell) {
  try {
    return new helix::Crew(threads, bell);
  } catch (...) {
    return nullptr;
  }
}
extern "C" int crew_took(helix::Crew *crew, double *times) { return crew->took(times); }
// Returns after the job in progress.
extern "C" void crew_stop(helix::Crew *crew) { delete crew; }
#else
#define HELIX_CREW_DECODE(T, SUFFIX)
#endif

#if defined(__AVX512F__)
// By themselves for draws.py and the tests; decode() has them inlined.
extern "C" float highest_float32(const float *row, int64_t count, int64_t *at) {
  return helix::highest_of(row, count, at);
}
extern "C" double uniform_number(uint64_t seed, int64_t position) {
  return helix::uniform(seed, position);
}

// Tokens of rows of logits, each by its choice and its number.
extern "C" void draw_float32(const float *logits, int64_t rows, int64_t count,
                             const helix::Choice *choices, const double *numbers, int64_t *tokens,
                             int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1) schedule(dynamic)
  for (int64_t row = 0; row < rows; ++row)
    helix::choose_row(logits + row * count, count, choices[row], numbers[row], tokens + row);
}

// What probabilities rows of logits give to these tokens, and to their best ones.
extern "C" void odds_float32(float *logits, int64_t rows, int64_t count, const int64_t *tokens,
                             const helix::Odds *odds, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1) schedule(dynamic)
  for (int64_t row = 0; row < rows; ++row)
    helix::RowOdds(odds, row, logits + row * count, count, false).end(tokens[row]);
}
#endif

#if defined(__AVX512F__)
HELIX_PRODUCT(float, float32)
#endif
#if defined(__AVX512BF16__)
HELIX_PRODUCT(bfloat, bfloat16)
#endif
