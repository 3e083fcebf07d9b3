// A step of decodes in one call: from token ids or activations, and the places of the rows' pages,
// to activations or logits.
//
// What layers.h wants for each token (rows of the cache, page ids, rotations) is a few microseconds'
// work here. With one call of Python or numpy for each of it, it takes half a millisecond, since a
// step's weights drive all that such calls touch out of the caches.

#pragma once

#include <vector>

#include "layers.h"
#include "odds.h"

namespace helix {

#if defined(__AVX512F__)
// Where a row's page ids of the first layer are in memory, how many elements after them those of
// the next, and the token's position.
struct Place {
  const int32_t *pages;
  int64_t stride, position;
};

// As decodes.py lists them. ids: [tokens], or nothing; from: the embeddings [vocabulary, hidden]
// then, else activations [tokens, hidden]; turns: [positions, 2, width], cosines and sines as
// rotate_store_row() takes them; windows: [layers], 0 for none; x: [tokens, hidden], the result;
// norm, head, bias, logits [tokens, vocabulary]: nothing where the model goes on elsewhere. best,
// highest [tokens]: nothing, or each row's token and its highest logit; choices: [tokens], or nothing
// where all are the most probable ones; edits: [tokens], or nothing where logits stay as they are;
// odds: of all tokens, or nothing where nobody wants to know.
template <class T>
struct Step {
  const Place *places;
  const int64_t *ids;
  const T *from, *turns;
  const int64_t *windows;
  T *keys, *values, *x;
  const T *norm, *head, *bias;
  float *logits;
  int64_t vocabulary;
  int64_t *best;
  float *highest;
  const Choice *choices;
  const Edits *edits;
  const Odds *odds;
};

// Every layer's pages, rows of the cache and first token seen, of one token.
template <class T>
void place_token(const Step<T> &step, const Sizes &of, int64_t row, int32_t *tables,
                 int32_t *firsts, int64_t *slots) {
  const Place &place = step.places[row];
  const int64_t page = place.position / of.page_tokens, offset = place.position % of.page_tokens;
  const int64_t page_size = of.kv_heads * of.page_tokens * of.width;
  for (int64_t at = 0; at < of.layers; ++at) {
    const int32_t *own = place.pages + at * place.stride;
    int32_t *table = tables + (at * of.tokens + row) * of.pages;
    std::copy_n(own, page + 1, table);
    std::fill(table + page + 1, table + of.pages, own[0]);
    const int64_t window = step.windows[at];
    firsts[at * of.tokens + row] =
        static_cast<int32_t>(window ? std::max<int64_t>(0, place.position + 1 - window) : 0);
    for (int64_t head = 0; head < of.kv_heads; ++head)
      slots[(at * of.tokens + row) * of.kv_heads + head] =
          (own[page] * of.kv_heads + head) * of.page_tokens + offset;
    if (offset == 0 && of.page_tokens > 1) {
      // A page that is read before it is full must hold numbers: 0 * NaN is NaN.
      std::memset(step.keys + own[page] * page_size, 0, page_size * sizeof(T));
      std::memset(step.values + own[page] * page_size, 0, page_size * sizeof(T));
    }
  }
}

// 0; or 1, having done nothing, when a token id is none of the vocabulary's.
template <class T>
int decode(const Layer<T> *layers, Sizes of, const Step<T> &step, float eps, int threads,
           int head_threads) {
  static thread_local std::vector<int32_t> ints;
  static thread_local std::vector<int64_t> slots;
  static thread_local std::vector<T> elements;
  const int64_t tokens = of.tokens, hidden = of.hidden, width = of.width;
  of.pages = 0;
  for (int64_t row = 0; row < tokens; ++row) {
    if (step.ids && (step.ids[row] < 0 || step.ids[row] >= step.vocabulary)) return 1;
    of.pages = std::max(of.pages, step.places[row].position / of.page_tokens + 1);
  }
  ints.resize(of.layers * tokens * (of.pages + 1) + tokens);
  slots.resize(of.layers * tokens * of.kv_heads);
  const int64_t spare =
      hidden + (2 * of.heads + 2 * of.kv_heads) * width + of.inner;
  elements.resize(tokens * (2 * width + spare));
  int32_t *const tables = ints.data(), *const firsts = tables + of.layers * tokens * of.pages;
  int32_t *const ends = firsts + of.layers * tokens;
  T *const cos = elements.data(), *const sin = cos + tokens * width, *const space = sin + tokens * width;
  for (int64_t row = 0; row < tokens; ++row) {
    const int64_t position = step.places[row].position;
    place_token(step, of, row, tables, firsts, slots.data());
    ends[row] = static_cast<int32_t>(position + 1);
    std::copy_n(step.turns + 2 * position * width, width, cos + row * width);
    std::copy_n(step.turns + (2 * position + 1) * width, width, sin + row * width);
    std::copy_n(step.from + (step.ids ? step.ids[row] : row) * hidden, hidden, step.x + row * hidden);
  }
  const Pass<T> pass{step.x, cos,       sin,         slots.data(), tables, nullptr,
                     firsts, ends,      step.keys,   step.values,  space,  tokens};
  run_layers(layers, of, pass, eps, threads);
  if (step.head) {
    for (int64_t row = 0; row < tokens; ++row)
      norm_row(step.x + row * hidden, step.norm, space + row * hidden, hidden, eps);
    const auto choose = [&](Member &member) {
      if (step.best)
        member.share(tokens, [&](int64_t row) {
          float *const logits = step.logits + row * step.vocabulary;
          const RowOdds odds(step.odds, row, logits, step.vocabulary, step.edits != nullptr);
          if (step.edits) edit_row(logits, step.vocabulary, step.edits[row]);
          const Choice choice = step.choices ? step.choices[row] : Choice{};
          // A token is drawn for the place behind the one that is computed.
          const double number =
              choice.temperature > 0.0f ? uniform(choice.seed, step.places[row].position + 1) : 0.0;
          step.highest[row] =
              choose_row(logits, step.vocabulary, choice, number, step.best + row);
          odds.end(step.best[row]);
        });
    };
    product(space, step.head, step.bias, step.logits, tokens, step.vocabulary, hidden, head_threads,
            choose);
  }
  return 0;
}
#endif

}  // namespace helix
