#pragma once
#include "../skeletons/boxwise/formula.h"

namespace lossreg {

// Divisions by what eps keeps from 0. Where eps = 0 does not, the numerator is 0 as well, and their quotient is what it
// is for every eps > 0: 0, and so is its slope.
template <class T>
HD T ratio(T numerator, T denominator) {
  return quotient_or(T(0), numerator, denominator);
}
inline double checked_eps(const char* name, double eps) {
  expect(eps >= 0 && eps < INFINITY, name, "finite eps >= 0", eps);
  return eps;
}

template <class T>
HD BoxPair<T> scaled(T factor, const BoxPair<T>& g) {
  auto axis = [&](const BoxAxis<T>& a) {
    return BoxAxis<T>{factor * a.size, factor * a.target_size, factor * a.overlap, factor * a.hull, factor * a.offset};
  };
  return {axis(g.x), axis(g.y)};
}

// iou = I / (U + eps), and miss = 1 - iou.
template <class T>
struct Areas {
  T intersection, united, inverse_united, iou, miss;
};
template <class T>
HD Areas<T> areas(const BoxPair<T>& b, Parameter eps) {
  auto [x, y] = b;
  T intersection = x.overlap * y.overlap;
  // U - I, of terms that are not negative: so miss keeps its digits where the boxes agree, and iou is at most 1
  T alone = (x.size - x.overlap) * y.size + x.overlap * (y.size - y.overlap);
  T target_alone = (x.target_size - x.overlap) * y.target_size + x.overlap * (y.target_size - y.overlap);
  T difference = alone + target_alone, united = intersection + difference, denominator = united + T(eps);
  T miss = quotient_or(T(1), difference + T(eps), denominator);
  return {intersection, united, inverse_or_0(denominator), ratio(intersection, denominator), miss};
}
// From the slopes in I and U; U = (area of input) + (area of target) - I.
template <class T>
HD BoxPair<T> slopes_of_areas(const BoxPair<T>& b, T dI, T dU) {
  auto [x, y] = b;
  return {{dU * y.size, dU * y.target_size, (dI - dU) * y.overlap, T(0), T(0)},
          {dU * x.size, dU * x.target_size, (dI - dU) * x.overlap, T(0), T(0)}};
}
template <class T>
HD BoxPair<T> slopes_of_iou(const BoxPair<T>& b, const Areas<T>& a, T diou) {
  T dI = diou * a.inverse_united;
  return slopes_of_areas(b, dI, -a.iou * dI);
}

// The centres' distance over the diagonal of the enclosing box: rho^2 / c^2, c^2 = cw^2 + ch^2 + eps.
template <class T>
struct Distance {
  T squared, diagonal, value;
};
template <class T>
HD Distance<T> distance(const BoxPair<T>& b, Parameter eps) {
  T squared = b.x.offset * b.x.offset + b.y.offset * b.y.offset;
  T diagonal = b.x.hull * b.x.hull + b.y.hull * b.y.hull + T(eps);
  return {squared, diagonal, ratio(squared, diagonal)};
}

// What diou, ciou, eiou and focal_eiou have in common: 1 - iou + rho^2 / c^2.
template <class T>
HD T distance_iou(const BoxPair<T>& b, Parameter eps) {
  return areas(b, eps).miss + distance(b, eps).value;
}
template <class T>
HD BoxPair<T> distance_iou_grad(const BoxPair<T>& b, Parameter eps) {
  BoxPair<T> g = slopes_of_iou(b, areas(b, eps), T(-1));
  Distance<T> d = distance(b, eps);
  T step = T(2) * inverse_or_0(d.diagonal);
  g.x.offset = step * b.x.offset;
  g.y.offset = step * b.y.offset;
  g.x.hull = -d.value * step * b.x.hull;
  g.y.hull = -d.value * step * b.y.hull;
  return g;
}

// 1 - iou.
struct IoULoss {
  static constexpr auto name = "iou_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\"mean\", float eps=1e-07";
  static constexpr int inputs = 2, gradients = 2;
  Parameter eps;

