// Products of rows with a weight that never changes, held in the order in which it is read.
//
// A weight [outputs, inputs] is cut into groups of 32 outputs, a group into steps of four bytes of
// inputs: [groups, steps, 2, 16, inputs of a step]. Where outputs are a multiple of 32 the two
// sixteens of a group are as far apart as half the outputs, so that a gate and what it gates are in
// one group; else next to each other, and missing ones are 0. Each sum runs over the inputs in one
// order, whatever rows are beside it and however many threads there are.

#pragma once

#include <vector>

#include "common.h"
#include "crew.h"

namespace helix {

#if defined(__AVX512F__)
constexpr int kTileRows = 12, kColumns = 2 * kWide;
// Tiles that share what a thread has of a weight in its caches, and how much that is: 64 KiB.
constexpr int64_t kBlockTiles = 8, kBlockSteps = 512;

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

// ROWS rows times `steps` of one group, added to sums [ROWS, 32]. Rows are `stride` apart, or side
// by side where they are ORDERED. `ahead` is fetched meanwhile: for fewer rows memory is the limit,
// and the processor fetches one stream best undisturbed.
template <class T, int ROWS, bool ORDERED>
void tile(const T *x, int64_t stride, const T *w, int64_t steps, float *sums, const T *ahead) {
  __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    low[r] = _mm512_load_ps(sums + r * kColumns);
    high[r] = _mm512_load_ps(sums + r * kColumns + kWide);
  }
  for (int64_t step = 0; step < steps; ++step, w += kColumns * kStep<T>) {
    if (ROWS > 8) _mm_prefetch(reinterpret_cast<const char *>(ahead) + 64 * step, _MM_HINT_T1);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const T *from = ORDERED ? x + step * stride + r * kStep<T> : x + r * stride + step * kStep<T>;
      low[r] = multiply_add(low[r], from, w);
      high[r] = multiply_add(high[r], from, w + kWide * kStep<T>);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    _mm512_store_ps(sums + r * kColumns, low[r]);
    _mm512_store_ps(sums + r * kColumns + kWide, high[r]);
  }
}

template <class T, bool ORDERED, int ROWS = kTileRows>
void tile_of(int64_t rows, const T *x, int64_t stride, const T *w, int64_t steps, float *sums,
             const T *ahead) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_of<T, ORDERED, ROWS - 1>(rows, x, stride, w, steps, sums, ahead);
  }
  tile<T, ROWS, ORDERED>(x, stride, w, steps, sums, ahead);
}

// The rows of a product, `count` of them: one after the other, or as order_rows() has them.
template <class T>
struct Rows {
  const T *x;
  int64_t count;
  bool ordered = false;

  int64_t tiles() const { return (count + kTileRows - 1) / kTileRows; }
  // Of each tile but the last; tiles of about the same size take the least time together.
  int64_t each() const { return (count + tiles() - 1) / tiles(); }
};

// Whether rows lie so that those of a tile fall into the same lines of a cache, and are so many
// that it is worth to order them.
template <class T>
inline bool should_order(int64_t count, int64_t inputs) {
  return count >= 48 && inputs * sizeof(T) % 1024 == 0;
}

// The rows of a tile side by side, step by step. `to` has room for tiles() * each() rows.
template <class T>
void order_rows(const Rows<T> &rows, int64_t inputs, T *to, Member &member) {
  const int64_t each = rows.each();
  member.share(rows.tiles(), [&](int64_t tile) {
    T *place = to + tile * each * inputs;
    for (int64_t step = 0; step < inputs; step += kStep<T>)
      for (int64_t row = tile * each; row < (tile + 1) * each; ++row, place += kStep<T>)
        std::memcpy(place, rows.x + std::min(row, rows.count - 1) * inputs + step, 4);
  });
}

// How many elements order_rows() writes where they should be in order; never more for fewer rows.
template <class T>
inline int64_t ordered_elements(int64_t count, int64_t inputs) {
  const Rows<T> rows{nullptr, count};
  return should_order<T>(count, inputs) ? rows.tiles() * rows.each() * inputs : 0;
}

// Only grows: what is made anew is cleared.
template <class T>
void make_room(std::vector<T> &room, int64_t elements) {
  if (static_cast<int64_t>(room.size()) < elements) room.resize(elements);
}

