#pragma once
// Gated units: an activation of one tensor times another. Both may be halves of one, read where they are.
#include "shared/gates.h"

namespace lossreg {

// Shazeer, GLU variants improve transformer, arXiv 2002.05202.
struct SwiGLU {
  static constexpr auto name = "swiglu";
  static constexpr auto args = "Tensor gate, Tensor up, float beta=1.0";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Swish swish;

  static SwiGLU make(double beta) {
    expect(beta == beta, name, "beta that is a number", beta);
    return {{beta}};
  }
  template <class T>
  HD T value(T gate, T up) const {
    return swish.value(gate) * up;
  }
  template <class T>
  HD Gradients<T, 2> grad(T gate, T up) const {
    return {up * swish.grad(gate).of[0], swish.value(gate)};
  }
};

// The same with GELU.
struct GEGLU {
  static constexpr auto name = "geglu";
  static constexpr auto args = "Tensor gate, Tensor up, str approximate=\"none\"";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Gelu gelu;

  static GEGLU make(const std::string& approximate) { return {{Gelu::is_by_tanh(name, approximate)}}; }
  static constexpr int modes = Gelu::modes;
  int mode() const { return gelu.mode(); }
  template <int Mode, class T>
  HD T value(T gate, T up) const {
    return gelu.template value<Mode>(gate) * up;
  }
  template <int Mode, class T>
  HD Gradients<T, 2> grad(T gate, T up) const {
    return {up * gelu.template grad<Mode>(gate).of[0], gelu.template value<Mode>(gate)};
  }
};

// The same with ReLU, whose slope at 0 is 0.
struct ReGLU {
  static constexpr auto name = "reglu";
  static constexpr auto args = "Tensor gate, Tensor up";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;

  static ReGLU make() { return {}; }
  template <class T>
  HD T value(T gate, T up) const {
    return relu(gate) * up;
  }
  template <class T>
  HD Gradients<T, 2> grad(T gate, T up) const {
    return {gate <= T(0) ? T(0) : up, relu(gate)};
  }
};

// OpenAI's gpt-oss: g sigmoid(alpha g) (u + 1) of a gate clamped from above and of the other clamped on both sides.
struct ClampedSwiGLU {
  static constexpr auto name = "clamped_swiglu";
  static constexpr auto args = "Tensor gate, Tensor up, float alpha=1.702, float limit=7.0";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::same;
  Swish swish;
  Parameter limit;

  static ClampedSwiGLU make(double alpha, double limit) {
    expect(alpha == alpha, name, "alpha that is a number", alpha);
    expect(limit >= 0, name, "limit >= 0", limit);
    return {{alpha}, limit};
  }
  template <class T>
  HD T gate_of(T gate) const {
    return at_most(gate, T(limit));
  }
  template <class T>
  HD T factor_of(T up) const {
    return clamp(up, -T(limit), T(limit)) + T(1);
  }
  template <class T>
  HD T value(T gate, T up) const {
    return swish.value(gate_of(gate)) * factor_of(up);
  }
  // A clamp's slope is 1 at its bounds.
  template <class T>
  HD Gradients<T, 2> grad(T gate, T up) const {
    T g = gate_of(gate), outer = abs(up) <= T(limit) ? T(1) : T(0);
    T inner = gate <= T(limit) ? factor_of(up) : T(0);
    return {inner * swish.grad(g).of[0], outer * swish.value(g)};
  }
};

using Ops = PointwiseOps<SwiGLU, GEGLU, ReGLU, ClampedSwiGLU>;

}  // namespace lossreg
