// Whole layers of a pass in one call, of decodes and prompts alike: all threads go through them
// together, and wait for each other only where one needs what another has computed.
//
// Each step computes what the kernel of its own does, in the same order and rounded in the same
// places, so that a row has the same bits either way.

#pragma once

#include "attention.h"
#include "products.h"
#include "rows.h"

namespace helix {

#if defined(__AVX512F__)
// Addresses of one layer's weights; nothing where the model has none. As layers.py lists them.
template <class T>
struct Layer {
  const T *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias;
  const T *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
};

// As layers.py lists them.
struct Sizes {
  int64_t layers, tokens, hidden, heads, kv_heads, width, inner, page_tokens, pages;
};

// The tokens of a pass. x: [tokens, hidden], changed in place. cos, sin: [tokens, width]; slots:
// [layers, tokens, kv_heads]; tables: [layers, rows, pages]; owners: [tokens], the row of each, or
// nothing where each is one; firsts: [layers, tokens]; ends: [tokens]; space: [tokens],
// as much for each as layers.py counts. kept_at: [kept], nothing for all, ascending: tokens that go
// on behind the last layer's keys and values, to become the first rows of x; the next three are
// theirs.
template <class T>
struct Pass {
  T *x;
  const T *cos, *sin;
  const int64_t *slots;
  const int32_t *tables, *owners, *firsts, *ends;
  T *keys, *values, *space;
  int64_t rows = 0, kept = 0;
  const int32_t *kept_at = nullptr, *kept_owners = nullptr, *kept_firsts = nullptr,
                *kept_ends = nullptr;
};

// x += product, as a T holds the product.
template <class T>
void add_product(const Weight<T> &weight, const Rows<T> &from, T *x, Member &member) {
  multiply(weight, from, member,
           [&](int64_t row, int64_t count, int64_t group, const float *sums) {
             for (int sixteen = 0; sixteen < 2; ++sixteen) {
               const int64_t column = weight.column(group, sixteen);
               T *to = x + row * weight.outputs + column;
               for (int64_t i = 0; i < count; ++i, to += weight.outputs)
                 put_wide(to, get_wide(to) + output_of(weight, sums, i, group, sixteen));
             }
           });
}

template <class T>
void run_layers(const Layer<T> *layers, const Sizes &of, const Pass<T> &pass, float eps,
                int threads) {
  const Heads heads{of.heads, of.kv_heads, of.width, eps};
  const int64_t hidden = of.hidden, each = heads.all() * of.width;
  const int64_t query_width = of.heads * of.width;
  T *const normed = pass.space, *const qkv = normed + of.tokens * hidden;
  T *const attended = qkv + of.tokens * each, *const act = attended + of.tokens * query_width;
  // Of this thread, which leads: the others have its address.
  static thread_local std::vector<T> spare;
  for (const int64_t inputs : {hidden, query_width, of.inner})
    make_room(spare, ordered_elements<T>(of.tokens, inputs));
  T *const room = spare.data();
  const auto run = [&](int64_t at, Member &member) {
    const Layer<T> &layer = layers[at];
    const bool ends = pass.kept_at && at == of.layers - 1;
    int64_t tokens = of.tokens;
    member.share(tokens, [&](int64_t row) {
      norm_row(pass.x + row * hidden, layer.attention_norm, normed + row * hidden, hidden, eps);
    });
    const Weight<T> to_qkv{layer.qkv, layer.qkv_bias, each, hidden};
    multiply(to_qkv, laid_out(normed, tokens, hidden, room, member), member,
             [&](int64_t row, int64_t count, int64_t group, const float *sums) {
               for (int sixteen = 0; sixteen < 2; ++sixteen) {
                 T *to = qkv + row * each + to_qkv.column(group, sixteen);
                 for (int64_t i = 0; i < count; ++i, to += each)
                   put_wide(to, output_of(to_qkv, sums, i, group, sixteen));
               }
             });
    member.share(tokens, [&](int64_t row) {
      rotate_store_row(heads, qkv + row * each, layer.q_norm, layer.k_norm,
                       pass.cos + row * of.width, pass.sin + row * of.width,
                       pass.slots + (at * tokens + row) * of.kv_heads, pass.keys, pass.values);
    });
    Seen<T> seen{qkv,         each, pass.tables + at * pass.rows * of.pages, of.pages,
                 pass.owners, pass.firsts + at * tokens, pass.ends};
    if (ends) {
      tokens = pass.kept;
      if (!tokens) return;
      member.share(1, [&](int64_t) {
        for (int64_t i = 0; i < tokens; ++i) {
          const int64_t from = pass.kept_at[i];
          if (from == i) continue;
          std::copy_n(qkv + from * each, each, qkv + i * each);
          std::copy_n(pass.x + from * hidden, hidden, pass.x + i * hidden);
        }
      });
      seen.owners = pass.kept_owners;
      seen.firsts = pass.kept_firsts;
      seen.ends = pass.kept_ends;
    }
    attend(seen, Pages<T>{pass.keys, pass.values, of.page_tokens, 0}, attended, tokens, of.heads,
           of.kv_heads, of.width, member);
    add_product(Weight<T>{layer.out, layer.out_bias, hidden, query_width},
                laid_out(attended, tokens, query_width, room, member), pass.x, member);
    member.share(tokens, [&](int64_t row) {
      norm_row(pass.x + row * hidden, layer.mlp_norm, normed + row * hidden, hidden, eps);
    });
    const Weight<T> to_inner{layer.gate_up, layer.gate_up_bias, 2 * of.inner, hidden};
    multiply(to_inner, laid_out(normed, tokens, hidden, room, member), member,
             [&](int64_t row, int64_t count, int64_t group, const float *sums) {
               T *to = act + row * of.inner + group * kWide;
               for (int64_t i = 0; i < count; ++i, to += of.inner)
                 put_wide(to, gated(output_of(to_inner, sums, i, group, 0),
                                    output_of(to_inner, sums, i, group, 1)));
             });
    add_product(Weight<T>{layer.down, layer.down_bias, hidden, of.inner},
                laid_out(act, tokens, of.inner, room, member), pass.x, member);
  };
  together(threads, true, [&](Member &member) {
    for (int64_t at = 0; at < of.layers; ++at) run(at, member);
  });
}
#endif

}  // namespace helix
