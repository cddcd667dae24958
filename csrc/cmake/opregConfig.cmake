# Libraries of ops: find_package(opreg), with opreg.cmake_prefix_path of Python as CMAKE_PREFIX_PATH, and
#
#   opreg_add_library(mylib NAMESPACE mylib FAMILIES my_losses.h CUDA)
#
# makes libmylib.so, whose ops are torch.ops.mylib.NAME, of families of ops: headers, as those in opreg's csrc/formulas
# are. It is installed into the folder of its name, which in a wheel is the Python package's.
#   NAMESPACE    of the ops, and in the file's name
#   FAMILIES     the headers
#   CUDA         with kernels for CUDA, where nvcc is found; CMAKE_CUDA_ARCHITECTURES says for which GPUs
#   DESTINATION  another folder to install it into
# OPREG_TORCH_DIR is the folder of the torch package (with include/ and lib/); by default Python is asked.

# The headers and the units: in an installed package, or in a checkout, where this folder is in their midst and nothing
# goes by the name of <opreg/...>.
get_filename_component(_opreg_root ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
if(EXISTS ${_opreg_root}/include/opreg/opreg.h)
  set(OPREG_INCLUDE_DIR ${_opreg_root}/include)
  set(OPREG_SOURCES ${_opreg_root}/include/opreg)
else()
  set(OPREG_INCLUDE_DIR ${CMAKE_BINARY_DIR}/opreg_include)
  set(OPREG_SOURCES ${_opreg_root})
  file(MAKE_DIRECTORY ${OPREG_INCLUDE_DIR})
  file(CREATE_LINK ${_opreg_root} ${OPREG_INCLUDE_DIR}/opreg SYMBOLIC)
endif()

# Puts the folder of the torch package into OPREG_TORCH_DIR.
macro(opreg_find_torch)
  if(NOT OPREG_TORCH_DIR)
    find_package(Python REQUIRED COMPONENTS Interpreter)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE OPREG_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "opreg: ${Python_EXECUTABLE} has no torch; install it or set OPREG_TORCH_DIR")
    endif()
  endif()
  message(STATUS "opreg: torch in ${OPREG_TORCH_DIR}")
endmacro()

# Sets OPREG_CUDA to whether there is an nvcc, and enables the language then. A macro, for CMake enables languages in
# nothing smaller than a file.
macro(opreg_find_cuda architectures)
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${architectures})
  endif()
  check_language(CUDA)
  set(OPREG_CUDA OFF)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(OPREG_CUDA ON)
    message(STATUS "opreg: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}, because ${CMAKE_CUDA_COMPILER} was found")
  else()
    message(STATUS "opreg: CPU only, because no nvcc was found")
  endif()
endmacro()

