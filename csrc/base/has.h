#pragma once
// Members that a type may have or lack, found by their names.
#include <type_traits>

namespace lossreg {

// Has T the member? It is named by an alias that makes no sense without it:
//   template <class T> using Domains = decltype(T::domains);     has<Domains, Formula>
template <template <class> class Member, class T, class = void>
constexpr bool has = false;
template <template <class> class Member, class T>
constexpr bool has<Member, T, std::void_t<Member<T>>> = true;

}  // namespace lossreg
