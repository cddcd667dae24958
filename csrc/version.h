#pragma once
// The version of these headers, major * 10000 + minor * 100 + patch: 0.1.0. A family may ask for it; a library says
// with which one it was compiled. What README.md calls public changes only with the first number of it that is not 0.
#define LOSSREG_VERSION 100
