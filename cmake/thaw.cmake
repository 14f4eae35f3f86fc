# Helpers that every room's CMakeLists.txt uses: one call per module, test binary or bench binary.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(simdjson REQUIRED)
find_package(CLI11 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(tsl-robin-map REQUIRED)
find_package(Boost 1.81 REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(ISAL REQUIRED IMPORTED_TARGET libisal)
if(THAW_CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
if(THAW_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
if(THAW_BENCH)
  find_package(benchmark REQUIRED)
endif()

# Whether this is one of the sanitized presets.
set(THAW_SANITIZED OFF)
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
  set(THAW_SANITIZED ON)
endif()

# Warnings and arithmetic rules. -ffp-contract=off: a fused multiply-add happens only where the source
# says std::fma or an FMA intrinsic (docs/exactness.md).
add_library(thaw_options INTERFACE)
target_compile_options(thaw_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>
  # The same rule on the device: -fmad=false, and fused operations only where the source says __fmaf_rn.
  $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -lineinfo -Xcompiler=-Wall,-Wextra>)
# GCC 12 reports overlapping copies inside std::string where there are none (GCC bug 105329).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(thaw_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
# Sources that are compiled as one are no headers, which GCC takes them for: their types may have parts that are theirs alone.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_UNITY_BUILD)
  target_compile_options(thaw_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)
endif()
# Members that a designated initialiser leaves out have defaults.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(thaw_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
endif()
target_include_directories(thaw_options INTERFACE ${CMAKE_SOURCE_DIR})

# Sanitized builds read the library's headers once for all that is compiled alike (half of their minutes; nothing of ours is in
# it, so that a source that forgets one of our headers still fails). Elsewhere every source includes what it uses, and is held to it.
function(thaw_precompile_headers target)
  if(NOT THAW_SANITIZED)
    return()
  endif()
  set(kind room)
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES "^${CMAKE_SOURCE_DIR}/(engine|tests)/")
    set(kind ${CMAKE_MATCH_1})  # each with options of its own
  endif()
  get_property(first GLOBAL PROPERTY thaw_precompiled_${kind})
  if(first)
    target_precompile_headers(${target} REUSE_FROM ${first})
    return()
  endif()
  set_property(GLOBAL PROPERTY thaw_precompiled_${kind} ${target})
  set(headers <algorithm> <chrono> <filesystem> <fstream> <functional> <future> <map> <memory> <mutex> <optional> <random> <set> <span>
    <sstream> <string> <thread> <unordered_map> <variant> <vector> <nlohmann/json.hpp>)
  if(kind STREQUAL "tests")
    list(APPEND headers <gmock/gmock.h> <gtest/gtest.h>)
  endif()
  target_precompile_headers(${target} PRIVATE ${headers})
endfunction()

# thaw_add_module(NAME SOURCES ... DEPS ... [PRIVATE_DEPS ...]): static library thaw_NAME with alias thaw::NAME.
function(thaw_add_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(thaw_${name} STATIC ${ARG_SOURCES})
  add_library(thaw::${name} ALIAS thaw_${name})
  target_include_directories(thaw_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(thaw_${name} PUBLIC ${ARG_DEPS} Threads::Threads PRIVATE ${ARG_PRIVATE_DEPS} thaw_options)
  set_target_properties(thaw_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  thaw_precompile_headers(thaw_${name})
endfunction()

# thaw_add_test(NAME LABEL cpu|proc|gpu SOURCES ... DEPS ... [TIMEOUT seconds] [PARTS ...]): GoogleTest binary NAME. A long one has
# PARTS: endings of its tests' names, each a run of its own that starts before all others. Those that run as a whole come next. An
# instrumented process takes longer to start than most cases to run: there the cases of a binary share two.
function(thaw_add_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;DEPS;PARTS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(THAW_SANITIZED)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 5")
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} thaw_options GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE THAW_SOURCE_DIR="${CMAKE_SOURCE_DIR}" THAW_BINARY_DIR="${CMAKE_BINARY_DIR}")
  thaw_precompile_headers(${name})
  if(ARG_LABEL STREQUAL "cpu" AND THAW_SANITIZED)
    foreach(shard 0 1)
      add_test(NAME ${name}.${shard} COMMAND ${name} --gtest_brief=1)
      set_tests_properties(${name}.${shard} PROPERTIES LABELS cpu TIMEOUT ${ARG_TIMEOUT}
        ENVIRONMENT "GTEST_TOTAL_SHARDS=2;GTEST_SHARD_INDEX=${shard}")
    endforeach()
  elseif(ARG_LABEL STREQUAL "cpu")
    gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES LABELS cpu TIMEOUT ${ARG_TIMEOUT})
  elseif(ARG_PARTS)
    foreach(part ${ARG_PARTS})
      add_test(NAME ${name}.${part} COMMAND ${name} --gtest_filter=*/${part})
      set_tests_properties(${name}.${part} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT} COST 1000)
    endforeach()
  else()
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT} COST 100)
    if(ARG_LABEL STREQUAL "gpu")
      set_tests_properties(${name} PROPERTIES RESOURCE_LOCK gpu)  # one process on the device at a time
    endif()
  endif()
endfunction()

# thaw_add_bench(NAME SOURCES ... DEPS ...): Google Benchmark binary NAME.
function(thaw_add_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} thaw_options benchmark::benchmark)
  target_compile_definitions(${name} PRIVATE THAW_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
endfunction()
