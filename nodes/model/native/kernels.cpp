// What surrounds the matrix products of a decode step on a CPU, each as one pass over its data:
// residual and norm, rotation and KV write, attention over paged keys and values, gated activation.
//
// Plain C functions on plain pointers, compiled on the machine they run on (build.py). A row's
// result depends on that row alone, in the same order of operations whatever rows are beside it.
// Sums are in float; a NaN that comes in comes out. The caller checks shapes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat {
  uint16_t bits;
};

inline float get(const float *p) { return *p; }
inline float get(const bfloat *p) {
  uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline void put(float *p, float value) { *p = value; }
inline void put(bfloat *p, float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  // To nearest, ties to even; a NaN must not be carried over into a number.
  uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// e^x to 2 units in the last place, without branches, so that loops of it become vectors. Below
// -87 it is that of -87: next to nothing.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = std::nearbyintf(x * 1.44269504088896341f);
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent, 4);
  return y * power;
}

// Elements that are worth a second thread's waking up.
constexpr int64_t kWorthThreads = 16384;

template <class T>
void add_norm(const T *x, const T *delta, const T *weight, T *sum, T *out, int64_t rows,
              int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const T *from = x + row * width;
    float squares = 0.0f;
    if (delta) {
      const T *more = delta + row * width;
      T *to = sum + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) put(to + i, get(from + i) + get(more + i));
      from = to;
    }
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += get(from + i) * get(from + i);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    T *to = out + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) put(to + i, get(from + i) * scale * get(weight + i));
  }
}

template <class T>
void silu_mul(const T *gate_up, T *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + 2 * row * width, *up = gate + width;
    T *to = out + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      float g = get(gate + i);
      put(to + i, g / (1.0f + exponential(-g)) * get(up + i));
    }
  }
}

// qkv: [tokens, heads + 2 * kv_heads, width], queries and keys turned in place; keys and values
// also to rows `slots` of the cache. The first half of `sin` is negated.
template <class T>
void rotate_store(T *qkv, const T *cos, const T *sin, const int64_t *slots, T *keys, T *values,
                  int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width, int threads) {
  const int64_t all = heads + 2 * kv_heads, half = width / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1 && tokens * all * width > kWorthThreads)
  for (int64_t token = 0; token < tokens; ++token) {
    T *row = qkv + token * all * width;
    const T *c = cos + token * width, *s = sin + token * width;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      T *a = row + head * width, *b = a + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const float low = get(a + i), high = get(b + i);
        put(a + i, low * get(c + i) + high * get(s + i));
        put(b + i, high * get(c + half + i) + low * get(s + half + i));
      }
    }
    for (int64_t head = 0; head < kv_heads; ++head) {
      const int64_t to = slots[token * kv_heads + head] * width;
      std::memcpy(keys + to, row + (heads + head) * width, width * sizeof(T));
      std::memcpy(values + to, row + (heads + kv_heads + head) * width, width * sizeof(T));
    }
  }
}

// Sixteen floats; one register with AVX-512, two or four elsewhere.
typedef float wide __attribute__((vector_size(64)));
constexpr int kWide = 16;

inline wide get_wide(const float *p) {
  wide value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline wide get_wide(const bfloat *p) {
  typedef uint16_t shorts __attribute__((vector_size(32)));
  typedef uint32_t longs __attribute__((vector_size(64)));
  shorts bits;
  std::memcpy(&bits, p, sizeof bits);
  longs shifted = __builtin_convertvector(bits, longs) << 16;
  wide value;
  std::memcpy(&value, &shifted, sizeof value);
  return value;
}

inline float total_of(wide v) {
  typedef float half __attribute__((vector_size(32)));
  typedef float quarter __attribute__((vector_size(16)));
  half h[2];
  std::memcpy(h, &v, sizeof v);
  h[0] += h[1];
  quarter q[2];
  std::memcpy(q, h, sizeof h[0]);
  q[0] += q[1];
  return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

// The line of the cache that the next page's token at the same place is in: pages lie anywhere, so
// the processor cannot guess it.
template <class T, int WIDTH>
inline void fetch(const T *p) {
  for (size_t i = 0; i < WIDTH * sizeof(T); i += 64)
    __builtin_prefetch(reinterpret_cast<const char *>(p) + i);
}

// COUNT queries that share a key/value head, over tokens [first, end) of one row. `scores` has room
// for COUNT * (end - first).
template <class T, int WIDTH, int COUNT>
void attend_one(const T *query, const T *keys, const T *values, const int32_t *pages, int64_t first,
                int64_t end, int64_t page_tokens, int64_t page_stride, float scale, T *out,
                float *scores) {
  constexpr int kParts = WIDTH / kWide;
  const int64_t count = end - first;
  wide q[COUNT][kParts], sums[COUNT][kParts];
  for (int g = 0; g < COUNT; ++g)
    for (int i = 0; i < kParts; ++i) {
      q[g][i] = get_wide(query + g * WIDTH + i * kWide) * scale;
      sums[g][i] = wide{};
    }
  for (int64_t at = first; at < end;) {
    const int64_t stop = std::min(end, (at / page_tokens + 1) * page_tokens);
    const int64_t page = at / page_tokens, next = stop < end ? page + 1 : page;
    const T *key = keys + pages[page] * page_stride + at % page_tokens * WIDTH;
    const int64_t ahead = (pages[next] - static_cast<int64_t>(pages[page])) * page_stride;
    for (; at < stop; ++at, key += WIDTH) {
      fetch<T, WIDTH>(key + ahead);
      wide products[COUNT] = {};
      for (int i = 0; i < kParts; ++i) {
        const wide part = get_wide(key + i * kWide);
        for (int g = 0; g < COUNT; ++g) products[g] += q[g][i] * part;
      }
      for (int g = 0; g < COUNT; ++g) scores[g * count + at - first] = total_of(products[g]);
    }
  }
  for (int g = 0; g < COUNT; ++g) {
    float *row = scores + g * count;
    float most = row[0], total = 0.0f;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < count; ++i) most = row[i] > most ? row[i] : most;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) {
      row[i] = exponential(row[i] - most);
      total += row[i];
    }
    const float share = 1.0f / total;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) row[i] *= share;
  }
  for (int64_t at = first; at < end;) {
    const int64_t stop = std::min(end, (at / page_tokens + 1) * page_tokens);
    const int64_t page = at / page_tokens, next = stop < end ? page + 1 : page;
    const T *value = values + pages[page] * page_stride + at % page_tokens * WIDTH;
    const int64_t ahead = (pages[next] - static_cast<int64_t>(pages[page])) * page_stride;
    for (; at < stop; ++at, value += WIDTH) {
      fetch<T, WIDTH>(value + ahead);
      for (int i = 0; i < kParts; ++i) {
        const wide part = get_wide(value + i * kWide);
        for (int g = 0; g < COUNT; ++g) sums[g][i] += scores[g * count + at - first] * part;
      }
    }
  }
  for (int g = 0; g < COUNT; ++g)
    for (int i = 0; i < kParts; ++i)
      for (int j = 0; j < kWide; ++j) put(out + g * WIDTH + i * kWide + j, sums[g][i][j]);
}

