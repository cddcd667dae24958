#pragma once
// What a backend is. Skeletons and written-out ops are templates over one: a struct with a few static members of its
// own, and a nested struct of kernels for each skeleton. cpu.h and cuda.h are the two that there are; their nested
// structs stand beside the skeletons, in pointwise/cpu.h, pointwise/cuda.h and so on.
//
// NullBackend has every member, says what each one promises, and does nothing. A new backend begins as a copy of it,
// with a file in each of the five folders. Beside them it needs a source like lossreg.cu, which hands it to
// implement(); its compiler in base/compiler.h, if that is another one; and its name in base/tensor.h (device_text) and
// in opreg/_library.py (KERNEL_KEYS).
//
// On every backend a result depends on the sizes of a problem alone, not on how many threads there are or in which
// order they run: sums are taken over pieces of a fixed size and combined in a fixed order. T is the type that is
// computed in, float or double. Where a result is reduced, `out` is a tensor of one element, and `dtype` is its dtype.
#include "../base/has.h"
#include "../base/selection.h"
#include "boxwise/kernel.h"
#include "groupwise/kernel.h"
#include "pointwise/kernel.h"
#include "regionwise/call.h"
#include "rowwise/kernel.h"

namespace lossreg {

struct NullBackend {
  // May the host look at results and inputs? Then a value outside of an op's domain is an error. Where it may not,
  // since that would mean to wait for the device, such a value makes NaN.
  static constexpr bool checks_values = false;
  // Has it kernels that find a reduced value and its gradient in one pass: Pointwise::sum_and_map, Boxes::sum_and_grad,
  // and forward_and_grad of Rows and of Groups? Without them nobody calls these four.
  static constexpr bool one_pass = false;
  // How many neighbouring elements one thread takes at once, where a body is written for strips of them: many where a
  // loop over them becomes vectors, 1 where the threads are lanes of a vector themselves.
  static constexpr int kStrip = 1;

  // While it lives, what is launched and allocated is on the tensor's device, in its current stream.
  struct Guard {
    explicit Guard(const Tensor&) {}
    // Are launches recorded, to run later, and again and again? What they read has to be on the device then.
    bool records() const { return false; }
  };

  // Writes zeros into a tensor without gaps and returns true; or returns false and does nothing, where the row kernels
  // write zeros and gradients faster in one pass.
  static bool zero(const Tensor&) { return false; }

  // out = beta addend + a b, matrices of one dtype.
  static void add_product(const Tensor& /*out*/, const Tensor& /*addend*/, double /*beta*/, const Tensor& /*a*/,
                          const Tensor& /*b*/) {}
  // out = a b, where out is of a wider dtype than a and b.
  static void wide_product(const Tensor& /*out*/, const Tensor& /*a*/, const Tensor& /*b*/) {}

  // How a large product is best taken apart into products of some rows each.
  struct Products {
    // What the results of one of them may take, where the other matrix takes so many bytes.
    static int64_t chunk_bytes(int64_t /*beside*/) { return 1; }
    // A multiple of how many rows it should have, and of how many elements a row should lie from the next.
    static constexpr int64_t whole_rows = 1, row_step = 1;
    // The dtype of sums of products of matrices of a dtype.
    static DType sum_dtype(DType dtype) { return dtype; }
    // The dtype in which matrices of a dtype are best multiplied where the result is to be of the wider one.
    static DType factor_dtype(DType dtype) { return dtype; }
    // Where that is the narrower one, is the right factor laid out for many products, as a Packed? Its members are
    // those of cpu/packed.h.
    static constexpr bool packs = false;
    struct Packed {};
  };

  // The k smallest, 0 < k <= n, of n keys of so many bits, which are unsigned integers; or nothing, where *there >= k,
  // which the host may not know.
  template <class Key>
  static void select_smallest(const Tensor& /*like*/, const Key*, int64_t /*n*/, int /*bits*/, int64_t /*k*/,
                              const double* /*there*/, Selection* /*out*/) {}

  // Three ways to run a body that an op has written out: a struct with an HD operator(), whose members are plain
  // (numbers, pointers, Operands). One i touches about `cost` elements; the work is divided up by that. If n is 0, no
  // body runs.