// `count` rows as a product reads them best; `room` has space for ordered_elements().
template <class T>
Rows<T> laid_out(const T *x, int64_t count, int64_t inputs, T *room, Member &member) {
  const Rows<T> rows{x, count};
  if (!should_order<T>(count, inputs)) return rows;
  order_rows(rows, inputs, room, member);
  return Rows<T>{room, count, true};
}

// All products, shared among the team of `member`. done(row, rows, group, sums) takes each tile.
// Threads take groups as they come: one that was held up by other work does fewer.
template <class T, class Done>
void multiply(const Weight<T> &weight, const Rows<T> &rows, Member &member, Done done) {
  const int64_t groups = weight.groups(), steps = weight.steps();
  const int64_t tiles = rows.tiles(), each = rows.each();
  const int64_t stride = rows.ordered ? each * kStep<T> : weight.inputs;
  const int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
  member.share(blocks * groups, [&](int64_t task) {
    alignas(64) float sums[kBlockTiles * kTileRows * kColumns];
    const int64_t block = task / groups, group = task % groups;
    const int64_t first = tiles * block / blocks, past = tiles * (block + 1) / blocks;
    std::fill_n(sums, (past - first) * kTileRows * kColumns, 0.0f);
    // What is probably this thread's next group comes nearer in the meantime, half with each tile.
    const int64_t next = std::min(group + 1, groups - 1);
    for (int64_t step = 0; step < steps; step += kBlockSteps) {
      const int64_t now = std::min(kBlockSteps, steps - step);
      const T *from = weight.group(group) + step * kColumns * kStep<T>;
      const T *ahead = weight.group(next) + step * kColumns * kStep<T>;
      for (int64_t i = 0; i < past - first; ++i) {
        const int64_t row = (first + i) * each;
        (rows.ordered ? tile_of<T, true> : tile_of<T, false>)(
            std::min(each, rows.count - row),
            rows.x + row * weight.inputs + step * (rows.ordered ? stride : kStep<T>),
            stride, from, now, sums + i * kTileRows * kColumns,
            i < 2 ? ahead + i * now * kWide * kStep<T> : from);
      }
    }
    for (int64_t i = 0; i < past - first; ++i) {
      const int64_t row = (first + i) * each;
      done(row, std::min(each, rows.count - row), group, sums + i * kTileRows * kColumns);
    }
  });
}

// The sixteen outputs of a tile's row with the bias, as a T holds them.
template <class T>
inline wide output_of(const Weight<T> &weight, const float *sums, int64_t row, int64_t group,
                      int sixteen, int64_t count = kWide) {
  wide value = get_wide(sums + row * kColumns + sixteen * kWide);
  if (weight.bias) value += get_some(weight.bias + weight.column(group, sixteen), count);
  return rounded(value, weight.packed);
}

// out: [rows, outputs], of T or of float. after(member): what the threads do with it before they
// part, as each time that they meet may have to wait for one whose processor others have.
template <class T, class Out, class After>
void product(const T *x, const T *packed, const T *bias, Out *out, int64_t rows, int64_t outputs,
             int64_t inputs, int threads, After after) {
  static thread_local std::vector<T> space;
  const Weight<T> weight{packed, bias, outputs, inputs};
  make_room(space, ordered_elements<T>(rows, inputs));
  T *const room = space.data();
  const auto store = [&](int64_t row, int64_t count, int64_t group, const float *sums) {
    for (int sixteen = 0; sixteen < 2; ++sixteen) {
      const int64_t column = weight.column(group, sixteen);
      const int64_t some = std::min<int64_t>(kWide, outputs - column);
      Out *to = out + row * outputs + column;
      for (int64_t i = 0; i < count && some == kWide; ++i, to += outputs)
        put_wide(to, output_of(weight, sums, i, group, sixteen));
      for (int64_t i = 0; i < count && some > 0 && some < kWide; ++i, to += outputs)
        put_some(to, output_of(weight, sums, i, group, sixteen, some), some);
    }
  };
  together(threads, worth_threads(outputs * inputs), [&](Member &member) {
    multiply(weight, laid_out(x, rows, inputs, room, member), member, store);
    after(member);
  });
}

template <class T, class Out>
void product(const T *x, const T *packed, const T *bias, Out *out, int64_t rows, int64_t outputs,
             int64_t inputs, int threads) {
  product(x, packed, bias, out, rows, outputs, inputs, threads, [](Member &) {});
}
#endif

}  // namespace helix