# What every unit of a library is compiled with, as the interface of FLAGS.
#
# -ffast-math would break the formulas; of what it does, -fno-math-errno and -fno-trapping-math are what vectorising
# needs. -fno-thread-jumps: gcc would follow what exp makes of each bound of its clamp, and blend the results: 0.58 in
# place of 0.34 ns an element of a log-sum-exp.
function(opreg_add_flags flags namespace)
  if(NOT namespace MATCHES "^[a-z][a-z0-9_]*$")
    message(FATAL_ERROR "opreg: expected a namespace of small letters, digits and _, got ${namespace}")
  endif()
  file(STRINGS ${OPREG_SOURCES}/cxx_flags.txt cxx_flags)
  if(MSVC)  # clang-cl; Microsoft's own compiler has no vectors for omp simd
    if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
      message(FATAL_ERROR "opreg: expected clang-cl, got ${CMAKE_CXX_COMPILER}; -DCMAKE_CXX_COMPILER=clang-cl chooses it")
    endif()
    list(TRANSFORM cxx_flags PREPEND "/clang:")
    list(APPEND cxx_flags /EHsc /bigobj)
  endif()
  add_library(${flags} INTERFACE)
  target_compile_options(${flags} INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${cxx_flags}>)
  target_include_directories(${flags} SYSTEM INTERFACE
    ${OPREG_TORCH_DIR}/include ${OPREG_TORCH_DIR}/include/torch/csrc/api/include)
  # The stable ABI of torch 2.11: the library runs in that version and every later one.
  target_compile_definitions(${flags} INTERFACE TORCH_TARGET_VERSION=0x020b000000000000 LOSSREG_NAMESPACE=${namespace})
  if(OPREG_CUDA)  # what the library says of itself, to the doctor and in errors
    target_compile_definitions(${flags} INTERFACE LOSSREG_CUDA_TOOLKIT="${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
endfunction()

# One family of a library: a unit for the CPU, PREFIX_cpu, and one for CUDA, PREFIX_cuda.
function(opreg_add_family library flags prefix header)
  add_library(${prefix}_cpu OBJECT ${OPREG_SOURCES}/lossreg.cpp)
  if(OPREG_CUDA)
    add_library(${prefix}_cuda OBJECT ${OPREG_SOURCES}/lossreg.cu)
    list(JOIN CMAKE_CUDA_ARCHITECTURES "," architectures)  # in a list, each would be a definition
    target_compile_definitions(${prefix}_cuda PRIVATE LOSSREG_NO_CLONES LOSSREG_CUDA_ARCHITECTURES="${architectures}")
    target_compile_options(${prefix}_cuda PRIVATE -O3 --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden)
  endif()
  foreach(unit ${prefix}_cpu ${prefix}_cuda)
    if(TARGET ${unit})
      target_link_libraries(${unit} PRIVATE ${flags})
      target_compile_definitions(${unit} PRIVATE LOSSREG_FAMILY="${header}")
      set_target_properties(${unit} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
        CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF)
      target_sources(${library} PRIVATE $<TARGET_OBJECTS:${unit}>)
    endif()
  endforeach()
endfunction()

# What the library of the units is linked with, and its name.
function(opreg_link library flags namespace)
  # torch's own libraries are found by the process that loads torch; no path of this machine is kept.
  target_link_directories(${library} PRIVATE ${OPREG_TORCH_DIR}/lib)
  # The clones of a function are chosen by a symbol that the compiler exports whatever its visibility. In a program that
  # is linked to two builds the second one would run the loops of the first: nothing is exported but what registration.h
  # says.
  if(APPLE)
    target_link_options(${library} PRIVATE "-Wl,-exported_symbol,_lossreg_*")
  elseif(WIN32)  # exported is what registration.h says, and nothing else
    set_target_properties(${library} PROPERTIES PREFIX lib)
  else()
    target_link_options(${library} PRIVATE -Wl,--no-as-needed -Wl,-z,nodelete
      -Wl,--version-script=${OPREG_SOURCES}/exports.map)
  endif()
  target_link_libraries(${library} PRIVATE ${flags} torch torch_cpu c10)
  if(OPREG_CUDA)
    target_link_libraries(${library} PRIVATE cudart_static rt dl pthread)
  endif()
  set_target_properties(${library} PROPERTIES SKIP_BUILD_RPATH ON OUTPUT_NAME ${namespace})
endfunction()

macro(opreg_add_library name)
  cmake_parse_arguments(OPREG "CUDA" "NAMESPACE;DESTINATION" "FAMILIES" ${ARGN})
  if(NOT OPREG_NAMESPACE OR NOT OPREG_FAMILIES OR OPREG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "opreg_add_library: expected NAME NAMESPACE ... FAMILIES ... [CUDA] [DESTINATION ...], got "
      "${name} ${ARGN}")
  endif()
  if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
  endif()
  opreg_find_torch()
  if(OPREG_CUDA)
    opreg_find_cuda("80-real;90-real;100;120-real")
  endif()
  _opreg_add_library(${name} "${OPREG_NAMESPACE}" "${OPREG_FAMILIES}" "${OPREG_DESTINATION}")
endmacro()
function(_opreg_add_library name namespace families destination)
  opreg_add_flags(${name}_flags ${namespace})
  target_include_directories(${name}_flags SYSTEM INTERFACE ${OPREG_INCLUDE_DIR})
  # Python's registry asks for no op that another library would have
  target_compile_definitions(${name}_flags INTERFACE LOSSREG_PARTIAL=1)
  add_library(${name} SHARED)
  foreach(header IN LISTS families)
    get_filename_component(header ${header} ABSOLUTE)
    if(NOT EXISTS ${header})
      message(FATAL_ERROR "opreg_add_library: expected FAMILIES of headers, got ${header}, which is no file")
    endif()
    get_filename_component(family ${header} NAME_WE)
    opreg_add_family(${name} ${name}_flags ${name}_${family} ${header})
  endforeach()
  opreg_link(${name} ${name}_flags ${namespace})
  if(NOT destination)
    set(destination ${name})
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION ${destination} RUNTIME DESTINATION ${destination})
endfunction()