  // body(i) for every i < n, in any order.
  template <class Body>
  static void each(int64_t n, int64_t /*cost*/, Body body) {
    if (n < 0) body(n);
  }

  // The threads that run one body(i, team) together: one thread, or a block of them on a GPU. Every thread of the team
  // has to come to each call of sync(), sum(), max() and before().
  struct Team {
    // This thread's number, and how many there are: for (int64_t k = team.rank(); k < n; k += team.size()) shares a
    // loop out.
    HD int64_t rank() const { return 0; }
    HD int64_t size() const { return 1; }
    // What any thread wrote before, all can read after.
    HD void sync() const {}
    // The sum and the greatest of the threads' values, for every thread; a NaN is the greatest.
    template <class T>
    HD T sum(T value) const {
      return value;
    }
    template <class T>
    HD T max(T value) const {
      return value;
    }
    // The sum of the values of the threads with a lower rank, and in `all` that of all threads.
    template <class T>
    HD T before(T value, T& all) const {
      all = value;
      return T(0);
    }
    // Calls f(k) for every k < n, shared out; and the same for the sum of f(k), which every thread gets after a sync().
    // Where a thread is alone, these are vector loops.
    template <class F>
    HD void each(int64_t n, F f) const {
      if (n < 0) f(n);
    }
    template <class F>
    HD auto sum(int64_t n, F f) const {
      return f(n);
    }
    // K such sums at once: that of f(i, k) over i < n becomes out[k].
    template <int K, class T, class F>
    HD void sums(int64_t n, T (&out)[K], F f) const {
      for (int k = 0; k < K; k++) out[k] = f(n, k);
    }
    // Calls f(k, part) for every k < n, shared out to the parts of the team, which are teams of fewer threads: with a
    // rank(), a size(), a sum() and a max() of one value.
    template <class F>
    HD void each_part(int64_t n, F f) const {
      if (n < 0) f(n, *this);
    }
    // So many bytes of fast memory are the team's own while it runs one body. 0: what is read again lies in a cache.
    static constexpr int64_t kMemory = 0;
    HD double* memory() const { return nullptr; }
  };
  // body(i, team) for every i < n, in any order.
  template <class Body>
  static void teams(int64_t n, int64_t /*cost*/, Body body) {
    if (n < 0) body(n, Team{});
  }

  // body(i, sums) for every i < n, which adds to K sums; then finish(sums) once, with the sums over all i. It runs even
  // if n is 0, and on the device like the bodies: the host waits for neither. `like` is a tensor on that device.
  template <int K, class Body, class Finish>
  static void total(const Tensor& /*like*/, int64_t n, int64_t /*cost*/, Body body, Finish finish) {
    double sums[K] = {};
    if (n < 0) body(n, sums), finish(sums);
  }

  struct Pointwise {
    // For each element, body(x, y) finds the O numbers y from the I numbers x. The operands are the inputs, which x is
    // read from, and then the outputs, which y is written to; an output without data is not written. A backward sweep
    // is a hint that a forward one has just read the same inputs.
    template <class T, int I, int O, Sweep = Sweep::forward, class Body>
    static void map(const Iteration<I + O>& it, Body body) {
      T x[I] = {}, y[O];
      if (it.numel < 0) body(x, y);
    }
    // The same for each of many index spaces, in few launches.
    template <class T, int I, int O, class Body>
    static void map_many(const std::vector<Iteration<I + O>>& many, Body body) {
      for (const auto& it : many) map<T, I, O>(it, body);
    }
    // out = scale * the sum of y[0] over all elements, from body(x, y) as above.
    template <class T, int I, class Body>
    static void sum(const Iteration<I>& it, Body body, double /*scale*/, const Tensor& /*out*/, DType /*dtype*/) {
      T x[I] = {}, y[1];
      if (it.numel < 0) body(x, y);
    }
    // Both at once: value(x, y) is summed as above. The last operand gets what grad(x, y) finds, which x[0], the
    // gradient of the sum and here 1, stands before the inputs for.
    template <class T, int I, class Value, class Grad>
    static void sum_and_map(const Iteration<I + 1>& it, Value value, Grad grad, double /*scale*/, const Tensor& /*out*/,
                            DType /*dtype*/) {
      T x[I + 1] = {}, y[1];
      if (it.numel < 0) value(reinterpret_cast<T(&)[I]>(x), y), grad(x, y);
    }
    // An element x for which wanted(x) is true, if there is one. Only a backend that checks values needs this.
    template <class T, class Wanted>
    static std::optional<T> find(const Iteration<1>&, Wanted) {
      return std::nullopt;
    }
  };

