#pragma once
// The CPU backend: chunks of a fixed size over torch's threads, combined in their order, so that results do not depend
// on the number of threads.
#include <atomic>
#include <cstring>

#include "cpu/tiles.h"
#include "skeletons/boxwise/cpu.h"
#include "skeletons/groupwise/cpu.h"
#include "skeletons/regionwise/cpu.h"
#include "skeletons/rowwise/cpu.h"

namespace lossreg {

struct Cpu {
  static constexpr auto key = "CPU";
  static constexpr bool checks_values = true;
  // Elements side by side that one thread takes at once: the loops over them become vectors.
  static constexpr int kLanes = 128;
  // rows_grad reads what it needs of a row's scores before it writes their gradient, which may so take their place.
  static constexpr bool row_gradients_in_place = true;

  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  // Zeros into a tensor without gaps. True: it did.
  static bool zero(const Tensor& t) {
    char* data = static_cast<char*>(t.mutable_data_ptr());
    int64_t bytes = t.numel() * int64_t(t.element_size());
    torch::stable::parallel_for(0, bytes, 1 << 20, [&](int64_t first, int64_t last) {
      if (bytes >= cpu::kStreamed) cpu::stream_bytes(data + first, nullptr, last - first);
      else std::memset(data + first, 0, size_t(last - first));
    });
    return true;
  }
  using Regions = cpu::RegionKernels;

  // out[j][i] = body(in[0][i], ..., in[I-1][i])[j]: the operands are the inputs, then the outputs.
  template <class T, int I, int O, Sweep sweep = Sweep::forward, class Body>
  static void map(const Iteration<I + O>& it, Body body) {
    if constexpr (std::is_same_v<T, float>) {
      // the gradient of a reduced loss is one number, of any dtype
      if (I > 1 && it.operand[0].uniform && cpu::is_stream<BFloat16>(it, 1))
        return map_of<T, BFloat16, I, O, sweep, (I > 1)>(it, body);
      if (cpu::is_stream<BFloat16>(it, 0)) return map_of<T, BFloat16, I, O, sweep>(it, body);
    }
    map_of<T, T, I, O, sweep>(it, body);
  }

  // out = scale * sum over i of body(in[0][i], ..., in[I-1][i])
  template <class T, int I, class Body>
  static void sum(const Iteration<I>& it, Body body, double scale, const Tensor& out, DType dtype) {
    double total = 0;
    with_stored<T>(it, [&](auto* tag) { total = sum_of<T, std::remove_pointer_t<decltype(tag)>>(it, body); });
    write_scalar(out, dtype, total * scale);
  }

  // Some element that is wanted, if there is one.
  template <class T, class Wanted>
  static std::optional<T> find(const Iteration<1>& it, Wanted wanted) {
    std::atomic<bool> found{false};
    T which = 0;
    with_stored<T>(it, [&](auto* tag) {
      using S = std::remove_pointer_t<decltype(tag)>;
      each_chunk<kFirstFirst>(it.numel, cpu::kChunk, [&](int64_t, int64_t begin, int64_t end) {
        cpu::Buffers<S, 1> buffers(it, 0, 1);
        for (int64_t b = begin; b < end; b += cpu::kTile) {
          int64_t n = std::min(cpu::kTile, end - b);
          const S* x = cpu::read_tile(it, 0, b, n, buffers.at[0]);
          if (!cpu::any_loop<T>(wanted, x, n)) continue;
          for (int64_t i = 0; i < n; i++)
            if (wanted(widen<T>(x[i])) && !found.exchange(true)) which = widen<T>(x[i]);
        }
      });
    });
    return found ? std::optional<T>(which) : std::nullopt;
  }

  // Three ways to run a body of one's own, a struct with an HD operator(). `cost` is about how many elements one i
  // touches: chunks of work are made of it. What body holds must be plain: pointers, numbers, Operands.

