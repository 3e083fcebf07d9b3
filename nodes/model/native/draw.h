// A row's token by chance: temperature, top-k, top-p, min-p, and one number per draw. The same as
// sampler_draw.py has PyTorch do, in a tenth of the time: what lies far below the best token, which
// is nearly everything, is looked at once and never sorted.

#pragma once

#include <functional>
#include <limits>
#include <vector>

#include "common.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace helix {

#if defined(__AVX512F__)
// As draws.py packs it. temperature: 0 for the most probable token, and nothing else matters then;
// least: of (logit - highest) / temperature for a candidate, -infinity where min-p is not set;
// top_k: 0 for all.
struct Choice {
  float temperature, least;
  double top_p;
  int64_t top_k;
  uint64_t seed;
};

// What a row's logits are changed by before a token is chosen, as draws.py packs it. seen: each token
// of the text once; counts: how often each is in the output; endings: what must not come yet.
struct Edits {
  const int64_t *bias_ids;
  const float *biases;
  int64_t bias_count;
  const int64_t *seen, *counts;
  int64_t seen_count;
  double repetition, frequency, presence;
  const int64_t *endings;
  int64_t ending_count;
};

// Not as one operation where the processor has one for it: PyTorch's and numpy's are two.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
inline float
taken_off(const Edits &edits, int64_t count) {
  const double often = edits.frequency * static_cast<double>(count);
  const double there = count > 0 ? edits.presence : 0.0;
  return static_cast<float>(often + there);
}

// As sampler_edits.py has PyTorch do. Ids come with requests: others than the vocabulary's are passed
// over.
inline void edit_row(float *logits, int64_t count, const Edits &edits) {
  const auto known = [&](int64_t id) { return id >= 0 && id < count; };
  for (int64_t i = 0; i < edits.bias_count; ++i)
    if (known(edits.bias_ids[i])) logits[edits.bias_ids[i]] += edits.biases[i];
  const float factor = static_cast<float>(edits.repetition);
  for (int64_t i = 0; i < edits.seen_count; ++i) {
    if (!known(edits.seen[i])) continue;
    float &logit = logits[edits.seen[i]];
    const float changed = logit < 0.0f ? logit * factor : logit / factor;
    logit = changed - taken_off(edits, edits.counts[i]);
  }
  for (int64_t i = 0; i < edits.ending_count; ++i)
    if (known(edits.endings[i])) logits[edits.endings[i]] = -std::numeric_limits<float>::infinity();
}

// Of numpy's Philox (4x64, 10 rounds) the first number for this key and counter; J. K. Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
inline uint64_t philox(uint64_t key, uint64_t domain, uint64_t counter) {
  // numpy counts on before it draws.
  uint64_t a = counter + 1, b = a == 0, c = 0, d = 0;
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 p = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * a;
    const unsigned __int128 q = static_cast<unsigned __int128>(0xCA5A826395121157u) * c;
    a = static_cast<uint64_t>(q >> 64) ^ b ^ key;
    b = static_cast<uint64_t>(q);
    c = static_cast<uint64_t>(p >> 64) ^ d ^ domain;
    d = static_cast<uint64_t>(p);
    key += 0x9E3779B97F4A7C15u;
    domain += 0xBB67AE8584CAA73Bu;
  }
  return a;
}

// In [0, 1): what decides the token at `position` under `seed`.
inline double uniform(uint64_t seed, int64_t position) {
  constexpr uint64_t kDomain = 0x68656C69785F6D71u;
  return static_cast<double>(philox(seed, kDomain, static_cast<uint64_t>(position)) >> 11) * 0x1p-53;
}

// The first of the highest numbers of a row, and that; no number if there is one that is none.
inline float highest_of(const float *row, int64_t count, int64_t *at) {
  const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 highest = least;
  __mmask16 odd = 0;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 some = _mm512_loadu_ps(row + i);
    odd |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
    highest = _mm512_max_ps(highest, some);
  }
  const __mmask16 rest = static_cast<__mmask16>((1u << (count - i)) - 1);
  const __m512 some = _mm512_mask_loadu_ps(least, rest, row + i);
  odd |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
  const float found = _mm512_reduce_max_ps(_mm512_max_ps(highest, some));
  *at = 0;
  if (odd) return std::numeric_limits<float>::quiet_NaN();
  const __m512 wanted = _mm512_set1_ps(found);
  for (i = 0; i + 16 <= count; i += 16) {
    const __mmask16 same = _mm512_cmp_ps_mask(_mm512_loadu_ps(row + i), wanted, _CMP_EQ_OQ);
    if (same) {
      *at = i + __builtin_ctz(same);
      return found;
    }
  }
  while (row[i] != found) ++i;
  *at = i;
  return found;
}