  static IoULoss make(Reduction, double eps) { return {checked_eps(name, eps)}; }
  template <class T>
  HD T value(const BoxPair<T>& b) const {
    return areas(b, eps).miss;
  }
  template <class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    return slopes_of_iou(b, areas(b, eps), T(-1));
  }
};

// Rezatofighi et al., Generalized intersection over union, arXiv 1902.09630: 1 - iou + (E - U) / (E + eps), E the area
// of the enclosing box.
struct GIoULoss {
  static constexpr auto name = "giou_loss";
  static constexpr auto args = IoULoss::args;
  static constexpr int inputs = 2, gradients = 2;
  Parameter eps;

  static GIoULoss make(Reduction, double eps) { return {checked_eps(name, eps)}; }
  template <class T>
  HD T value(const BoxPair<T>& b) const {
    Areas<T> a = areas(b, eps);
    T enclosing = b.x.hull * b.y.hull;
    return a.miss + ratio(enclosing - a.united, enclosing + T(eps));
  }
  template <class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    Areas<T> a = areas(b, eps);
    T enclosing = b.x.hull * b.y.hull, per_area = inverse_or_0(enclosing + T(eps));
    BoxPair<T> g = slopes_of_areas(b, -a.inverse_united, a.iou * a.inverse_united - per_area);
    T dE = (a.united + T(eps)) * per_area * per_area;
    g.x.hull = dE * b.y.hull;
    g.y.hull = dE * b.x.hull;
    return g;
  }
};

// Zheng et al., Distance-IoU loss, arXiv 1911.08287: 1 - iou + rho^2 / c^2.
struct DIoULoss {
  static constexpr auto name = "diou_loss";
  static constexpr auto args = IoULoss::args;
  static constexpr int inputs = 2, gradients = 2;
  Parameter eps;

  static DIoULoss make(Reduction, double eps) { return {checked_eps(name, eps)}; }
  template <class T>
  HD T value(const BoxPair<T>& b) const {
    return distance_iou(b, eps);
  }
  template <class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    return distance_iou_grad(b, eps);
  }
};

// The same paper's complete IoU: diou + alpha v, v = 4 / pi^2 (difference of the angles atan2(w, h))^2, and
// alpha = v / (1 - iou + v + eps) constant.
struct CIoULoss {
  static constexpr auto name = "ciou_loss";
  static constexpr auto args = IoULoss::args;
  static constexpr int inputs = 2, gradients = 2;
  static constexpr double kScale = 0.4052847345693511;  // 4 / pi^2
  Parameter eps;

  static CIoULoss make(Reduction, double eps) { return {checked_eps(name, eps)}; }
  // alpha, and the angles' difference
  template <class T>
  struct Aspect {
    T alpha, turn;
  };
  template <class T>
  HD Aspect<T> aspect(const BoxPair<T>& b) const {
    T turn = atan2(b.x.target_size, b.y.target_size) - atan2(b.x.size, b.y.size);
    T v = T(kScale) * turn * turn;
    return {detached(ratio(v, areas(b, eps).miss + v + T(eps))), turn};
  }
  template <class T>
  HD T value(const BoxPair<T>& b) const {
    Aspect<T> k = aspect(b);
    return distance_iou(b, eps) + k.alpha * T(kScale) * k.turn * k.turn;
  }
  template <class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    BoxPair<T> g = distance_iou_grad(b, eps);
    Aspect<T> k = aspect(b);
    T dturn = T(2 * kScale) * k.alpha * k.turn;
    // a box of size 0 x 0 has no angle, and no slope
    T w = b.x.size, h = b.y.size, step = dturn * inverse_or_0(w * w + h * h);
    g.x.size = g.x.size - step * h;
    g.y.size = g.y.size + step * w;
    T target_w = b.x.target_size, target_h = b.y.target_size;
    T target_step = dturn * inverse_or_0(target_w * target_w + target_h * target_h);
    g.x.target_size = g.x.target_size + target_step * target_h;
    g.y.target_size = g.y.target_size - target_step * target_w;
    return g;
  }
};

// Zhang et al., Focal and efficient IOU loss, arXiv 2101.08158: diou + (w - w_t)^2 / (cw^2 + eps), and for h the same.
struct EIoULoss {
  static constexpr auto name = "eiou_loss";
  static constexpr auto args = IoULoss::args;
  static constexpr int inputs = 2, gradients = 2;
  Parameter eps;