  // body(i) for every i < n, in any order.
  template <class Body>
  static void each(int64_t n, int64_t cost, Body body) {
    each_chunk<kLastFirst>(n, chunk_of(cost),
                           [&](int64_t, int64_t begin, int64_t end) { cpu::each_loop(body, begin, end); });
  }
  // body(i, team) for every i < n, in any order: by one thread here, by a block of threads on a GPU. The team's threads
  // share the work: for (k = team.rank(); k < m; k += team.size()); or team.each(m, f) and team.sum(m, f), which call
  // f(k) for every k < m in a vector loop here.
  template <class Body>
  static void teams(int64_t n, int64_t cost, Body body) {
    each_chunk<kLastFirst>(n, chunk_of(cost),
                           [&](int64_t, int64_t begin, int64_t end) { cpu::team_loop(body, begin, end); });
  }
  // finish(sums), once, with the K sums over i < n of what body(i, sums) adds to sums. Neither is read on the host.
  template <int K, class Body, class Finish>
  static void total(const Tensor&, int64_t n, int64_t cost, Body body, Finish finish) {
    int64_t chunk = chunk_of(cost);
    std::vector<std::array<double, K>> partial(size_t(chunks(n, chunk)), std::array<double, K>{});
    each_chunk<kFirstFirst>(n, chunk, [&](int64_t c, int64_t begin, int64_t end) {
      double sums[K] = {};
      cpu::total_loop<K>(body, begin, end, sums);
      std::copy(sums, sums + K, partial[size_t(c)].begin());
    });
    double sums[K] = {};
    for (const auto& p : partial)
      for (int k = 0; k < K; k++) sums[k] += p[size_t(k)];
    finish(sums);
  }

  template <class T, int Mode, class F>
  static void rows_forward(const F& f, const Rows& rows, const Tensor& out, DType dtype) {
    using Worker = cpu::RowWorker<T, F, Mode>;
    std::vector<T> weights = cpu::class_weights<T>(rows);
    int64_t chunk = Worker::tile_rows(rows);
    std::vector<typename Worker::Sums> partial(size_t(chunks(rows.it.numel, chunk)));
    each_worker<Worker, kFirstFirst>(f, rows, weights, [&](Worker& worker, int64_t c, int64_t begin, int64_t end) {
      worker.forward(begin, end, partial[size_t(c)]);
    });
    typename Worker::Sums total;
    for (const auto& p : partial) {
      if (p.bad_class != Worker::kNone) fail_class<F>(f, rows.classes, p.bad_class);
      if constexpr (F::has_margin)
        if (p.suspect != 0) warn_once<F>(F::advice, ", got ", p.suspect);
      total.loss += p.loss;
      total.normaliser += p.normaliser;
    }
    *rows.normaliser = total.normaliser;
    if (rows.reduced) write_scalar(out, dtype, rows.mean ? total.loss / total.normaliser : total.loss);
  }
  template <class T, int Mode, class F>
  static void rows_grad(const F& f, const Rows& rows) {
    using Worker = cpu::RowWorker<T, F, Mode>;
    std::vector<T> weights = cpu::class_weights<T>(rows);
    std::atomic<int64_t> bad_class{Worker::kNone};
    each_worker<Worker, kLastFirst>(f, rows, weights, [&](Worker& worker, int64_t, int64_t begin, int64_t end) {
      typename Worker::Sums sums;
      worker.grad(begin, end, sums);
      if (sums.bad_class != Worker::kNone) bad_class = sums.bad_class;
    });
    if (bad_class != Worker::kNone) fail_class<F>(f, rows.classes, bad_class);
  }
  template <class T, class F>
  static void rows_share_grad(const F& f, const Rows& rows) {
    using Worker = cpu::RowWorker<T, F, F::modes - 1>;
    std::vector<T> weights = cpu::class_weights<T>(rows);
    each_worker<Worker, kLastFirst>(
        f, rows, weights, [](Worker& worker, int64_t, int64_t begin, int64_t end) { worker.share_grad(begin, end); });
  }

