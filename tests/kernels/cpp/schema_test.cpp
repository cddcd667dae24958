// The parser of an op's `args`: all of it is asserted while this compiles.
#include "base/schema.h"

namespace lossreg {

constexpr Schema kLoss("Tensor input, Tensor? weight=None, float eps=1e-8, str reduction=\"mean\"");
static_assert(kLoss.size() == 4 && kLoss.options() == 2 && kLoss.required_tensors() == 1);
static_assert(kLoss.at(0).type == "Tensor" && kLoss.at(0).name == "input" && !kLoss.at(0).is_optional());
static_assert(kLoss.at(1).type == "Tensor?" && kLoss.at(1).name == "weight" && kLoss.at(1).is_optional());
static_assert(kLoss.at(3).type == "str" && kLoss.at(3).name == "reduction");
static_assert(kLoss.tensor(1).name == "weight" && kLoss.option(0).name == "eps" && kLoss.option(1).name == "reduction");

// Tensors behind options; commas inside of a default; brackets in a type.
constexpr Schema kMixed("Tensor input, int[2] stride=[1, 1], Tensor target, int[2] padding=0, Tensor? bias=None");
static_assert(kMixed.size() == 5 && kMixed.options() == 2 && kMixed.required_tensors() == 2);
static_assert(kMixed.position_of_tensor(0) == 0 && kMixed.position_of_tensor(1) == 2);
static_assert(kMixed.position_of_tensor(2) == 4 && kMixed.tensor(2).is_optional());
static_assert(kMixed.position_of_option(0) == 1 && kMixed.position_of_option(1) == 3);
static_assert(kMixed.at(1).type == "int[2]" && kMixed.at(1).name == "stride" && kMixed.option(1).name == "padding");
static_assert(kMixed.options_before(0) == 0 && kMixed.options_before(2) == 1 && kMixed.options_before(4) == 2);

// No options, no defaults, nothing at all; what is beyond the last argument.
constexpr Schema kPlain("Tensor input, Tensor target");
static_assert(kPlain.size() == 2 && kPlain.options() == 0 && kPlain.required_tensors() == 2);
static_assert(kPlain.at(1).name == "target" && kPlain.position_of_option(0) == 2);
static_assert(kPlain.at(2).type.empty() && !kPlain.at(2).is_tensor() && !kPlain.at(2).is_optional());
constexpr Schema kEmpty("");
static_assert(kEmpty.size() == 0 && kEmpty.options() == 0 && kEmpty.at(0).name.empty());

}  // namespace lossreg

int main() {}