  static EIoULoss make(Reduction, double eps) { return {checked_eps(name, eps)}; }
  template <class T>
  HD T size_term(const BoxAxis<T>& a) const {
    T difference = a.size - a.target_size;
    return ratio(difference * difference, a.hull * a.hull + T(eps));
  }
  template <class T>
  HD void add_size_slopes(BoxAxis<T>& g, const BoxAxis<T>& a) const {
    T step = T(2) * inverse_or_0(a.hull * a.hull + T(eps)), difference = a.size - a.target_size;
    g.size = g.size + step * difference;
    g.target_size = g.target_size - step * difference;
    g.hull = g.hull - size_term(a) * step * a.hull;
  }
  template <class T>
  HD T value(const BoxPair<T>& b) const {
    return distance_iou(b, eps) + size_term(b.x) + size_term(b.y);
  }
  template <class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    BoxPair<T> g = distance_iou_grad(b, eps);
    add_size_slopes(g.x, b.x);
    add_size_slopes(g.y, b.y);
    return g;
  }
};

// The same paper's iou^gamma eiou, iou^gamma constant.
struct FocalEIoULoss {
  static constexpr auto name = "focal_eiou_loss";
  static constexpr auto args = "Tensor input, Tensor target, float gamma=0.5, str reduction=\"mean\", float eps=1e-07";
  static constexpr int inputs = 2, gradients = 2;
  Parameter gamma, eps;

  static FocalEIoULoss make(double gamma, Reduction, double eps) {
    expect(gamma >= 0 && gamma < INFINITY, name, "finite gamma >= 0", gamma);
    return {gamma, checked_eps(name, eps)};
  }
  // gamma = 1/2 is the paper's choice, and needs no power
  static constexpr int modes = 2;
  int mode() const { return gamma == 0.5 ? 1 : 0; }

  template <int Mode, class T>
  HD T focus(const BoxPair<T>& b) const {
    T iou = detached(areas(b, eps).iou);
    if constexpr (Mode == 1) return sqrt(iou);
    return pow_unit(iou, T(gamma));
  }
  template <int Mode, class T>
  HD T value(const BoxPair<T>& b) const {
    return focus<Mode>(b) * EIoULoss{eps}.value(b);
  }
  template <int Mode, class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    return scaled(focus<Mode>(b), EIoULoss{eps}.grad(b));
  }
};

// He et al., Alpha-IoU, arXiv 2110.13675: 1 - iou^alpha.
struct AlphaIoULoss {
  static constexpr auto name = "alpha_iou_loss";
  static constexpr auto args = "Tensor input, Tensor target, float alpha=3.0, str reduction=\"mean\", float eps=1e-07";
  static constexpr int inputs = 2, gradients = 2;
  Parameter alpha, eps;

  static AlphaIoULoss make(double alpha, Reduction, double eps) {
    expect(alpha > 0 && alpha < INFINITY, name, "finite alpha > 0", alpha);
    return {alpha, checked_eps(name, eps)};
  }
  // alpha = 3 is the paper's choice, and needs no power
  static constexpr int modes = 2;
  int mode() const { return alpha == 3 ? 1 : 0; }

  template <int Mode, class T>
  HD T value(const BoxPair<T>& b) const {
    Areas<T> a = areas(b, eps);
    // of iou or of 1 - iou, whichever has its digits
    bool apart = a.iou < T(0.5);
    if constexpr (Mode == 1) return apart ? T(1) - a.iou * a.iou * a.iou : a.miss * (T(1) + a.iou * (T(1) + a.iou));
    T log_iou = apart ? log(a.iou) : log1m(a.miss);
    return one_minus_exp(-T(alpha) * log_iou);
  }
  template <int Mode, class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    Areas<T> a = areas(b, eps);
    T slope;
    if constexpr (Mode == 1) slope = T(3) * a.iou * a.iou;
    // alpha iou^(alpha - 1) by one division, and 0 at iou = 0, where it may be infinite
    else slope = T(alpha) * ratio(pow_unit(a.iou, T(alpha)), a.iou);
    return slopes_of_iou(b, a, -slope);
  }
};

