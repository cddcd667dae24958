#pragma once
// All that a family outside of this tree includes: #include <opreg/opreg.h>. README.md says which of its names are
// public.
#include "skeletons/boxwise/formula.h"
#include "skeletons/formula.h"
#include "skeletons/groupwise/formula.h"
#include "skeletons/regionwise/overlap.h"
#include "skeletons/rowwise/formula.h"
#include "skeletons/standalone.h"
#include "version.h"
