// Products of rows with a weight that never changes, held in the order in which it is read.
//
// A weight [outputs, inputs] is cut into groups of 32 outputs, a group into steps of four bytes of
// inputs: [groups, steps, 2, 16, inputs of a step]. Where outputs are a multiple of 32 the two
// sixteens of a group are as far apart as half the outputs, so that a gate and what it gates are in
// one group; else next to each other, and missing ones are 0. Each sum runs over the inputs in one
// order, whatever rows are beside it and however many threads there are.

#pragma once

#include "common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace helix {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kColumns = 2 * kWide;
// Up to so many rows memory is the limit, and the processor fetches a stream best undisturbed.
constexpr int64_t kFetchRows = 8;

template <class T>
constexpr int64_t kStep = 4 / sizeof(T);

template <class T>
struct Weight {
  const T *packed, *bias;
  int64_t outputs, inputs;

  int64_t steps() const { return inputs / kStep<T>; }
  int64_t groups() const { return (outputs + kColumns - 1) / kColumns; }
  bool paired() const { return outputs % kColumns == 0; }
  const T *group(int64_t g) const { return packed + g * steps() * kColumns * kStep<T>; }
  int64_t column(int64_t g, int sixteen) const {
    return paired() ? sixteen * (outputs / 2) + g * kWide : g * kColumns + sixteen * kWide;
  }
};

inline __m512 multiply_add(__m512 sum, const float *x, const float *w) {
  return _mm512_fmadd_ps(_mm512_set1_ps(*x), _mm512_load_ps(w), sum);
}
#if defined(__AVX512BF16__)
inline __m512 multiply_add(__m512 sum, const bfloat *x, const bfloat *w) {
  int32_t pair;
  std::memcpy(&pair, x, 4);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_load_si512(w));
}
#endif

// ROWS rows times one group; sums [ROWS, 32].
template <class T, int ROWS, bool FETCH>
void tile(const T *x, int64_t stride, const T *w, int64_t steps, float *sums, const T *ahead) {
  __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm512_setzero_ps();
  for (int64_t step = 0; step < steps; ++step, w += kColumns * kStep<T>) {
    if (FETCH) _mm_prefetch(reinterpret_cast<const char *>(ahead) + 64 * step, _MM_HINT_T1);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const T *from = x + r * stride + step * kStep<T>;
      low[r] = multiply_add(low[r], from, w);
      high[r] = multiply_add(high[r], from, w + kWide * kStep<T>);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    _mm512_storeu_ps(sums + r * kColumns, low[r]);
    _mm512_storeu_ps(sums + r * kColumns + kWide, high[r]);
  }
}

template <class T, int ROWS = kTileRows>
void tile_of(int64_t rows, const T *x, int64_t stride, const T *w, int64_t steps, float *sums,
             const T *ahead) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of<T, ROWS - 1>(rows, x, stride, w, steps, sums, ahead);
  }
  if (ahead)
    tile<T, ROWS, true>(x, stride, w, steps, sums, ahead);
  else
    tile<T, ROWS, false>(x, stride, w, steps, sums, ahead);
}

// All products, shared among the threads of the surrounding parallel region, which wait for each
// other at the end. done(row, rows, group, sums) takes each tile. Threads take groups as they come:
// one that was held up by other work does fewer.
template <class T, class Done>
void multiply(const Weight<T> &weight, const T *x, int64_t rows, int threads, Done done) {
  const int64_t groups = weight.groups(), steps = weight.steps();
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t each = rows / tiles, more = rows % tiles;
#pragma omp for schedule(dynamic)
  for (int64_t group = 0; group < groups; ++group) {
    alignas(64) float sums[kTileRows * kColumns];
    const T *from = weight.group(group);
    // What is probably this thread's next group comes nearer in the meantime, half with each tile.
    const bool fetch = rows > kFetchRows && group + threads < groups;
    const T *ahead = fetch ? weight.group(group + threads) : nullptr;
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t now = each + (i < more);
      tile_of<T>(now, x + row * weight.inputs, weight.inputs, from, steps, sums,
                 fetch && i < 2 ? ahead + i * steps * kWide * kStep<T> : nullptr);
      done(row, now, group, sums);
      row += now;
    }
  }
}

// The sixteen outputs of a tile's row with the bias, as a T holds them.
template <class T>
inline wide output_of(const Weight<T> &weight, const float *sums, int64_t row, int64_t group,
                      int sixteen, int64_t count = kWide) {
  wide value = get_wide(sums + row * kColumns + sixteen * kWide);
  if (weight.bias) value += get_some(weight.bias + weight.column(group, sixteen), count);
  return rounded(value, weight.packed);
}
#endif

}  // namespace helix
