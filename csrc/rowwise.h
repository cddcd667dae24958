#pragma once
#include "tensor.h"
namespace lossreg { template <class F, class B> struct RowKernel {}; }
