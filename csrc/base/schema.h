#pragma once
// An op's `args`, the arguments of its schema: "Tensor input, Tensor? weight=None, int[2] stride=[1, 1]". This is the
// one place that reads them; at compile time, where the answer is a constant.
#include <string_view>

namespace lossreg {

struct SchemaArgument {
  std::string_view type, name;
  constexpr bool is_tensor() const { return type == "Tensor" || type == "Tensor?"; }
  constexpr bool is_optional() const { return !type.empty() && type.back() == '?'; }
};

class Schema {
 public:
  constexpr explicit Schema(std::string_view args) : args_(args) {}

  // The argument at this position; an empty one beyond the last.
  constexpr SchemaArgument at(int position) const {
    size_t begin = 0;
    while (position-- > 0) begin = next(begin);
    return read(begin);
  }
  constexpr int size() const {
    int count = 0;
    for (size_t begin = 0; begin < args_.size(); begin = next(begin)) count++;
    return count;
  }
  // The position of the n-th argument that is a tensor, or that is an option, which is what all others are.
  constexpr int position_of_tensor(int n) const { return position_of(n, true); }
  constexpr int position_of_option(int n) const { return position_of(n, false); }
  constexpr SchemaArgument tensor(int n) const { return at(position_of_tensor(n)); }
  constexpr SchemaArgument option(int n) const { return at(position_of_option(n)); }

  // How many options stand before this position.
  constexpr int options_before(int position) const {
    int count = 0;
    for (size_t begin = 0; position-- > 0 && begin < args_.size(); begin = next(begin))
      count += !read(begin).is_tensor();
    return count;
  }
  constexpr int options() const { return options_before(size()); }
  // How many tensors can't be None.
  constexpr int required_tensors() const {
    int count = 0;
    for (size_t begin = 0; begin < args_.size(); begin = next(begin)) {
      SchemaArgument argument = read(begin);
      count += argument.is_tensor() && !argument.is_optional();
    }
    return count;
  }

 private:
  // Where the text of the argument ends that begins here. A default may be a list, with commas of its own.
  constexpr size_t end_of(size_t at) const {
    for (int depth = 0; at < args_.size() && (args_[at] != ',' || depth > 0); at++)
      depth += args_[at] == '[' ? 1 : args_[at] == ']' ? -1 : 0;
    return at;
  }
  constexpr size_t next(size_t begin) const { return end_of(begin) + 2; }  // behind ", "
  constexpr SchemaArgument read(size_t begin) const {
    if (begin >= args_.size()) return {};
    std::string_view text = args_.substr(begin, end_of(begin) - begin);
    size_t space = text.find(' '), name = space + 1;
    return {text.substr(0, space), text.substr(name, text.find('=') - name)};
  }
  constexpr int position_of(int n, bool tensor) const {
    int position = 0;
    for (size_t begin = 0; begin < args_.size(); begin = next(begin), position++)
      if (read(begin).is_tensor() == tensor && n-- == 0) break;
    return position;
  }

  std::string_view args_;
};

}  // namespace lossreg
