#pragma once
// Where value has no derivative, or grad is meant to be another number: each decision of a formula, written by hand.
#include "instances.h"

namespace lossreg {

struct Kink {
  const char* op;
  std::vector<double> options, inputs, gradients;
};

inline const std::vector<Kink> kinks = {
    {"hard_swish", {}, {-3}, {0}},
    {"hard_swish", {}, {3}, {1}},

    {"gelu", {0}, {0}, {0.5}},
    {"gelu", {1}, {0}, {0.5}},
    {"relu_squared", {}, {0}, {0}},
    {"reglu", {}, {0, 3}, {0, 0}},
    // a clamp's slope is 1 at its bounds
    {"clamped_swiglu", {0, 2}, {2, 2}, {1.5, 1}},
    {"clamped_swiglu", {0, 2}, {1, -2}, {-0.5, 0.5}},
    {"clamped_swiglu", {0, 2}, {2.5, -2.5}, {0, 0}},

    {"l1_loss", {}, {2, 2}, {0, 0}},
    {"charbonnier_loss", {0.5}, {2, 2}, {0, 0}},
    {"quantile_loss", {0.75}, {1, 1}, {-0.25, 0.25}},
    {"wing_loss", {2, 1}, {1, 1}, {0, 0}},
    {"wing_loss", {2, 1}, {3, 1}, {1, -1}},
    {"smooth_l1_loss", {0.5}, {1.5, 1}, {1, -1}},
    {"smooth_l1_loss", {0.5}, {0.5, 1}, {-1, 1}},
    {"smooth_l1_loss", {0}, {1, 1}, {0, 0}},
    {"huber_loss", {2}, {3, 1}, {2, -2}},
    {"huber_loss", {2}, {-1, 1}, {-2, 2}},

    // both logarithms stop at -100, the denominator of the gradient at 1e-12
    {"binary_cross_entropy", {}, {0, 0, 1}, {0, 100}},
    {"binary_cross_entropy", {}, {0, 1, 1}, {-1e12, 100}},
    {"binary_cross_entropy", {}, {1, 0, 2}, {2e12, -200}},
    {"binary_cross_entropy", {}, {1, 1, 1}, {0, -100}},
    // 1/2 - t, where the dual of max(x, 0) - x t + log1p(e^-|x|) would be -t
    {"binary_cross_entropy_with_logits", {}, {0, 0, 1, 1}, {0.5, 0}},
    {"binary_cross_entropy_with_logits", {}, {0, 0.25, 1, 1}, {0.25, 0}},
    {"binary_cross_entropy_with_logits", {}, {0, 1, 2, 3}, {-3, 2.772588722239781}},
    // p_t = 1, where m^(gamma - 1) may be infinite
    {"focal_loss", {0.25, 2}, {1000, 1}, {0, 0}},
    {"focal_loss", {0.25, 0.5}, {1000, 1}, {0, 0}},
    {"focal_loss", {-1, 0.5}, {-1000, 0}, {0, 0}},

    // the power of 0 has no slope, to the power of 0 neither; y = sigmoid(0)
    {"quality_focal_loss", {0}, {0, 0.5}, {0, 0}},
    {"quality_focal_loss", {0.5}, {0, 0.5}, {0, 0}},
    {"quality_focal_loss", {1}, {0, 0.5}, {0, 0}},
    // no slope in y across the y that is told apart
    {"varifocal_loss", {0.75, 2}, {0, 0}, {0.2237151463639876, 0}},
    {"gaussian_focal_loss", {2, 4}, {0, 1}, {-0.2982867951803, 0}},
    // sigmoid(x) = clip: the clamp's slope is 1, and with no power the cross entropy's is sigmoid(x)
    {"asymmetric_loss", {0, 0, 0.5}, {0, 0}, {0.25, 0.6931471805599453}},

    // x + eps = 0: the derivative is infinite; full: Stirling's part begins beyond t = 1
    {"poisson_nll_loss", {0, 0, 0}, {0, 1}, {0, 0}},
    {"poisson_nll_loss", {0, 0, 0.5}, {-0.5, 0}, {0, 0}},
    {"poisson_nll_loss", {1, 1, 0}, {0, 1}, {0, 0}},
    // var <= eps: the gradient at eps, as if the clamp were not there
    {"gaussian_nll_loss", {0, 0.5}, {1, 0, 0.25}, {2, -2, -1}},
    {"gaussian_nll_loss", {0, 0.5}, {1, 0, 0.5}, {2, -2, -1}},
    {"gaussian_nll_loss", {0, 0.5}, {1, 0, 0}, {2, -2, -1}},
    // the slope of p log p at 0 is minus infinity
    {"kl_div", {0}, {-1, 0}, {0, 0}},

    // the kink belongs to the slope
    {"hinge_embedding_loss", {1}, {1, -1}, {-1}},
    {"hinge_embedding_loss", {1}, {1, 1}, {1}},
    {"hinge_embedding_loss", {1}, {1, 0}, {0}},
    {"margin_ranking_loss", {0}, {3, 3, 1}, {-1, 1, 0}},
    {"margin_ranking_loss", {0.5}, {1, 0.5, 1}, {-1, 1, -0.5}},

    // coordinates of input, then of target: identical boxes, half of each slope cancels the other; points; an edge in
    // common, which belongs to the slope of the intersection
    {"iou_loss", {0}, {0, 0, 2, 2, 0, 0, 2, 2}, {0, 0, 0, 0, 0, 0, 0, 0}},
    {"iou_loss", {0}, {1, 1, 1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 0, 0, 0}},
    {"iou_loss", {0}, {0, 0, 2, 1, 2, 0, 3, 1}, {0, 0, -1. / 3, 0, 1. / 3, 0, 0, 0}},
    {"giou_loss", {0}, {0, 0, 2, 2, 0, 0, 2, 2}, {0, 0, 0, 0, 0, 0, 0, 0}},
    {"ciou_loss", {0.5}, {1, 1, 1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 0, 0, 0}},
    // iou = 0, where iou^(alpha - 1) may be infinite
    {"alpha_iou_loss", {0.5, 0}, {0, 0, 2, 1, 2, 0, 3, 1}, {0, 0, 0, 0, 0, 0, 0, 0}},
    // the same centre: no slope through the angle
    {"siou_loss",
     {1, 0},
     {1, 1, 3, 3, 0, 0, 4, 4},
     {0.20081633, 0.20081633, -0.20081633, -0.20081633, -0.10040817, -0.10040817, 0.10040817, 0.10040817}},
};

// Whole regions where grad is no derivative of value by input k: outside of what the formula is for, or by a decision.
inline bool excepted(const std::string& op, const Options& options, const double* x, int k) {
  if (op == "focal_loss") return x[1] < 0 || x[1] > 1;
  // two losses that are about equal there
  if (op == "asymmetric_loss") return k == 1 && x[0] == 1;
  // the size of a side is its absolute value
  if (op == "prob_iou_loss") return (k % 5 == 2 || k % 5 == 3) && x[k] == 0;
  if (op == "gaussian_nll_loss") return k == 2 && x[2] <= options["eps"];
  return false;
}

}  // namespace lossreg
