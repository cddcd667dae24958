// Measures the constants of the model in benchmarks/roofline.py, and prints them as JSON: what a copy moves, what a
// launch costs that does nothing, how many cycles a load from memory takes, how fast the clock runs under load.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                       \
  do {                                                                    \
    cudaError_t error = (call);                                           \
    if (error != cudaSuccess) {                                           \
      std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (0)

__global__ void nothing() {}

// Each load's address is the value of the one before.
__global__ void chase(const unsigned* next, int steps, unsigned* end, long long* cycles) {
  unsigned at = 0;
  long long start = clock64();
  for (int i = 0; i < steps; i++) at = next[at];
  *cycles = clock64() - start;
  *end = at;
}

// Four chains of multiply-adds a thread, that many cycles long.
__global__ void multiply_add(int steps, float* out, long long* cycles) {
  float a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
  long long start = clock64();
  for (int i = 0; i < steps; i++) {
    a = a * 0.5f + 1.0f;
    b = b * 0.5f + 1.0f;
    c = c * 0.5f + 1.0f;
    d = d * 0.5f + 1.0f;
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  if (a + b + c + d == -1.0f) *out = a;
}

// The median of several runs, in seconds.
template <class Run>
double seconds(Run run) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  run();
  std::vector<double> times;
  for (int i = 0; i < 11; i++) {
    CHECK(cudaEventRecord(begin));
    run();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms / 1e3);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));

  const size_t bytes = size_t(1) << 30;
  char *from, *to;
  CHECK(cudaMalloc(&from, bytes));
  CHECK(cudaMalloc(&to, bytes));
  double copy = seconds([&] { CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice)); });

  const int launches = 1000;
  double launch = seconds([&] {
    for (int i = 0; i < launches; i++) nothing<<<1, 32>>>();
    CHECK(cudaGetLastError());
  });

  // Far more than the second-level cache holds, in steps that no row of memory and no page repeats.
  const unsigned count = 1u << 28, step = 1048583u * 33;
  std::vector<unsigned> next(count);
  for (unsigned i = 0; i < count; i++) next[i] = (i + step) % count;
  CHECK(cudaMemcpy(from, next.data(), size_t(count) * sizeof(unsigned), cudaMemcpyHostToDevice));
  unsigned* end;
  long long* cycles;
  CHECK(cudaMalloc(&end, sizeof *end));
  const int blocks = device.multiProcessorCount * 8;
  CHECK(cudaMallocManaged(&cycles, blocks * sizeof *cycles));
  const int steps = 20000;
  chase<<<1, 1>>>(reinterpret_cast<unsigned*>(from), steps, end, cycles);
  CHECK(cudaDeviceSynchronize());
  double latency = double(cycles[0]) / steps;

  const int rounds = 1 << 16;
  double loop = seconds([&] { multiply_add<<<blocks, 256>>>(rounds, reinterpret_cast<float*>(to), cycles); });
  CHECK(cudaDeviceSynchronize());
  double clock = double(*std::max_element(cycles, cycles + blocks)) / loop;

  std::printf("{\"bandwidth\": %.4g, \"launch\": %.4g, \"latency\": %.4g, \"clock\": %.4g, \"processors\": %d}\n",
              2 * bytes / copy, launch / launches, latency, clock, device.multiProcessorCount);
}
