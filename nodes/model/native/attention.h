// Attention of one query over the pages of its row: of a decode, or of any token of a prompt.
//
// Scores of sixteen tokens at a time, then their softmax, then the values' sum. What a row gets
// depends on its own tokens alone, in one order.

#pragma once

#include <vector>

#include "common.h"
#include "team.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace helix {

// keys, values: [pages, kv_heads, page_tokens, width]; strides in elements.
template <class T>
struct Pages {
  const T *keys, *values;
  int64_t page_tokens, page_stride;
};

// Rows of a cache come from memory while those before them are computed, and pages lie anywhere, so
// the processor cannot guess which. Lines [from, to) of sixteen tokens.
template <class T, int WIDTH>
constexpr int kLines = kWide * WIDTH * sizeof(T) / 64;
inline void fetch(const void *p, int from, int to) {
  for (int i = from; i < to; ++i) __builtin_prefetch(static_cast<const char *>(p) + 64 * i, 0, 2);
}

// Tokens [first, end) of a row.
struct Span {
  const int32_t *pages;
  int64_t first, end;
};

// A query as its products with keys are made: sixteen partial sums of each.
template <class T, int WIDTH>
struct Query {
  wide parts[WIDTH / kWide];

  explicit Query(const T *from) {
    for (int i = 0; i < WIDTH / kWide; ++i) parts[i] = get_wide(from + i * kWide);
  }
  wide times(const T *key) const {
    wide sum = {};
    for (int i = 0; i < WIDTH / kWide; ++i) sum += parts[i] * get_wide(key + i * kWide);
    return sum;
  }
};

#if defined(__AVX512BF16__)
template <int WIDTH>
struct PairQuery {
  static constexpr int kParts = WIDTH / 32;
  __m512bh parts[kParts];

  explicit PairQuery(const bfloat *from) {
    for (int i = 0; i < kParts; ++i) parts[i] = (__m512bh)_mm512_loadu_si512(from + i * 32);
  }
  wide times(const bfloat *key) const {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < kParts; ++i)
      sum = _mm512_dpbf16_ps(sum, parts[i], (__m512bh)_mm512_loadu_si512(key + i * 32));
    return (wide)sum;
  }
};
template <>
struct Query<bfloat, 32> : PairQuery<32> {
  using PairQuery::PairQuery;
};
template <>
struct Query<bfloat, 64> : PairQuery<64> {
  using PairQuery::PairQuery;
};
template <>
struct Query<bfloat, 96> : PairQuery<96> {
  using PairQuery::PairQuery;
};
template <>
struct Query<bfloat, 128> : PairQuery<128> {
  using PairQuery::PairQuery;
};
#endif