  template <class T, class Body>
  static void boxes_map(const Boxes& boxes, Body body) {
    std::atomic<bool> reversed{false};
    each_box_tile<T, kLastFirst>(boxes, [&](int64_t, int64_t begin, int64_t n, const auto* a, const auto* b, T third) {
      alignas(64) T buffer[cpu::kBoxTile];
      T* out = cpu::result_tile(boxes.it, Boxes::kValue, begin, buffer);
      if (cpu::box_map_loop(body, a, b, third, out, n)) reversed = true;
      cpu::write_tile(boxes.it, Boxes::kValue, begin, n, out, buffer);
    });
    warn_of_order<Body>(reversed);
  }
  template <class T, class Body>
  static void boxes_sum(const Boxes& boxes, Body body, double scale, const Tensor& out, DType dtype) {
    std::vector<double> partial(size_t(chunks(boxes.it.numel, cpu::kBoxChunk)));
    std::atomic<bool> reversed{false};
    each_box_tile<T, kFirstFirst>(boxes, [&](int64_t chunk, int64_t, int64_t n, const auto* a, const auto* b, T third) {
      bool found = false;
      partial[size_t(chunk)] += double(cpu::box_sum_loop(body, a, b, third, n, found));
      if (found) reversed = true;
    });
    warn_of_order<Body>(reversed);
    double total = 0;
    for (double p : partial) total += p;
    write_scalar(out, dtype, total * scale);
  }
  template <class T, class Body>
  static void boxes_grad(const Boxes& boxes, Body body, double scale) {
    const Operand& grad_output = boxes.it.operand[Boxes::kValue];
    bool for_input = boxes.it.operand[Boxes::kGradInput].data, for_target = boxes.it.operand[Boxes::kGradTarget].data;
    each_box_tile<T, kLastFirst>(boxes, [&](int64_t, int64_t begin, int64_t n, const auto* a, const auto* b, T third) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(a)>>;
      auto loop = !for_target  ? cpu::box_grad_loop<T, true, false, Body, S>
                  : !for_input ? cpu::box_grad_loop<T, false, true, Body, S>
                               : cpu::box_grad_loop<T, true, true, Body, S>;
      alignas(64) T factors[cpu::kBoxTile];
      alignas(64) S buffers[2][4 * cpu::kBoxTile];
      if (grad_output.uniform) std::fill(factors, factors + n, cpu::one_number<T>(grad_output));
      const T* g = cpu::read_tile(boxes.it, Boxes::kValue, begin, n, factors);
      S* da = cpu::result_boxes(boxes, Boxes::kGradInput, begin, buffers[0]);
      S* db = cpu::result_boxes(boxes, Boxes::kGradTarget, begin, buffers[1]);
      loop(body, a, b, third, g, T(scale), da, db, n);
      cpu::write_boxes(boxes, Boxes::kGradInput, begin, n, da, buffers[0]);
      cpu::write_boxes(boxes, Boxes::kGradTarget, begin, n, db, buffers[1]);
    });
  }

  template <class T, int Mode, class F>
  static void groups_forward(const F& f, const Groups<F>& groups, const Tensor& out, DType dtype) {
    using Worker = cpu::GroupWorker<T, F, Mode>;
    std::vector<typename Worker::Sums> partial(size_t(chunks(groups.it.numel, Worker::tile_groups(groups))));
    each_tile<Worker, kFirstFirst>(f, groups, [&](Worker& worker, int64_t c, int64_t begin, int64_t end) {
      worker.forward(begin, end, partial[size_t(c)]);
    });
    typename Worker::Sums total;
    for (const auto& p : partial) {
      if constexpr (has_hits<F>)
        if (p.bad_class != Worker::kNone) fail_class<F>(f, groups.members, p.bad_class);
      total.value += p.value;
      total.valid += p.valid;
    }
    if (groups.valid) *static_cast<T*>(groups.valid) = T(total.valid);
    if (groups.reduced) write_scalar(out, dtype, groups.mean ? total.value / double(total.valid) : total.value);
  }
  template <class T, int Mode, class F>
  static void groups_grad(const F& f, const Groups<F>& groups) {
    using Worker = cpu::GroupWorker<T, F, Mode>;
    std::atomic<int64_t> bad_class{Worker::kNone};
    each_tile<Worker, kLastFirst>(f, groups, [&](Worker& worker, int64_t, int64_t begin, int64_t end) {
      typename Worker::Sums sums;
      worker.grad(begin, end, sums);
      if (sums.bad_class != Worker::kNone) bad_class = sums.bad_class;
    });
    if constexpr (has_hits<F>)
      if (bad_class != Worker::kNone) fail_class<F>(f, groups.members, bad_class);
  }