// Sixteen tokens' weights, and what they come to.
inline double sum_of(__m512 weights) {
  return _mm512_reduce_add_pd(
      _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(weights)),
                    _mm512_cvtps_pd(_mm256_castpd_ps(
                        _mm512_extractf64x4_pd(_mm512_castps_pd(weights), 1)))));
}

// e^scaled; nothing from -87 on, where exponential() stops, and for what is impossible.
inline __m512 weight_of(__m512 scaled) {
  wide given, found;
  std::memcpy(&given, &scaled, sizeof given);
  found = exponential(given);
  __m512 weight;
  std::memcpy(&weight, &found, sizeof weight);
  const __mmask16 counts = _mm512_cmp_ps_mask(scaled, _mm512_set1_ps(-87.0f), _CMP_GT_OQ);
  return _mm512_maskz_mov_ps(counts, weight);
}

// What is kept of a row while a token is drawn from it: all padded to whole sixteens, with -infinity
// and 0. `sums`: of each sixteen weights.
struct Drawn {
  std::vector<float> scaled, weights, best;
  std::vector<double> sums;
};

// What the weights of `count` scaled logits come to.
inline double weight_of_all(const float *scaled, int64_t count) {
  const __m512 left = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  double sum = 0.0;
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 in = static_cast<__mmask16>((1u << std::min<int64_t>(16, count - i)) - 1);
    sum += sum_of(weight_of(_mm512_mask_loadu_ps(left, in, scaled + i)));
  }
  return sum;
}

// The least of the highest of `count` scaled logits, one at least, whose weights reach `wanted`: of
// those that have less than that before them; the least of all if they do not. Puts them in another
// order.
inline float reaching(float *scaled, int64_t count, double wanted) {
  double before = 0.0;
  float least = -std::numeric_limits<float>::infinity();
  while (count > 0) {
    // Each round leaves what is above or below one of them, mostly half.
    const float a = scaled[0], b = scaled[count / 2], c = scaled[count - 1];
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    float *const end = scaled + count;
    float *const same = std::partition(scaled, end, [&](float x) { return x > pivot; });
    float *const below = std::partition(same, end, [&](float x) { return x == pivot; });
    const double above = before + weight_of_all(scaled, same - scaled);
    if (above >= wanted && same > scaled) {
      count = same - scaled;
      continue;
    }
    least = pivot;
    before = above + weight_of_all(same, below - same);
    if (before >= wanted) return least;
    scaled = below;
    count = end - below;
  }
  return least;
}

// Of the tokens above a scaled logit: how many, and what their weights come to.
struct Above {
  int64_t count;
  double weight;
};

inline Above above(float cut, const Drawn &row) {
  const __m512 than = _mm512_set1_ps(cut);
  Above found{0, 0.0};
  for (size_t i = 0; i < row.scaled.size(); i += 16) {
    const __mmask16 in =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(row.scaled.data() + i), than, _CMP_GT_OQ);
    if (!in) continue;
    found.count += __builtin_popcount(in);
    found.weight += in == 0xffff ? row.sums[i / 16]
                                 : sum_of(_mm512_maskz_loadu_ps(in, row.weights.data() + i));
  }
  return found;
}

// Puts the scaled logits between the highest that are not `enough` and the lowest that are into
// row.best, some hundred mostly; `before`: those above them. How many they are.
template <class Enough>
int64_t narrow(Drawn &row, Above *before, Enough enough) {
  const float nothing = -std::numeric_limits<float>::infinity();
  float low = nothing, high = 0.0f;
  Above upto{0, 0.0};
  *before = upto;
  const auto look = [&](float cut) {
    const Above found = above(cut, row);
    const bool suffices = enough(found);
    (suffices ? low : high) = cut;
    (suffices ? upto : *before) = found;
  };
  // What is beyond e^-128 of the best token has no weight.
  for (float cut = -8.0f; cut >= -128.0f && low == nothing; cut *= 2.0f) look(cut);
  while (low > nothing && upto.count - before->count > 256) {
    const float cut = 0.5f * (low + high);
    if (!(cut > low && cut < high)) break;
    look(cut);
  }
  const int64_t padded = static_cast<int64_t>(row.scaled.size());
  row.best.resize(padded + 16);
  const __m512 from = _mm512_set1_ps(low), to = _mm512_set1_ps(high);
  int64_t found = 0;
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 scaled = _mm512_loadu_ps(row.scaled.data() + i);
    const __mmask16 in = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(scaled, from, _CMP_GT_OQ),
                                                 scaled, to, _CMP_LE_OQ);
    if (!in) continue;
    _mm512_storeu_ps(row.best.data() + found, _mm512_maskz_compress_ps(in, scaled));
    found += __builtin_popcount(in);
  }
  return found;
}