// Sums of sixteen vectors' elements: lane i of the result is that of p[i]. In pairs, then fours
// within quarters of a register, then across them.
inline wide totals_of(wide *p) {
  for (int i = 0; i < 16; i += 2) {
    constexpr wide_ints low{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
    constexpr wide_ints high{2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
    p[i] = __builtin_shuffle(p[i], p[i + 1], low) + __builtin_shuffle(p[i], p[i + 1], high);
  }
  for (int i = 0; i < 16; i += 4) {
    constexpr wide_ints low{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    constexpr wide_ints high{2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
    p[i] = __builtin_shuffle(p[i], p[i + 2], low) + __builtin_shuffle(p[i], p[i + 2], high);
  }
  for (int i = 0; i < 16; i += 8) {
    constexpr wide_ints low{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    constexpr wide_ints high{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
    p[i] = __builtin_shuffle(p[i], p[i + 4], low) + __builtin_shuffle(p[i], p[i + 4], high);
  }
  constexpr wide_ints low{0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
  constexpr wide_ints high{4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
  return __builtin_shuffle(p[0], p[8], low) + __builtin_shuffle(p[0], p[8], high);
}

// Softmax of `count` scores times `scale`, where they are.
inline void softmax(float *scores, int64_t count, float scale) {
  float most = scores[0];
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < count; ++i) most = scores[i] > most ? scores[i] : most;
  wide sums = {};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) {
    const wide weight = exponential((get_wide(scores + i) - most) * scale);
    put_wide(scores + i, weight);
    sums += weight;
  }
  float total = total_of(sums);
  if (i < count) {
    wide weight = exponential((get_some(scores + i, count - i) - most) * scale);
    put_some(scores + i, weight, count - i);
    for (; i < count; ++i) total += scores[i];
  }
  const float share = 1.0f / total;
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) scores[k] *= share;
}

// A value's elements as sums hold them: of bfloat16 the even ones and then the odd ones of each 32.
template <class T, int WIDTH>
struct Value {
  static constexpr int kParts = WIDTH / kWide;
  static constexpr bool kPairs = sizeof(T) == 2 && WIDTH % 32 == 0;

  static void add(wide (&sums)[kParts], const wide (&parts)[kParts], float weight) {
    for (int i = 0; i < kParts; ++i) sums[i] += weight * parts[i];
  }
  static void read(const T *from, wide (&parts)[kParts]) {
    if constexpr (kPairs) {
      for (int i = 0; i < kParts; i += 2) {
        wide_bits both;
        std::memcpy(&both, from + i * kWide, sizeof both);
        const wide_bits even = both << 16, odd = both & 0xffff0000u;
        std::memcpy(&parts[i], &even, sizeof even);
        std::memcpy(&parts[i + 1], &odd, sizeof odd);
      }
    } else {
      for (int i = 0; i < kParts; ++i) parts[i] = get_wide(from + i * kWide);
    }
  }
  static void write(T *to, const wide (&sums)[kParts]) {
    if constexpr (kPairs) {
      for (int i = 0; i < kParts; i += 2)
        for (int j = 0; j < kWide; ++j) {
          put(to + i * kWide + 2 * j, sums[i][j]);
          put(to + i * kWide + 2 * j + 1, sums[i + 1][j]);
        }
    } else {
      for (int i = 0; i < kParts; ++i) put_wide(to + i * kWide, sums[i]);
    }
  }
};

// COUNT queries that share a key/value head, over the tokens of `row`; those of `next` are fetched
// meanwhile where they are others. `scores` has room for COUNT * (end - first rounded down to
// sixteen + 16).
template <class T, int WIDTH, int COUNT>
void attend_one(const T *query, const Pages<T> &cache, const Span &row, const Pages<T> &next_cache,
                const Span &next, float scale, T *out, float *scores) {
  using V = Value<T, WIDTH>;
  constexpr int kEach = (kLines<T, WIDTH> + COUNT - 1) / COUNT;
  const int64_t first = row.first, end = row.end;
  const int64_t page_tokens = cache.page_tokens, stride = cache.page_stride;
  const bool sixteens = page_tokens % kWide == 0;
  const int64_t from = sixteens ? first & ~int64_t{kWide - 1} : first;
  const int64_t room = (end - from + kWide - 1) & ~int64_t{kWide - 1};
  const int64_t next_from = next.first & ~int64_t{kWide - 1};
  const bool others = next.pages != row.pages || next_cache.keys != cache.keys;
  for (int64_t at = from; at < end;) {
    const int64_t page = at / page_tokens, offset = at % page_tokens;
    const T *key = cache.keys + row.pages[page] * stride + offset * WIDTH;
    if (sixteens) {
      // Whole sixteens are in one page, so that what is behind the row's end may be read, too.
      const int64_t there = std::min(next_from + at - from, next.end - 1);
      const int64_t place =
          next.pages[there / page_tokens] * stride + there % page_tokens / kWide * kWide * WIDTH;
      for (int g = 0; g < COUNT; ++g) {
        const int lines = std::min(kLines<T, WIDTH>, (g + 1) * kEach);
        if (others) fetch(next_cache.keys + place, g * kEach, lines);
        const Query<T, WIDTH> q(query + g * WIDTH);
        wide products[kWide];
#pragma GCC unroll 16
        for (int t = 0; t < kWide; ++t) products[t] = q.times(key + t * WIDTH);
        if (others) fetch(next_cache.values + place, g * kEach, lines);
        put_wide(scores + g * room + at - from, totals_of(products));
      }
      at += kWide;
    } else {
      const int64_t stop = std::min(end, (page + 1) * page_tokens);
      for (int g = 0; g < COUNT; ++g) {
        const Query<T, WIDTH> q(query + g * WIDTH);
        for (int64_t t = 0; t < stop - at; ++t)
          scores[g * room + at - from + t] = total_of(q.times(key + t * WIDTH));
      }
      at = stop;
    }
  }
  wide sums[COUNT][V::kParts] = {};
  for (int g = 0; g < COUNT; ++g) softmax(scores + g * room + first - from, end - first, scale);
  for (int64_t at = first; at < end;) {
    const int64_t page = at / page_tokens, stop = std::min(end, (page + 1) * page_tokens);
    const T *value = cache.values + row.pages[page] * stride + at % page_tokens * WIDTH;
    for (; at < stop; ++at, value += WIDTH) {
      wide parts[V::kParts];
      V::read(value, parts);
      for (int g = 0; g < COUNT; ++g) V::add(sums[g], parts, scores[g * room + at - from]);
    }
  }
  for (int g = 0; g < COUNT; ++g) V::write(out + g * WIDTH, sums[g]);
}

// All `group` queries of a key/value head, at most four at a time: so many sums fit the registers.
template <class T, int WIDTH>
void attend_group(const T *query, const Pages<T> &cache, const Span &row,
                  const Pages<T> &next_cache, const Span &next, int64_t group, T *out) {
  static thread_local std::vector<float> scores;
  scores.resize(4 * (row.end - row.first + 2 * kWide));
  const float scale = 1.0f / std::sqrt(static_cast<float>(WIDTH));
  for (int64_t done = 0; done < group;) {
    const int64_t now = std::min<int64_t>(4, group - done);
    auto one = now == 4   ? attend_one<T, WIDTH, 4>
               : now == 3 ? attend_one<T, WIDTH, 3>
               : now == 2 ? attend_one<T, WIDTH, 2>
                          : attend_one<T, WIDTH, 1>;
    one(query + done * WIDTH, cache, row, next_cache, next, scale, out + done * WIDTH,
        scores.data());
    done += now;
  }
}

// What the tokens of a pass see: query rows `query_stride` apart; tables: page ids of each row,
// `table_stride` apart; owners: the row of each token, nothing where each has its own; each sees
// tokens [firsts, ends) of its row.
template <class T>
struct Seen {
  const T *query;
  int64_t query_stride;
  const int32_t *tables;
  int64_t table_stride;
  const int32_t *owners, *firsts, *ends;
};

// All tokens and key/value heads, shared among the team of `member`. out: [tokens, heads, width];
// widths are those of kernels.py.
template <class T>
void attend(const Seen<T> &seen, Pages<T> cache, T *out, int64_t tokens, int64_t heads,
            int64_t kv_heads, int64_t width, Member &member) {
  const int64_t group = heads / kv_heads, head_stride = cache.page_tokens * width;
  auto all = width == 16   ? attend_group<T, 16>
             : width == 32 ? attend_group<T, 32>
             : width == 64 ? attend_group<T, 64>
             : width == 96 ? attend_group<T, 96>
                           : attend_group<T, 128>;
  cache.page_stride = kv_heads * head_stride;
  const int64_t tasks = tokens * kv_heads;
  // A page's heads lie side by side. But tokens of one row see nearly the same, head by head.
  const auto token_of = [&](int64_t task) { return seen.owners ? task % tokens : task / kv_heads; };
  const auto head_of = [&](int64_t task) { return seen.owners ? task / tokens : task % kv_heads; };
  const auto row_of = [&](int64_t task) {
    const int64_t token = token_of(task), row = seen.owners ? seen.owners[token] : token;
    return Span{seen.tables + row * seen.table_stride, seen.firsts[token], seen.ends[token]};
  };
  const auto cache_of = [&](int64_t task) {
    const int64_t skip = head_of(task) * head_stride;
    return Pages<T>{cache.keys + skip, cache.values + skip, cache.page_tokens, cache.page_stride};
  };
  member.share(tasks, [&](int64_t task) {
    const int64_t token = token_of(task), head = head_of(task);
    const int64_t after = std::min(task + 1, tasks - 1);
    all(seen.query + token * seen.query_stride + head * group * width, cache_of(task), row_of(task),
        cache_of(after), row_of(after), group, out + (token * heads + head * group) * width);
  });
}

}  // namespace helix
