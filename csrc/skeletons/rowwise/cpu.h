#pragma once
// The CPU's row kernels: a worker a thread, with buffers of its own, over chunks of a tile of rows each; or one worker,
// whose rows the threads share.
#include <atomic>

#include "../../cpu/chunks.h"
#include "cpu_worker.h"

namespace lossreg::cpu {

template <class T>
std::vector<T> class_weights(const Rows& r) {
  std::vector<T> w;
  if (!r.weight.data) return w;
  w.resize(size_t(r.classes));
  const T* at = load(r.weight.dtype, r.weight.data, 0, r.weight.stride[0], w.data(), r.classes);
  if (at != w.data()) std::copy(at, at + r.classes, w.begin());
  return w;
}

struct RowKernels {
  // grad() reads what it needs of a row's scores before it writes their gradient, which may so take their place.
  static constexpr bool gradients_in_place = true;

  template <class T, int Mode, class F>
  static void forward(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    using Worker = RowWorker<T, F, Mode>;
    const auto total = sums<Worker>(
        f, rows, [](Worker& worker, int64_t begin, int64_t end, auto& own) { worker.forward(begin, end, own); });
    *rows.normaliser = total.normaliser;
    if (rows.reduced) write_scalar(out, dtype, rows.mean ? total.loss / total.normaliser : total.loss);
  }
  template <class T, int Mode, class F>
  static void forward_and_grad(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    using Worker = RowWorker<T, F, Mode>;
    // what a mean divides by has to be known before the first gradient
    if (rows.mean)
      *rows.normaliser = sums<Worker>(f, rows, [](Worker& worker, int64_t begin, int64_t end, auto& own) {
                           worker.count(begin, end, own);
                         }).normaliser;
    const auto total = sums<Worker>(f, rows, [](Worker& worker, int64_t begin, int64_t end, auto& own) {
      worker.forward_and_grad(begin, end, own);
    });
    write_scalar(out, dtype, rows.mean ? total.loss / total.normaliser : total.loss);
  }
  template <class T, int Mode, class F>
  static void grad(const F& f, const Rows& rows) {
    using Worker = RowWorker<T, F, Mode>;
    std::vector<T> weights = class_weights<T>(rows);
    std::atomic<int64_t> bad_class{Worker::kNone};
    each_worker<Worker, Sweep::backward>(f, rows, weights, [&](Worker& worker, int64_t, int64_t begin, int64_t end) {
      typename Worker::Sums sums;
      worker.grad(begin, end, sums);
      if (sums.bad_class != Worker::kNone) bad_class = sums.bad_class;
    });
    if (bad_class != Worker::kNone) fail_class(F::name, rows.classes, f.ignore_index, bad_class);
  }
  template <class T, class F>
  static void share_grad(const F& f, const Rows& rows) {
    using Worker = RowWorker<T, F, F::probability_mode>;
    std::vector<T> weights = class_weights<T>(rows);
    each_worker<Worker, Sweep::backward>(
        f, rows, weights, [](Worker& worker, int64_t, int64_t begin, int64_t end) { worker.share_grad(begin, end); });
  }

 private:
  // What of_chunk(worker, begin, end, sums) adds up, chunk after chunk. Fails for a class index that is none.
  template <class Worker, class F, class OfChunk>
  static typename Worker::Sums sums(const F& f, const Rows& rows, OfChunk of_chunk) {
    const auto weights = class_weights<typename Worker::Computed>(rows);
    std::vector<typename Worker::Sums> partial(size_t(chunks(rows.it.numel, Worker::tile_rows(rows))));
    each_worker<Worker, Sweep::forward>(f, rows, weights, [&](Worker& worker, int64_t c, int64_t begin, int64_t end) {
      of_chunk(worker, begin, end, partial[size_t(c)]);
    });
    typename Worker::Sums total;
    for (const auto& p : partial) {
      if (p.bad_class != Worker::kNone) fail_class(F::name, rows.classes, f.ignore_index, p.bad_class);
      if constexpr (F::has_margin)
        if (p.suspect != 0) warn_once<F>(F::advice, ", got ", p.suspect);
      total.loss += p.loss;
      total.normaliser += p.normaliser;
    }
    return total;
  }
  // As each_chunk, with one worker, and its buffers, a thread; with one for all of them where the threads share a row.
  template <class Worker, Sweep sweep, class T, class F, class Each>
  static void each_worker(const F& f, const Rows& rows, const std::vector<T>& weights, Each each) {
    const int64_t chunk = Worker::tile_rows(rows), n = rows.it.numel;
    if (Worker::shares(rows)) {
      Worker worker(f, rows, weights, true);
      for (int64_t c = 0; c < chunks(n, chunk); c++) each(worker, c, c * chunk, std::min(n, (c + 1) * chunk));
      return;
    }
    auto make_worker = [&] { return Worker(f, rows, weights, false); };
    each_chunk<sweep>(n, chunk, chunk * rows.classes, make_worker, each);
  }
};

}  // namespace lossreg::cpu