// What the weights of those from `least` on come to, equal ones included.
inline double weight_from(float least, const Drawn &row) {
  const __m512 from = _mm512_set1_ps(least);
  double sum = 0.0;
  for (size_t i = 0; i < row.scaled.size(); i += 16) {
    const __mmask16 in =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(row.scaled.data() + i), from, _CMP_GE_OQ);
    if (in) sum += sum_of(_mm512_maskz_loadu_ps(in, row.weights.data() + i));
  }
  return sum;
}

// The least scaled logit that top-k and top-p leave. `total`: of all weights.
inline float least_of(const Choice &choice, Drawn &row, double total) {
  float least = -std::numeric_limits<float>::infinity();
  Above before;
  if (choice.top_k > 0) {
    const int64_t found =
        narrow(row, &before, [&](const Above &some) { return some.count >= choice.top_k; });
    const int64_t rank = choice.top_k - before.count;
    float *const best = row.best.data();
    if (rank <= found) {
      std::nth_element(best, best + rank - 1, best + found, std::greater<float>());
      least = best[rank - 1];
      if (choice.top_p < 1.0) total = weight_from(least, row);
    }
  }
  if (choice.top_p < 1.0) {
    const double wanted = choice.top_p * total;
    const int64_t found =
        narrow(row, &before, [&](const Above &some) { return some.weight >= wanted; });
    least = std::max(least, reaching(row.best.data(), found, wanted - before.weight));
  }
  return least;
}

// The token that `number`, in [0, 1), decides on. `highest`: of the row's logits, finite.
inline int64_t draw_row(const float *logits, int64_t count, float highest, const Choice &choice,
                        double number) {
  static thread_local Drawn row;
  const int64_t blocks = (count + 15) / 16;
  row.scaled.resize(16 * blocks);
  row.weights.resize(16 * blocks);
  row.sums.resize(blocks);
  const __m512 top = _mm512_set1_ps(highest), by = _mm512_set1_ps(choice.temperature);
  const __m512 left = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  double total = 0.0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t at = 16 * block, some = std::min<int64_t>(16, count - at);
    const __mmask16 in = static_cast<__mmask16>((1u << some) - 1);
    const __m512 scaled =
        _mm512_div_ps(_mm512_sub_ps(_mm512_mask_loadu_ps(left, in, logits + at), top), by);
    const __m512 weights = weight_of(scaled);
    _mm512_storeu_ps(row.scaled.data() + at, scaled);
    _mm512_storeu_ps(row.weights.data() + at, weights);
    total += row.sums[block] = sum_of(weights);
  }
  float least = choice.least;
  if (choice.top_k > 0 || choice.top_p < 1.0) least = std::max(least, least_of(choice, row, total));
  if (least > -std::numeric_limits<float>::infinity()) {
    total = 0.0;
    const __m512 from = _mm512_set1_ps(least);
    for (int64_t block = 0; block < blocks; ++block) {
      float *const weights = row.weights.data() + 16 * block;
      const __mmask16 in =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(row.scaled.data() + 16 * block), from, _CMP_GE_OQ);
      double sum = 0.0;
      if (in) {
        const __m512 kept = _mm512_maskz_loadu_ps(in, weights);
        _mm512_storeu_ps(weights, kept);
        sum = sum_of(kept);
      }
      total += row.sums[block] = sum;
    }
  }
  // In the order of token ids. What rounding leaves at the end is the last one's with a weight.
  const double target = number * total;
  double before = 0.0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (before + row.sums[block] > target) {
      double within = before;
      for (int64_t at = 16 * block; at < std::min(count, 16 * block + 16); ++at) {
        within += row.weights[at];
        if (within > target) return at;
      }
    }
    before += row.sums[block];
  }
  int64_t last = count - 1;
  while (last > 0 && !(row.weights[last] > 0.0f)) --last;
  return last;
}

// Chooses a row's token as `choice` says, and gives the highest logit as highest_of() does. There is
// no choice where that is not finite.
inline float choose_row(const float *logits, int64_t count, const Choice &choice, double number,
                        int64_t *token) {
  const float highest = highest_of(logits, count, token);
  if (choice.temperature > 0.0f && std::isfinite(highest))
    *token = draw_row(logits, count, highest, choice, number);
  return highest;
}
#endif

}  // namespace helix