// Gevorgyan, SIoU loss, arXiv 2205.12740: 1 - iou + (Delta + Omega) / 2, a distance cost that depends on the angle
// between the centres, and a shape cost.
struct SIoULoss {
  static constexpr auto name = "siou_loss";
  static constexpr auto args = "Tensor input, Tensor target, float theta=4.0, str reduction=\"mean\", float eps=1e-07";
  static constexpr int inputs = 2, gradients = 2;
  Parameter theta, eps;

  static SIoULoss make(double theta, Reduction, double eps) {
    expect(theta > 0 && theta < INFINITY, name, "finite theta > 0", theta);
    return {theta, checked_eps(name, eps)};
  }
  // theta = 4 is the paper's choice, and needs no power
  static constexpr int modes = 2;
  int mode() const { return theta == 4 ? 1 : 0; }

  // s = min(|dx|, |dy|) / sigma: the sine of the angle to the nearer axis; Lambda is the sine of its double.
  template <class T>
  struct Angle {
    T dx, dy, radius, inverse_sigma, s, cosine, gamma;
  };
  template <class T>
  HD Angle<T> angle(const BoxPair<T>& b) const {
    T dx = b.x.offset, dy = b.y.offset, radius = length(dx * dx + dy * dy), sigma = radius + T(eps);
    T s = ratio(smaller(abs(dx), abs(dy)), sigma), cosine = sqrt(T(1) - s * s);
    return {dx, dy, radius, inverse_or_0(sigma), s, cosine, T(2) - T(2) * s * cosine};
  }
  // The root, which has no slope at 0.
  template <class T>
  HD static T length(T squared) {
    return squared == T(0) ? T(0) : sqrt(squared);
  }
  // 1 - e^(-gamma u^2), u = offset / (hull + eps)
  template <class T>
  struct Nearness {
    T u, inverse_hull, e;
  };
  template <class T>
  HD Nearness<T> nearness(const BoxAxis<T>& a, T gamma) const {
    T hull = a.hull + T(eps), u = ratio(a.offset, hull);
    return {u, inverse_or_0(hull), exp_negative(-gamma * u * u)};
  }
  // unlike^theta, unlike = 1 - e^-k, k = |w - w_t| / (max(w, w_t) + eps)
  template <class T>
  struct Shape {
    T k, inverse_size, unlike, power;
  };
  template <int Mode, class T>
  HD Shape<T> shape(const BoxAxis<T>& a) const {
    T size = larger(a.size, a.target_size) + T(eps), k = ratio(abs(a.size - a.target_size), size);
    T q = one_minus_exp(k), power;
    if constexpr (Mode == 1) power = (q * q) * (q * q);
    else power = pow_unit(q, T(theta));
    return {k, inverse_or_0(size), q, power};
  }

