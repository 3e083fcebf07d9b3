// Log probabilities of a row's tokens, of the logits as the model gave them: of the token that comes,
// and of the most probable ones. In one pass over the logits; PyTorch writes all of them out and
// sorts as many as all rows want.

#pragma once

#include "draw.h"

namespace helix {

#if defined(__AVX512F__)
// As odds.py lists them. wanted: [rows], how many of the best, -1 where nothing is wanted; chosen:
// [rows]; ids, best: [rows, most], equal ones by id.
struct Odds {
  const int64_t *wanted;
  float *chosen;
  int64_t *ids;
  float *best;
  int64_t most;
};

// The natural logarithm of what e^logit comes to over a row; nothing finite where the highest is not.
inline double log_total(const float *row, int64_t count) {
  int64_t at = 0;
  const float highest = highest_of(row, count, &at);
  const __m512 top = _mm512_set1_ps(highest);
  const __m512 left = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  double total = 0.0;
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 in = static_cast<__mmask16>((1u << std::min<int64_t>(16, count - i)) - 1);
    total += sum_of(weight_of(_mm512_sub_ps(_mm512_mask_loadu_ps(left, in, row + i), top)));
  }
  return static_cast<double>(highest) + std::log(total);
}

// The `wanted` highest logits of a row, at most as many as it has, and their places.
inline void best_of(const float *row, int64_t count, int64_t wanted, int64_t *ids, float *best) {
  int64_t found = 0;
  const auto take = [&](int64_t id) {
    int64_t at = found < wanted ? found++ : wanted - 1;
    for (; at > 0 && row[id] > best[at - 1]; --at) {
      best[at] = best[at - 1];
      ids[at] = ids[at - 1];
    }
    best[at] = row[id];
    ids[at] = id;
  };
  int64_t i = 0;
  for (; i < std::min(wanted, count); ++i) take(i);
  if (!found) return;
  const __m512 none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (; i < count; i += 16) {
    const __mmask16 in = static_cast<__mmask16>((1u << std::min<int64_t>(16, count - i)) - 1);
    const __m512 some = _mm512_mask_loadu_ps(none, in, row + i);
    __mmask16 higher = _mm512_cmp_ps_mask(some, _mm512_set1_ps(best[wanted - 1]), _CMP_GT_OQ);
    for (; higher; higher &= higher - 1) {
      const int64_t id = i + __builtin_ctz(higher);
      // Others of these sixteen may have come before it.
      if (row[id] > best[wanted - 1]) take(id);
    }
  }
}

// What becomes of one row's numbers: begun before its logits are changed, ended with its token.
class RowOdds {
 public:
  RowOdds(const Odds *odds, int64_t row, float *logits, int64_t count, bool changes)
      : odds_(odds && odds->wanted[row] >= 0 ? odds : nullptr), row_(row), logits_(logits) {
    if (!odds_) return;
    total_ = log_total(logits, count);
    const int64_t wanted = std::min({odds_->wanted[row], odds_->most, count});
    float *const best = odds_->best + row * odds_->most;
    best_of(logits, count, wanted, odds_->ids + row * odds_->most, best);
    for (int64_t i = 0; i < wanted; ++i) best[i] = of(best[i]);
    if (!changes) return;
    static thread_local std::vector<float> kept;
    kept.assign(logits, logits + count);
    logits_ = kept.data();
  }
  void end(int64_t token) const {
    if (odds_) odds_->chosen[row_] = of(logits_[token]);
  }

 private:
  float of(float logit) const { return static_cast<float>(static_cast<double>(logit) - total_); }

  const Odds *odds_;
  int64_t row_;
  const float *logits_;
  double total_ = 0.0;
};
#endif

}  // namespace helix
