// One row at a time: RMSNorm, rotation with the write to the cache, the gate.

#pragma once

#include "common.h"

namespace helix {

// RMSNorm of `width` elements; `out` may be `x`.
template <class T>
inline void norm_row(const T *x, const T *weight, T *out, int64_t width, float eps) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += get(x + i) * get(x + i);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) put(out + i, get(x + i) * scale * get(weight + i));
}

template <class T>
inline void add_row(const T *x, const T *delta, T *sum, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) put(sum + i, get(x + i) + get(delta + i));
}

template <class T>
inline void silu_row(const T *gate, const T *up, T *out, int64_t width) {
  int64_t i = 0;
  for (; i + kWide <= width; i += kWide)
    put_wide(out + i, gated(get_wide(gate + i), get_wide(up + i)));
  if (i < width)
    put_some(out + i, gated(get_some(gate + i, width - i), get_some(up + i, width - i)), width - i);
}

// What stays the same in a pass for the heads of its tokens.
struct Heads {
  int64_t heads, kv_heads, width;
  float eps;
  int64_t all() const { return heads + 2 * kv_heads; }
};

// One token's heads [heads + 2 * kv_heads, width]: queries and keys normed where there are weights
// for it, and turned in place; keys and values also to rows `slots` of the cache. The first half of
// `sin` is negated.
template <class T>
inline void rotate_store_row(const Heads &of, T *row, const T *q_norm, const T *k_norm,
                             const T *cos, const T *sin, const int64_t *slots, T *keys, T *values) {
  const int64_t width = of.width, half = width / 2;
  for (int64_t head = 0; head < of.heads + of.kv_heads; ++head) {
    T *a = row + head * width, *b = a + half;
    const T *weight = head < of.heads ? q_norm : k_norm;
    if (weight) norm_row(a, weight, a, width, of.eps);
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float low = get(a + i), high = get(b + i);
      put(a + i, low * get(cos + i) + high * get(sin + i));
      put(b + i, high * get(cos + half + i) + low * get(sin + half + i));
    }
  }
  for (int64_t head = 0; head < of.kv_heads; ++head) {
    const int64_t to = slots[head] * width;
    std::memcpy(keys + to, row + (of.heads + head) * width, width * sizeof(T));
    std::memcpy(values + to, row + (of.heads + of.kv_heads + head) * width, width * sizeof(T));
  }
}

}  // namespace helix