// All `group` queries of a key/value head, at most four at a time: so many sums fit the registers.
template <class T, int WIDTH>
void attend_group(const T *query, const T *keys, const T *values, const int32_t *pages,
                  int64_t first, int64_t end, int64_t group, int64_t page_tokens,
                  int64_t page_stride, float scale, T *out, float *scores) {
  for (int64_t done = 0; done < group;) {
    const T *from = query + done * WIDTH;
    T *to = out + done * WIDTH;
    const int64_t now = std::min<int64_t>(4, group - done);
    auto one = now == 4   ? attend_one<T, WIDTH, 4>
               : now == 3 ? attend_one<T, WIDTH, 3>
               : now == 2 ? attend_one<T, WIDTH, 2>
                          : attend_one<T, WIDTH, 1>;
    one(from, keys, values, pages, first, end, page_tokens, page_stride, scale, to, scores);
    done += now;
  }
}

// query: rows `query_stride` apart; cache: [pages, kv_heads, page_tokens, width]; tables: page ids
// of each row, `table_stride` apart; a row sees tokens [firsts, ends) of its own. Widths are those
// of kernels.py.
template <class T>
void attend(const T *query, int64_t query_stride, const T *keys, const T *values,
            const int32_t *tables, int64_t table_stride, const int32_t *firsts,
            const int32_t *ends, T *out, int64_t rows, int64_t heads, int64_t kv_heads,
            int64_t width, int64_t page_tokens, float scale, int threads) {
  const int64_t group = heads / kv_heads, head_stride = page_tokens * width;
  auto all = width == 16   ? attend_group<T, 16>
             : width == 32 ? attend_group<T, 32>
             : width == 64 ? attend_group<T, 64>
             : width == 96 ? attend_group<T, 96>
                           : attend_group<T, 128>;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < rows * kv_heads; ++task) {
    static thread_local std::vector<float> space;
    const int64_t row = task / kv_heads, head = task % kv_heads;
    space.resize(4 * (ends[row] - firsts[row]));
    all(query + row * query_stride + head * group * width, keys + head * head_stride,
        values + head * head_stride, tables + row * table_stride, firsts[row], ends[row], group,
        page_tokens, kv_heads * head_stride, scale,
        out + (row * heads + head * group) * width, space.data());
  }
}

}  // namespace

#define HELIX_FOR(T, SUFFIX)                                                                     \
  extern "C" void add_norm_##SUFFIX(const T *x, const T *delta, const T *weight, T *sum, T *out, \
                                    int64_t rows, int64_t width, float eps, int threads) {       \
    add_norm(x, delta, weight, sum, out, rows, width, eps, threads);                             \
  }                                                                                              \
  extern "C" void silu_mul_##SUFFIX(const T *gate_up, T *out, int64_t rows, int64_t width,       \
                                    int threads) {                                               \
    silu_mul(gate_up, out, rows, width, threads);                                                \
  }                                                                                              \
  extern "C" void rotate_store_##SUFFIX(T *qkv, const T *cos, const T *sin,                      \
                                        const int64_t *slots, T *keys, T *values,                \
                                        int64_t tokens, int64_t heads, int64_t kv_heads,         \
                                        int64_t width, int threads) {                            \
    rotate_store(qkv, cos, sin, slots, keys, values, tokens, heads, kv_heads, width, threads);   \
  }                                                                                              \
  extern "C" void attend_##SUFFIX(const T *query, int64_t query_stride, const T *keys,           \
                                  const T *values, const int32_t *tables, int64_t table_stride,  \
                                  const int32_t *firsts, const int32_t *ends, T *out,            \
                                  int64_t rows, int64_t heads, int64_t kv_heads, int64_t width,  \
                                  int64_t page_tokens, float scale, int threads) {               \
    attend(query, query_stride, keys, values, tables, table_stride, firsts, ends, out, rows,     \
           heads, kv_heads, width, page_tokens, scale, threads);                                 \
  }

HELIX_FOR(float, float32)
HELIX_FOR(bfloat, bfloat16)