  template <int Mode, class T>
  HD T value(const BoxPair<T>& b) const {
    T gamma = angle(b).gamma;
    T delta = (T(1) - nearness(b.x, gamma).e) + (T(1) - nearness(b.y, gamma).e);
    T omega = shape<Mode>(b.x).power + shape<Mode>(b.y).power;
    return areas(b, eps).miss + T(0.5) * (delta + omega);
  }
  template <int Mode, class T>
  HD BoxPair<T> grad(const BoxPair<T>& b) const {
    BoxPair<T> g = slopes_of_iou(b, areas(b, eps), T(-1));
    Angle<T> k = angle(b);
    Nearness<T> x = nearness(b.x, k.gamma), y = nearness(b.y, k.gamma);
    T dgamma = T(0.5) * (x.u * x.u * x.e + y.u * y.u * y.e);
    // d Lambda / d s = 2 (1 - 2 s^2) / cosine, and gamma = 2 - Lambda; s is at most sqrt(1/2), so cosine never 0
    T ds = -dgamma * T(2) * (T(1) - T(2) * k.s * k.s) / k.cosine * k.inverse_sigma, dradius = -k.s * ds;
    T x_nearer = share(abs(k.dx), abs(k.dy)), per_radius = inverse_or_0(k.radius);
    g.x.offset = ds * x_nearer * sign(k.dx) + dradius * k.dx * per_radius;
    g.y.offset = ds * (T(1) - x_nearer) * sign(k.dy) + dradius * k.dy * per_radius;
    add_nearness_slopes(g.x, x, k.gamma);
    add_nearness_slopes(g.y, y, k.gamma);
    add_shape_slopes<Mode>(g.x, b.x);
    add_shape_slopes<Mode>(g.y, b.y);
    return g;
  }
  template <class T>
  HD void add_nearness_slopes(BoxAxis<T>& g, const Nearness<T>& n, T gamma) const {
    T doffset = gamma * n.u * n.e * n.inverse_hull;
    g.offset = g.offset + doffset;
    g.hull = g.hull - doffset * n.u;
  }
  template <int Mode, class T>
  HD void add_shape_slopes(BoxAxis<T>& g, const BoxAxis<T>& a) const {
    Shape<T> s = shape<Mode>(a);
    // theta (1 - e^-k)^(theta - 1) by one division, and 0 at k = 0
    T dk = T(0.5) * T(theta) * ratio(s.power, s.unlike) * (T(1) - s.unlike) * s.inverse_size;
    T towards = dk * sign(a.size - a.target_size), wider = share(a.target_size, a.size);
    g.size = g.size + towards - dk * s.k * wider;
    g.target_size = g.target_size - towards - dk * s.k * (T(1) - wider);
  }
};

// Tong et al., Wise-IoU, arXiv 2301.10051: R (1 - iou), R = e^(rho^2 / c^2) with c^2 constant. With a running mean of
// 1 - iou, times beta / (delta alpha^(beta - delta)), constant: beta = (1 - iou) / max(iou_mean, eps), how much of an
// outlier the pair is.
struct WIoULoss {
  static constexpr auto name = "wiou_loss";
  static constexpr auto args =
      "Tensor input, Tensor target, Tensor? iou_mean=None, float alpha=1.9, float delta=3.0, str reduction=\"mean\", "
      "float eps=1e-07";
  static constexpr int inputs = 3, gradients = 2;
  Parameter delta, per_delta, log_alpha, eps;
  bool has_third = false;  // the skeleton says so

  static WIoULoss make(double alpha, double delta, Reduction, double eps) {
    expect(alpha > 0 && alpha < INFINITY, name, "finite alpha > 0", alpha);
    expect(delta > 0 && delta < INFINITY, name, "finite delta > 0", delta);
    return {delta, 1 / delta, ::log(alpha), checked_eps(name, eps)};
  }
  static constexpr int modes = 2;
  int mode() const { return has_third ? 1 : 0; }

  // All factors of 1 - iou but R's own slope, which goes through rho^2 alone.
  template <int Mode, class T>
  HD T focus(const Areas<T>& a, T iou_mean) const {
    if constexpr (Mode == 0) {
      return T(1);
    } else {
      T beta = detached(ratio(a.miss, at_least(iou_mean, T(eps))));
      return beta * T(per_delta) * exp((T(delta) - beta) * T(log_alpha));
    }
  }
  template <int Mode, class T>
  HD T value(const BoxPair<T>& b, T iou_mean) const {
    Areas<T> a = areas(b, eps);
    Distance<T> d = distance(b, eps);
    return focus<Mode>(a, iou_mean) * exp(ratio(d.squared, detached(d.diagonal))) * a.miss;
  }
  template <int Mode, class T>
  HD BoxPair<T> grad(const BoxPair<T>& b, T iou_mean) const {
    Areas<T> a = areas(b, eps);
    Distance<T> d = distance(b, eps);
    T factor = focus<Mode>(a, iou_mean) * exp(d.value);
    BoxPair<T> g = slopes_of_iou(b, a, -factor);
    T step = factor * a.miss * T(2) * inverse_or_0(d.diagonal);
    g.x.offset = step * b.x.offset;
    g.y.offset = step * b.y.offset;
    return g;
  }
};

using Ops = BoxOps<IoULoss, GIoULoss, DIoULoss, CIoULoss, EIoULoss, FocalEIoULoss, AlphaIoULoss, SIoULoss, WIoULoss>;

}  // namespace lossreg
