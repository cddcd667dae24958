// Runs an AOTInductor package on tensors from a file. No Python in the process: the package calls the ops of
// liblossreg.so through the dispatcher, which holds their schemas and kernels once the library is loaded.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const char* const usage = R"(usage: run_package [--library FILE]... [--repeat N] PACKAGE INPUTS OUTPUTS [ROWS...]

  --library FILE  a shared library with ops that the package calls (liblossreg.so); may be given several times
  --repeat N      runs each batch N times after one that is not timed, and prints the median time; default 1
  PACKAGE         what torch._inductor.aoti_compile_and_package wrote (.pt2)
  INPUTS          torch.save((input, ...), INPUTS): a tuple of tensors, as the exported module takes them
  OUTPUTS         written: torch.load(OUTPUTS) is a tuple with a tuple of output tensors for each batch
  ROWS            the sizes of consecutive batches along the first dimension, repeated until the rows end; default: all
)";

struct Arguments {
  std::vector<std::string> libraries;
  std::string package, inputs, outputs;
  std::vector<int64_t> rows;
  int64_t repeat = 1;
};

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const std::string& message) {
  throw std::runtime_error(message);
}

int64_t positive(const std::string& word, const char* what) {
  char* end = nullptr;
  const int64_t number = std::strtoll(word.c_str(), &end, 10);
  if (*end != '\0' || number < 1) fail("expected " + std::string(what) + ", a positive integer, got " + word);
  return number;
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  std::vector<std::string> positional;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool option = words[i].rfind("--", 0) == 0;
    if (option && i + 1 == words.size()) fail("expected a value after " + words[i] + ", got nothing");
    if (words[i] == "--library") arguments.libraries.push_back(words[++i]);
    else if (words[i] == "--repeat") arguments.repeat = positive(words[++i], "--repeat");
    else if (option) fail("expected --library or --repeat, got " + words[i]);
    else positional.push_back(words[i]);
  }
  if (positional.size() < 3) fail("expected PACKAGE INPUTS OUTPUTS; run_package --help says more");
  arguments.package = positional[0];
  arguments.inputs = positional[1];
  arguments.outputs = positional[2];
  for (size_t i = 3; i < positional.size(); ++i) arguments.rows.push_back(positive(positional[i], "ROWS"));
  return arguments;
}

void require_file(const std::string& path, const std::string& what) {
  if (!std::filesystem::is_regular_file(path)) fail("expected " + what + ", got " + path + ", which is no file");
}

void load_library(const std::string& path) {
  require_file(path, "--library that is a shared library");
  // dlopen searches a name without a slash among the system's libraries only.
  if (!dlopen(std::filesystem::absolute(path).c_str(), RTLD_NOW | RTLD_GLOBAL))
    fail("cannot load " + path + ": " + dlerror());
}

std::vector<at::Tensor> read_tensors(const std::string& path) {
  require_file(path, "INPUTS written by torch.save");
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::string expected = "expected INPUTS written by torch.save((tensor, ...), file), got " + path;
  c10::IValue value;
  try {
    value = torch::jit::pickle_load(bytes);
  } catch (const std::exception&) {
    fail(expected + ", which is in another format");
  }
  if (!value.isTuple()) fail(expected + ", which holds a " + value.tagKind());
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& element : value.toTupleRef().elements()) {
    if (!element.isTensor() || element.toTensor().dim() == 0)
      fail(expected + ", which holds more than batches of rows");
    tensors.push_back(element.toTensor());
    if (tensors.back().size(0) != tensors.front().size(0)) fail(expected + ", whose tensors differ in rows");
  }
  if (tensors.empty() || tensors.front().size(0) == 0) fail(expected + ", which holds no rows");
  return tensors;
}

std::string type_text(const at::Tensor& t) {
  std::ostringstream text;
  text << c10::getDtypeNames(t.scalar_type()).first;
  for (const int64_t size : t.sizes()) text << " " << size;
  return text.str();
}

// A package computes with whatever memory it is given. Its maker notes what it takes under the key "inputs", as
// "float32 * 8; int64 *": a dtype and the sizes of each, * for any.
void check_inputs(const std::vector<at::Tensor>& inputs, const std::string& noted) {
  std::vector<std::string> wanted;
  std::istringstream all(noted);
  for (std::string one; std::getline(all >> std::ws, one, ';');) wanted.push_back(one);
  if (inputs.size() != wanted.size())
    fail("expected " + std::to_string(wanted.size()) + " INPUTS, got " + std::to_string(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string given = type_text(inputs[i]);
    std::istringstream want(wanted[i]), got(given);
    std::string a, b;
    bool fits = true;
    while (want >> a) fits = (got >> b) && (a == "*" || a == b) && fits;
    if (!fits || got >> b)
      fail("expected INPUTS[" + std::to_string(i) + "] of dtype and sizes " + wanted[i] + ", got " + given);
  }
}

void write_batches(const std::string& path, const std::vector<c10::IValue>& batches) {
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(batches));
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) fail("cannot write " + path);
}

void print(const std::vector<at::Tensor>& outputs, int64_t rows, double milliseconds) {
  std::cout << "rows " << rows << "  ms " << std::setprecision(4) << milliseconds << " " << std::setprecision(7);
  for (const at::Tensor& output : outputs) {
    if (output.numel() == 1) std::cout << " " << output.item<double>();
    else std::cout << " " << output.sizes();
  }
  std::cout << "\n";
}

void run(const Arguments& arguments) {
  for (const std::string& library : arguments.libraries) load_library(library);
  require_file(arguments.package, "PACKAGE that AOTInductor wrote");
  const std::vector<at::Tensor> inputs = read_tensors(arguments.inputs);
  torch::inductor::AOTIModelPackageLoader loader(arguments.package);
  auto metadata = loader.get_metadata();
  if (metadata.count("inputs")) check_inputs(inputs, metadata["inputs"]);
  else std::cerr << "run_package: the package does not say what its inputs are: they are not checked\n";
  // The package knows the device that it was compiled for.
  const at::Device device(metadata["AOTI_DEVICE_KEY"]);

  const int64_t total = inputs.front().size(0);
  std::vector<c10::IValue> batches;
  for (int64_t start = 0; start < total;) {
    const int64_t wanted = arguments.rows.empty() ? total : arguments.rows[batches.size() % arguments.rows.size()];
    const int64_t rows = std::min(wanted, total - start);
    std::vector<at::Tensor> slice;
    for (const at::Tensor& input : inputs) slice.push_back(input.narrow(0, start, rows).contiguous().to(device));
    std::vector<at::Tensor> outputs = loader.run(slice);  // the first call of a size also allocates: not timed
    std::vector<double> milliseconds;
    for (int64_t i = 0; i < arguments.repeat; ++i) {
      const Clock::time_point begin = Clock::now();
      outputs = loader.run(slice);
      for (at::Tensor& output : outputs) output = output.cpu();  // waits for the device
      milliseconds.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    print(outputs, rows, milliseconds[milliseconds.size() / 2]);
    batches.push_back(c10::ivalue::Tuple::create(std::vector<c10::IValue>(outputs.begin(), outputs.end())));
    start += rows;
  }
  write_batches(arguments.outputs, batches);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--help") {
    std::cout << usage;
    return 0;
  }
  try {
    run(parse({argv + 1, argv + argc}));
    return 0;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    std::cerr << "run_package: " << message << "\n";
    if (message.find("Could not find schema for") != std::string::npos)
      std::cerr << "run_package: the package calls an op that no loaded library defines; give its --library\n";
  } catch (const std::exception& error) {
    std::cerr << "run_package: " << error.what() << "\n";
  }
  return 1;
}
