#pragma once
// Losses of the overlap of predicted and true regions: Dice's, Tversky's and Jaccard's indices.
#include "../skeletons/regionwise/overlap.h"

namespace lossreg {

// Dice's coefficient (2 A + s) / (Q + Y + s), as an index.
HD Tversky dice_index(double smooth) {
  return {0.5, 0.5, 0.5 * smooth};
}
// A class's weight is one over the square of its pixels' number; an absent class takes the largest one.
struct CloseGeneralizedDice : RegionLosses {
  double eps;
  int64_t classes;
  double* state;
  template <class Team>
  HD void operator()(int64_t region, double* partial, int64_t chunks, const Team& team) const {
    double* of_class = state + region * classes * 2;  // weight and A; then a and b
    double largest = 0, shared = 0, whole = 0, absent = 0;
    const auto each = uint32_t(classes), parts = add_parts(partial, uint32_t(chunks), each, team);
    for (uint32_t c = uint32_t(team.rank()); c < each; c += uint32_t(team.size())) {
      double sums[3] = {0, 0, 0};
      for (uint32_t i = 0; i < parts; i++)
        for (int k = 0; k < 3; k++) sums[k] += partial[(int64_t(i) * each + c) * 3 + k];
      double w = sums[2] > 0 ? 1 / (sums[2] * sums[2]) : 0;
      of_class[2 * c] = w;
      largest = w > largest ? w : largest;
      shared += w * sums[0];
      whole += w * (sums[1] + sums[2]);
      // the overlap of an absent class is 0, or NaN where a pixel's class is unknown
      absent += w == 0 ? sums[0] + sums[1] : 0;
    }
    largest = team.max(largest);
    if (largest == 0) largest = 1;
    // Q and Y count alike, so that their sum is all that is asked for
    auto o = Overlap<double>::of(team.sum(shared), team.sum(whole) + largest * team.sum(absent), 0.0, dice_index(eps));
    for (int64_t c = team.rank(); c < classes; c += team.size()) {
      double w = of_class[2 * c] == 0 ? largest : of_class[2 * c];
      of_class[2 * c] = w * o.slopes.a;
      of_class[2 * c + 1] = w * o.slopes.q;
    }
    if (team.rank() == 0) put_loss(region, o.loss);
  }
  // Threads beyond one a class share the chunks: thread by thread, every so many chunks are added up in the place of
  // the first of them. Returns in how many places the sums of a class are then.
  template <class Team>
  HD static uint32_t add_parts(double* partial, uint32_t chunks, uint32_t classes, const Team& team) {
    uint32_t parts = uint32_t(team.size()) / classes;
    parts = parts < 1 ? 1 : parts;
    parts = parts < chunks ? parts : chunks;  // none, where there are no pixels
    for (uint32_t i = uint32_t(team.rank()); i < parts * classes; i += uint32_t(team.size())) {
      const uint32_t part = i / classes;
      double* sums = partial + int64_t(i) * 3;
      for (uint32_t chunk = part + parts; chunk < chunks; chunk += parts)
        for (int k = 0; k < 3; k++) sums[k] += sums[int64_t(chunk - part) * classes * 3 + k];
    }
    team.sync();
    return parts;
  }
};
inline double checked_smooth(const char* name, double smooth) {
  expect(smooth >= 0 && smooth < INFINITY, name, "smooth >= 0", smooth);
  return smooth;
}

// The losses of a sigmoid that are Tversky's index of some alpha, beta and gamma.
struct TverskyIndex : Tversky {
  HD Overlap<double> overlap(double shared, double of_q, double of_y) const {
    return Overlap<double>::of(shared, of_q, of_y, *this);
  }
};
template <class Op>
struct TverskyOverlap : RegionFormula<Op> {
  TverskyIndex index;
  const TverskyIndex& formula() const { return index; }
};

struct DiceLoss : TverskyOverlap<DiceLoss> {
  static constexpr auto name = "dice_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float p=1.0, float smooth=1.0, Tensor? weight=None, int ignore_index=-100, "
      "bool batch=False, str reduction=\"mean\"";
  static constexpr bool has_power = true;
  double p;

  static DiceLoss make(double p, double smooth, int64_t ignore_index, bool batch, Reduction reduction) {
    expect(p >= 1 && p < INFINITY, name, "p >= 1", p);
    return {{{{ignore_index, reduction}, batch}, {dice_index(checked_smooth(name, smooth))}}, p};
  }
  Power power() const { return {p}; }
};

// Salehi et al., Tversky loss function for image segmentation, arXiv 1706.05721; with gamma, Abraham and Khan's focal
// Tversky loss, arXiv 1810.07842.
struct TverskyLoss : TverskyOverlap<TverskyLoss> {
  static constexpr auto name = "tversky_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float alpha=0.5, float beta=0.5, float gamma=1.0, float smooth=1.0, "
      "Tensor? weight=None, int ignore_index=-100, bool batch=False, str reduction=\"mean\"";

  static TverskyLoss make(double alpha, double beta, double gamma, double smooth, int64_t ignore_index, bool batch,
                          Reduction reduction) {
    expect(alpha >= 0 && alpha < INFINITY, name, "alpha >= 0", alpha);
    expect(beta >= 0 && beta < INFINITY, name, "beta >= 0", beta);
    expect(gamma >= 0 && gamma < INFINITY, name, "gamma >= 0", gamma);
    return {{{{ignore_index, reduction}, batch}, {{alpha, beta, checked_smooth(name, smooth), gamma}}}};
  }
};

// 1 - (A + s) / (Q + Y - A + s): of the intersection and the union.
struct JaccardLoss : TverskyOverlap<JaccardLoss> {
  static constexpr auto name = "jaccard_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float smooth=1.0, Tensor? weight=None, int ignore_index=-100, bool batch=False, "
      "str reduction=\"mean\"";

  static JaccardLoss make(double smooth, int64_t ignore_index, bool batch, Reduction reduction) {
    return {{{{ignore_index, reduction}, batch}, {{1, 1, checked_smooth(name, smooth)}}}};
  }
};

struct GeneralizedDiceLoss : OverlapLoss<GeneralizedDiceLoss> {
  static constexpr auto name = "generalized_dice_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, float eps=1e-5, int ignore_index=-100, str reduction=\"mean\"";
  static constexpr int inputs = 2, gradients = 1;
  static constexpr bool softmax = true, soft_targets = false, batch = false;
  double eps;

  static GeneralizedDiceLoss make(double eps, int64_t ignore_index, Reduction reduction) {
    expect(eps >= 0 && eps < INFINITY, name, "eps >= 0", eps);
    return {{ignore_index, reduction}, eps};
  }
  template <class T>
  CloseGeneralizedDice close(const RegionLosses& losses, const RegionPass<T>& pass, double* state) const {
    return {losses, eps, pass.regions.classes, state};
  }
};

using Ops = WrittenOps<DiceLoss, TverskyLoss, JaccardLoss, GeneralizedDiceLoss>;

}  // namespace lossreg
