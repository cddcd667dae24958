#pragma once
// A library's entry into the dispatcher. It happens while the library is loaded, where an exception would end the
// process: what the dispatcher refuses is taken back whole, and kept for who loads the library to ask for.
#include <torch/csrc/stable/library.h>

#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "version.h"

// The namespace of the ops, torch.ops.lossreg, is the build's choice: two libraries in one process need two. The C++
// namespace stays, because a library exports none of it.
#ifndef LOSSREG_NAMESPACE
#define LOSSREG_NAMESPACE lossreg
#endif
// 1: the build was narrowed to some families.
#ifndef LOSSREG_PARTIAL
#define LOSSREG_PARTIAL 0
#endif
// The version of nvcc; empty: the library has no CUDA kernels.
#ifndef LOSSREG_CUDA_TOOLKIT
#define LOSSREG_CUDA_TOOLKIT ""
#endif

namespace lossreg::detail {

using torch::stable::detail::StableLibrary;

// "/home/me/regression.h" is regression.h.
inline std::string base_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

// What one file adds to the dispatcher under one namespace: schemas, or a backend's kernels.
struct Part {
  StableLibrary::Kind kind;
  const char *name_space, *key;
  std::string family;
  bool listed;  // are its schemas the library's ops, and not their second names?
  void (*run)(StableLibrary&);
};

// An op's name as a file holds it, for those who read it there before they load the library:
// "lossreg_op:lossreg::huber_loss".
constexpr std::string_view kMark = "lossreg_op:" C10_STRINGIZE(LOSSREG_NAMESPACE) "::";
template <class F>
struct Marked {
  static constexpr std::string_view name = F::name;
  struct Text {
    char text[kMark.size() + name.size() + 1];
  };
  static constexpr Text made() {
    Text t{};
    for (size_t i = 0; i < kMark.size(); i++) t.text[i] = kMark[i];
    for (size_t i = 0; i < name.size(); i++) t.text[kMark.size() + i] = name[i];
    return t;
  }
  __attribute__((used)) static constexpr Text mark = made();
};

class Registration {
 public:
  static Registration& of_library() {
    // never destroyed: kernels are called as long as the process lives
    static Registration* one = new Registration;
    return *one;
  }

  // Each file's part, as the library is loaded.
  void add(const Part& part) {
    parts_.push_back(part);
    enter(part);
  }
  // All of them again, after withdraw().
  void enter_all() {
    refused_.clear();
    if (entered_.empty())
      for (const Part& part : parts_) enter(part);
  }
  void withdraw() {
    while (!entered_.empty()) entered_.pop_back();
    defined_.clear();
  }

  // The schemas of an op are about to be defined.
  template <class F>
  void defining() {
    now_ = std::string(Marked<F>::mark.text + kMark.size(), Marked<F>::name.size());
    if (part_ && part_->listed) defined_.push_back({now_, part_->family});
  }
  // Names and families of the ops, a line each: "huber_loss\tregression.h".
  std::string defined() const {
    std::string text;
    for (const Definition& d : defined_) text += d.name + "\t" + d.family + "\n";
    return text;
  }
  // The op that the dispatcher refused, its family, and the family of this very library that has it too, if one does,
  // a line each; empty: it refused none.
  const std::string& refused() const { return refused_; }

 private:
  struct Definition {
    std::string name, family;
  };

  // Unless an earlier part was refused: kernels of this library must not take the place of the other one's.
  void enter(const Part& part) {
    if (!refused_.empty()) return;
    part_ = &part;
    try {
      entered_.push_back(std::make_unique<StableLibrary>(part.kind, part.name_space, part.key, part.family.c_str(), 0));
      part.run(*entered_.back());
    } catch (const std::exception& error) {
      std::string first;
      for (size_t i = 0; i + 1 < defined_.size() && first.empty(); i++)
        if (defined_[i].name == now_) first = defined_[i].family;
      refused_ = now_ + "\n" + part.family + "\n" + first;
      std::cerr << "lossreg: expected ops that no other library defines, got " << now_ << " of " << part.family
                << " for the second time; this library stays without effect (" << error.what() << ")" << std::endl;
      withdraw();
    }
    part_ = nullptr;
  }

  std::vector<Part> parts_;
  std::vector<std::unique_ptr<StableLibrary>> entered_;
  std::vector<Definition> defined_;
  const Part* part_ = nullptr;
  std::string now_, refused_;
};

}  // namespace lossreg::detail

// What a library says of itself, to whoever has loaded it and looks for these names in that very library. Those who
// look may be of a later version: what is here stays.
#if defined(_WIN32)
#define LOSSREG_EXPORT extern "C" __declspec(dllexport) inline
#else
#define LOSSREG_EXPORT extern "C" __attribute__((visibility("default"), weak))
#endif

LOSSREG_EXPORT int lossreg_version() {
  return LOSSREG_VERSION;
}
LOSSREG_EXPORT const char* lossreg_namespace() {
  return C10_STRINGIZE(LOSSREG_NAMESPACE);
}
LOSSREG_EXPORT const char* lossreg_cuda_toolkit() {
  return LOSSREG_CUDA_TOOLKIT;
}
LOSSREG_EXPORT int lossreg_partial() {
  return LOSSREG_PARTIAL;
}
LOSSREG_EXPORT const char* lossreg_refused() {
  return lossreg::detail::Registration::of_library().refused().c_str();
}
LOSSREG_EXPORT const char* lossreg_defined() {
  static std::string text;
  text = lossreg::detail::Registration::of_library().defined();
  return text.c_str();
}
// Takes everything back from the dispatcher, so that another library can define the same ops; and enters it again.
LOSSREG_EXPORT void lossreg_withdraw() {
  lossreg::detail::Registration::of_library().withdraw();
}
LOSSREG_EXPORT void lossreg_enter() {
  lossreg::detail::Registration::of_library().enter_all();
}