  // Kernels of a row formula in its mode Mode. The rows are described in rowwise/kernel.h.
  struct Rows {
    // May the gradient take the place of the scores in memory? Of a formula that has no margin and whose slopes do not
    // depend on nll: of others, one thread may read the target's score when another has written there.
    static constexpr bool gradients_in_place = false;
    // The rows' values, or their sum or mean into out; their state; the mean's denominator into *rows.normaliser.
    template <class T, int Mode, class F>
    static void forward(const F&, const lossreg::Rows&, const Tensor& /*out*/, DType /*dtype*/) {}
    // The gradient in the scores, from the state.
    template <class T, int Mode, class F>
    static void grad(const F&, const lossreg::Rows&) {}
    // Both at once, for a sum or mean whose own gradient is 1.
    template <class T, int Mode, class F>
    static void forward_and_grad(const F&, const lossreg::Rows&, const Tensor& /*out*/, DType /*dtype*/) {}
    // Where the target holds probabilities, the gradients in these and, row by row, in the class weights.
    template <class T, class F>
    static void share_grad(const F&, const lossreg::Rows&) {}
  };

  // Kernels of a group formula in its mode Mode. The groups are described in groupwise/kernel.h.
  struct Groups {
    // The groups' values, or their sum or mean into out; their coefficients as the state, where there is one.
    template <class T, int Mode, class F>
    static void forward(const F&, const lossreg::Groups<F>&, const Tensor& /*out*/, DType /*dtype*/) {}
    // The gradients in the members, from the coefficients.
    template <class T, int Mode, class F>
    static void grad(const F&, const lossreg::Groups<F>&) {}
    // Both at once, for a sum or mean whose own gradient is 1.
    template <class T, int Mode, class F>
    static void forward_and_grad(const F&, const lossreg::Groups<F>&, const Tensor& /*out*/, DType /*dtype*/) {}
  };

  // Kernels over pairs of boxes, which are described in boxwise/kernel.h. The body is a BoxBody.
  struct Boxes {
    // body.value of each pair.
    template <class T, class Body>
    static void map(const lossreg::Boxes&, Body) {}
    // out = scale * the sum of body.value over the pairs.
    template <class T, class Body>
    static void sum(const lossreg::Boxes&, Body, double /*scale*/, const Tensor& /*out*/, DType /*dtype*/) {}
    // Both at once: the sum as above, and scale * body.grad into the tensor of the first boxes' gradients.
    template <class T, class Body>
    static void sum_and_grad(const lossreg::Boxes&, Body, double /*scale*/, const Tensor& /*out*/, DType /*dtype*/) {}
    // scale * the pair's incoming gradient * body.grad, into the tensors of gradients that are there.
    template <class T, class Body>
    static void grad(const lossreg::Boxes&, Body, double /*scale*/) {}
  };