 private:
  template <class F>
  [[noreturn]] static void fail_class(const F& f, int64_t classes, int64_t got) {
    fail(F::name, "a class index in [0, ", classes, ") or ignore_index ", f.ignore_index, ", got ", got);
  }
  template <class Body>
  static void warn_of_order(const std::atomic<bool>& reversed) {
    if (reversed)
      warn_once<typename Body::Formula>("boxes x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got one that isn't");
  }
  // use(null pointer of the type that the loops read: bfloat16 where memory holds nothing else, else T)
  template <class T, int N, class Use>
  static void with_stored(const Iteration<N>& it, Use use) {
    if constexpr (std::is_same_v<T, float>)
      if (cpu::is_stream<BFloat16>(it, 0)) return use(static_cast<BFloat16*>(nullptr));
    use(static_cast<T*>(nullptr));
  }
  // S: what the loops read, T: what they compute in. Fixed: input 0 is one number.
  template <class T, class S, int I, int O, Sweep sweep, bool Fixed = false, class Body>
  static void map_of(const Iteration<I + O>& it, Body body) {
    const T first = Fixed ? cpu::one_number<T>(it.operand[0]) : T(0);
    constexpr int from = Fixed ? 1 : 0;
    // what lies in memory as the loops read it needs no tiles
    const int64_t tile = cpu::is_unbroken<S>(it, from) ? cpu::kChunk : cpu::kTile;
    each_chunk<sweep == Sweep::forward ? kFirstFirst : kLastFirst>(
        it.numel, cpu::kChunk, [&](int64_t, int64_t begin, int64_t end) {
          cpu::Buffers<S, I + O> buffers(it, from, I);
          for (int64_t b = begin; b < end; b += tile) {
            int64_t n = std::min(tile, end - b);
            const S* in[I];
            S* out[O];
            for (int k = from; k < I; k++) in[k] = cpu::read_tile(it, k, b, n, buffers.at[k]);
            for (int k = 0; k < O; k++) out[k] = cpu::result_tile(it, I + k, b, buffers.at[I + k]);
            cpu::map_loop<T, I, O, Fixed>(body, first, in, out, n);
            for (int k = 0; k < O; k++) cpu::write_tile(it, I + k, b, n, out[k], buffers.at[I + k]);
          }
        });
  }
  template <class T, class S, int I, class Body>
  static double sum_of(const Iteration<I>& it, Body body) {
    std::vector<double> partial(size_t(chunks(it.numel, cpu::kChunk)));
    each_chunk<kFirstFirst>(it.numel, cpu::kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
      cpu::Buffers<S, I> buffers(it, 0, I);
      double total = 0;
      for (int64_t b = begin; b < end; b += cpu::kTile) {
        int64_t n = std::min(cpu::kTile, end - b);
        const S* in[I];
        for (int k = 0; k < I; k++) in[k] = cpu::read_tile(it, k, b, n, buffers.at[k]);
        total += double(cpu::sum_loop<T, I>(body, in, n));
      }
      partial[size_t(chunk)] = total;
    });
    double total = 0;
    for (double p : partial) total += p;
    return total;
  }
  static int64_t chunks(int64_t n, int64_t chunk) { return (n + chunk - 1) / chunk; }
  static int64_t chunk_of(int64_t cost) { return std::max<int64_t>(1, cpu::kChunk / std::max<int64_t>(1, cost)); }

  // A forward pass reads from the first chunk on and leaves the last ones in cache; so a backward pass, which often
  // reads the same inputs right after, goes the other way.
  enum Order { kFirstFirst, kLastFirst };

  // each(chunk, begin, end) over chunks of a fixed size, on torch's threads.
  template <Order order, class Each>
  static void each_chunk(int64_t n, int64_t chunk, Each each) {
    torch::stable::parallel_for(0, chunks(n, chunk), 1, [&](int64_t first, int64_t last) {
      in_order<order>(first, last, [&](int64_t c) { each(c, c * chunk, std::min(n, (c + 1) * chunk)); });
    });
  }
  // each(chunk, begin, n, input, target, third) over tiles of pairs: boxes of T, or of bfloat16 where all are.
  template <class T, Order order, class Each>
  static void each_box_tile(const Boxes& boxes, Each each) {
    if constexpr (std::is_same_v<T, float>)
      if (cpu::are_in_place<BFloat16>(boxes)) return each_box_tile_of<T, BFloat16, order>(boxes, each);
    each_box_tile_of<T, T, order>(boxes, each);
  }
  template <class T, class S, Order order, class Each>
  static void each_box_tile_of(const Boxes& boxes, Each each) {
    T third = cpu::one_number<T>(boxes.it.operand[Boxes::kThird]);
    each_chunk<order>(boxes.it.numel, cpu::kBoxChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
      alignas(64) S buffers[2][4 * cpu::kBoxTile];
      for (int64_t b = begin; b < end; b += cpu::kBoxTile) {
        int64_t n = std::min(cpu::kBoxTile, end - b);
        const S* input = cpu::read_boxes(boxes, Boxes::kInput, b, n, buffers[0]);
        const S* target = cpu::read_boxes(boxes, Boxes::kTarget, b, n, buffers[1]);
        each(chunk, b, n, input, target, third);
      }
    });
  }
  // As each_chunk, with one worker, and its buffers, a thread.
  template <class Worker, Order order, class T, class F, class Each>
  static void each_worker(const F& f, const Rows& rows, const std::vector<T>& weights, Each each) {
    int64_t n = rows.it.numel, chunk = Worker::tile_rows(rows);
    int64_t grain = std::max<int64_t>(1, cpu::kChunk / (chunk * rows.classes));
    torch::stable::parallel_for(0, chunks(n, chunk), grain, [&](int64_t first, int64_t last) {
      Worker worker(f, rows, weights);
      in_order<order>(first, last, [&](int64_t c) { each(worker, c, c * chunk, std::min(n, (c + 1) * chunk)); });
    });
  }
  template <class Worker, Order order, class F, class Each>
  static void each_tile(const F& f, const Groups<F>& groups, Each each) {
    int64_t n = groups.it.numel, tile = Worker::tile_groups(groups);
    int64_t grain = std::max<int64_t>(1, cpu::kChunk / std::max<int64_t>(1, tile * groups.members));
    torch::stable::parallel_for(0, chunks(n, tile), grain, [&](int64_t first, int64_t last) {
      Worker worker(f, groups);
      in_order<order>(first, last, [&](int64_t c) { each(worker, c, c * tile, std::min(n, (c + 1) * tile)); });
    });
  }
  template <Order order, class Use>
  static void in_order(int64_t first, int64_t last, Use use) {
    for (int64_t k = 0; k < last - first; k++) use(order == kFirstFirst ? first + k : last - 1 - k);
  }
  static void write_scalar(const Tensor& out, DType dtype, double value) {
    cpu::store(dtype, out.mutable_data_ptr(), 0, 1, &value, 1);
  }
};

}  // namespace lossreg
