// Numbers and vectors that all kernels share: bfloat16 as bits, sixteen floats at a time, e^x, and
// the gate of the MLP.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace helix {

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

// Sixteen floats; one register with AVX-512, two or four elsewhere.
typedef float wide __attribute__((vector_size(64)));
typedef int32_t wide_ints __attribute__((vector_size(64)));
typedef uint32_t wide_bits __attribute__((vector_size(64)));
typedef uint16_t half_bits __attribute__((vector_size(32)));
constexpr int kWide = 16;

inline wide get_wide(const float *p) {
  wide value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline wide get_wide(const bfloat *p) {
  half_bits bits;
  std::memcpy(&bits, p, sizeof bits);
  wide_bits shifted = __builtin_convertvector(bits, wide_bits) << 16;
  wide value;
  std::memcpy(&value, &shifted, sizeof value);
  return value;
}

inline void put_wide(float *p, wide value) { std::memcpy(p, &value, sizeof value); }
inline void put_wide(bfloat *p, wide value) {
  wide_bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  wide_bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = value != value ? wide_bits{} + 0x7fc0u : rounded;
  half_bits halves = __builtin_convertvector(rounded, half_bits);
  std::memcpy(p, &halves, sizeof halves);
}

// The first `count` of sixteen; the others are read as 0, and not written.
template <class T>
inline wide get_some(const T *p, int64_t count) {
  T padded[kWide] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return get_wide(padded);
}
template <class T>
inline void put_some(T *p, wide value, int64_t count) {
  T padded[kWide];
  put_wide(padded, value);
  std::memcpy(p, padded, count * sizeof(T));
}

// What is left of `value` when a T has held it.
inline wide rounded(wide value, const float *) { return value; }
inline wide rounded(wide value, const bfloat *) {
  bfloat held[kWide];
  put_wide(held, value);
  return get_wide(held);
}

// e^x to 2 units in the last place, without branches. Below -87 it is that of -87: next to nothing.
inline wide exponential(wide x) {
  x = x < -87.0f ? wide{} - 87.0f : x;
  x = x > 88.0f ? wide{} + 88.0f : x;
  // Adding 1.5 * 2^23 leaves no bits for fractions: to nearest.
  const wide n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  wide r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  wide y = wide{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const wide_ints exponent = (__builtin_convertvector(n, wide_ints) + 127) << 23;
  wide power;
  std::memcpy(&power, &exponent, sizeof power);
  return y * power;
}

// silu(gate) * up
inline wide gated(wide gate, wide up) { return gate / (1.0f + exponential(-gate)) * up; }

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

// Elements that are worth a second thread's waking up.
constexpr int64_t kWorthThreads = 16384;

// A product with so many weights.
inline bool worth_threads(int64_t weights) { return weights > 8 * kWorthThreads; }

}  // namespace helix
