// Operators of libtorch as C functions. Their kernels are its CUDA part's: without it, or on a CPU, they fail.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_fused_rms_norm_backward.h>

#include "caught.h"

using at::Tensor;

// What attention computes, in the layout of `RawShape` in src/ffi.rs.
struct Shape {
  // Where each span's queries begin, and where the last one's end, `[spans + 1]` in i32; the same of keys.
  const Tensor* queries;
  const Tensor* keys;
  // The most of a span.
  int64_t most_queries;
  int64_t most_keys;
  // What products of queries and keys are multiplied by.
  double scale;
  // So many of the last keys, its own among them, a query sees; 0 for all before.
  int64_t window;
  // ATen's `CustomMaskType`.
  int64_t mask;
};

extern "C" {

// Attention of spans end to end, the last query of each at its last key: queries `[n, heads, width]`, keys and values
// `[m, kv_heads, width]`. `out` gets the output, `[n, heads, width]`, the logarithms of the sums, and what else the gradient
// wants.
char* fused_flash_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Shape* shape, Tensor** out) {
  return caught([&] {
    const auto left = shape->window > 0 ? shape->window - 1 : -1;
    auto [output, sums, state, unused, mask] = at::_flash_attention_forward(
        *q, *k, *v, *shape->queries, *shape->keys, shape->most_queries, shape->most_keys, 0.0, true, false, shape->scale,
        left, shape->window > 0 ? 0 : -1);
    out[0] = new Tensor(std::move(output));
    out[1] = new Tensor(std::move(sums));
    out[2] = new Tensor(std::move(state));
    out[3] = new Tensor(std::move(unused));
  });
}

// The same of `[1, n, heads, width]` and `[1, m, heads, width]`.
char* fused_efficient_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Shape* shape, Tensor** out) {
  return caught([&] {
    const auto window = shape->window > 0 ? std::optional<int64_t>(shape->window) : std::nullopt;
    auto [output, sums, seed, offset, longest_q, longest_k] = at::_efficient_attention_forward(
        *q, *k, *v, std::nullopt, *shape->queries, *shape->keys, shape->most_queries, shape->most_keys, 0.0, shape->mask, true,
        shape->scale, std::nullopt, window);
    out[0] = new Tensor(std::move(output));
    out[1] = new Tensor(std::move(sums));
    out[2] = new Tensor(std::move(seed));
    out[3] = new Tensor(std::move(offset));
  });
}

// The gradient of what `_fused_rms_norm` normalises over its last dimension, from the output's.
char* fused_rms_norm_backward(const Tensor* gradient, const Tensor* x, const Tensor* scale, const Tensor* weight, Tensor** out) {
  return caught([&] {
    auto [of_x, of_weight] =
        at::_fused_rms_norm_backward(*gradient, *x, {x->size(-1)}, *scale, *weight, {true, false});
    *out = new Tensor(std::move(of_x));
  });
}

// A copy in memory that a GPU reads by itself.
char* fused_pin_memory(const Tensor* x, Tensor** out) {
  return caught([&] { *out = new Tensor(x->pin_memory()); });
}

} // extern "C"