  // Kernels over pixels, in the chunks that a RegionPass divides a region into (regionwise/call.h). WithSoftmax: a
  // pixel's probabilities are the softmax of its scores, else the sigmoid of each. Soft: the target holds
  // probabilities, not labels. Mode is that of pass.power.
  struct Regions {
    // How many pixels are sorted at once where a region has fewer.
    static constexpr int64_t sorted_at_once = 1;
    // How many pixels a chunk should have.
    template <class T>
    static int64_t chunk_pixels(const lossreg::Regions&) {
      return 1;
    }
    // Three sums for each chunk and slot of a region, of probabilities q and targets y: of q y, of q^p and of y^p. Then
    // for each region close(region, its sums, its chunks, team), which may write to the sums; and when all regions are
    // closed, close.finish(regions, team), even where there is none. A team as in teams(). `like` is a tensor of the
    // device.
    template <class T, bool WithSoftmax, bool Soft, int Mode, class Close>
    static void sums(const char* /*op*/, const Tensor& /*like*/, const RegionPass<T>&, Close) {}
    // The gradient in the scores, and of soft targets in these, for a loss with the derivatives OverlapSlopes in the
    // three sums, which are the coefficients of a region. coefficients(factor, i) is the i-th of all, of a region that
    // coefficients.factor(region) belongs to.
    template <class T, bool Soft, int Mode, class Coefficients>
    static void grad_sigmoid(const RegionPass<T>&, const Coefficients&) {}
    // The gradient in the scores through a softmax. d loss / d q is a y + b, with two coefficients a and b of a region
    // and slot; or with Planes, a coefficient of the region times planes, which hold a number for each region, class
    // and pixel.
    template <class T, bool Planes, class Coefficients>
    static void grad_softmax(const RegionPass<T>&, const Coefficients&, const T* /*planes*/) {}
    // Each pixel's label and, for a softmax, its greatest score and 1 / the sum of exp(score - greatest).
    template <class T, bool WithSoftmax>
    static void describe(const char* /*op*/, const RegionPass<T>&, T* /*max*/, T* /*inverse*/, int32_t* /*label*/) {}
    // Keys to sort each pixel's error by, for `planes` classes from `first` on, counted over the classes of all
    // regions.
    template <class T, bool WithSoftmax>
    static void keys(const RegionPass<T>&, int64_t /*first*/, int64_t /*planes*/, const T* /*max*/,
                     const T* /*inverse*/, const int32_t* /*label*/, typename Key<T>::Bits* /*key*/) {}
  };
};

// ---- Is a backend whole? is_whole<Backend> stops the compiler, once for each member that is missing.

namespace member {

// What members are called with, to see whether they are there: nothing of it is run, and no body is compiled.
struct Body {
  HD void operator()(...) const {}
};
struct GroupFormula {
  static constexpr int inputs = 1, members = 1, gradients = 1, coefficients = 1, sums = 1;
  static constexpr Along along = Along::last;
};
template <class T>
const T& some();
using Pass = RegionPass<float>;

template <class B>
using Guard = decltype(bool(typename B::Guard(some<Tensor>()).records()));
template <class B>
using checks_values = decltype(bool(B::checks_values));
template <class B>
using one_pass = decltype(bool(B::one_pass));
template <class B>
using kStrip = decltype(int(B::kStrip));
template <class B>
using zero = decltype(bool(B::zero(some<Tensor>())));
template <class B>
using add_product = decltype(B::add_product(some<Tensor>(), some<Tensor>(), 1.0, some<Tensor>(), some<Tensor>()));
template <class B>
using wide_product = decltype(B::wide_product(some<Tensor>(), some<Tensor>(), some<Tensor>()));
template <class B>
using chunk_bytes = decltype(int64_t(B::Products::chunk_bytes(int64_t())));
template <class B>
using whole_rows = decltype(int64_t(B::Products::whole_rows + B::Products::row_step));
template <class B>
using sum_dtype = decltype(DType(B::Products::sum_dtype(DType())));
template <class B>
using Packed = typename B::Products::Packed;
template <class B>
using factor_dtype = decltype(DType(B::Products::packs ? DType() : B::Products::factor_dtype(DType())));
template <class B>
using select_smallest =
    decltype(B::select_smallest(some<Tensor>(), some<const uint32_t*>(), int64_t(), 0, int64_t(), nullptr, nullptr));
template <class B>
using each = decltype(B::each(int64_t(), int64_t(), Body()));
template <class B>
using teams = decltype(B::teams(int64_t(), int64_t(), Body()));
template <class B>
using total = decltype(B::template total<1>(some<Tensor>(), int64_t(), int64_t(), Body(), Body()));

template <class B>
using pointwise_map = decltype(B::Pointwise::template map<float, 1, 1, Sweep::backward>(some<Iteration<2>>(), Body()));
template <class B>
using pointwise_map_many =
    decltype(B::Pointwise::template map_many<float, 1, 1>(some<std::vector<Iteration<2>>>(), Body()));
template <class B>
using pointwise_sum =
    decltype(B::Pointwise::template sum<float, 1>(some<Iteration<1>>(), Body(), 1.0, some<Tensor>(), DType()));
template <class B>
using sum_and_map = decltype(B::Pointwise::template sum_and_map<float, 1>(some<Iteration<2>>(), Body(), Body(), 1.0,
                                                                          some<Tensor>(), DType()));
template <class B>
using pointwise_find = decltype(B::Pointwise::template find<float>(some<Iteration<1>>(), Body()));

template <class B>
using gradients_in_place = decltype(bool(B::Rows::gradients_in_place));
template <class B>
using rows_forward =
    decltype(B::Rows::template forward<float, 0>(some<RowFormula>(), some<Rows>(), some<Tensor>(), DType()));
template <class B>
using rows_grad = decltype(B::Rows::template grad<float, 0>(some<RowFormula>(), some<Rows>()));
template <class B>
using forward_and_grad =
    decltype(B::Rows::template forward_and_grad<float, 0>(some<RowFormula>(), some<Rows>(), some<Tensor>(), DType()));
template <class B>
using share_grad = decltype(B::Rows::template share_grad<float>(some<RowFormula>(), some<Rows>()));

template <class B>
using groups_forward = decltype(B::Groups::template forward<float, 0>(
    some<GroupFormula>(), some<Groups<GroupFormula>>(), some<Tensor>(), DType()));
template <class B>
using groups_forward_and_grad = decltype(B::Groups::template forward_and_grad<float, 0>(
    some<GroupFormula>(), some<Groups<GroupFormula>>(), some<Tensor>(), DType()));
template <class B>
using groups_grad = decltype(B::Groups::template grad<float, 0>(some<GroupFormula>(), some<Groups<GroupFormula>>()));

template <class B>
using boxes_map = decltype(B::Boxes::template map<float>(some<Boxes>(), Body()));
template <class B>
using boxes_sum = decltype(B::Boxes::template sum<float>(some<Boxes>(), Body(), 1.0, some<Tensor>(), DType()));
template <class B>
using boxes_sum_and_grad =
    decltype(B::Boxes::template sum_and_grad<float>(some<Boxes>(), Body(), 1.0, some<Tensor>(), DType()));
template <class B>
using boxes_grad = decltype(B::Boxes::template grad<float>(some<Boxes>(), Body(), 1.0));

template <class B>
using sorted_at_once = decltype(int64_t(B::Regions::sorted_at_once));
template <class B>
using chunk_pixels = decltype(B::Regions::template chunk_pixels<float>(some<Regions>()));
template <class B>
using region_sums =
    decltype(B::Regions::template sums<float, true, false, 0>("", some<Tensor>(), some<Pass>(), Body()));
template <class B>
using grad_sigmoid = decltype(B::Regions::template grad_sigmoid<float, false, 0>(some<Pass>(), Body()));
template <class B>
using grad_softmax = decltype(B::Regions::template grad_softmax<float, false>(some<Pass>(), Body(), nullptr));
template <class B>
using describe = decltype(B::Regions::template describe<float, true>("", some<Pass>(), nullptr, nullptr, nullptr));
template <class B>
using keys = decltype(B::Regions::template keys<float, true>(some<Pass>(), int64_t(), int64_t(), nullptr, nullptr,
                                                             nullptr, nullptr));

}  // namespace member

template <template <class> class Member, class Backend>
constexpr bool is_there() {
  static_assert(has<Member, Backend>, "the Backend lacks this Member; NullBackend of skeletons/backend.h has it");
  return has<Member, Backend>;
}
template <class Backend, template <class> class... Member>
constexpr bool are_there() {
  return (int(is_there<Member, Backend>()) & ...);
}
template <class Backend>
constexpr bool is_whole() {
  using namespace member;
  if constexpr (has<checks_values, Backend>)
    if constexpr (Backend::checks_values) is_there<pointwise_find, Backend>();
  if constexpr (has<one_pass, Backend>)
    if constexpr (Backend::one_pass)
      are_there<Backend, sum_and_map, forward_and_grad, groups_forward_and_grad, boxes_sum_and_grad>();
  return are_there<Backend, Guard, checks_values, one_pass, kStrip, zero, add_product, wide_product, chunk_bytes,
                   whole_rows, sum_dtype, factor_dtype, Packed, select_smallest, each, teams, total, pointwise_map,
                   pointwise_map_many, pointwise_sum, gradients_in_place, rows_forward, rows_grad, share_grad,
                   groups_forward, groups_grad, boxes_map, boxes_sum, boxes_grad, sorted_at_once, chunk_pixels,
                   region_sums, grad_sigmoid, grad_softmax, describe, keys>();
}

}  // namespace lossreg
