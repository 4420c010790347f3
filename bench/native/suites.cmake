# What the benchmarks of all backends share.
set(ST_MOE_BENCH_SOURCES)
foreach(source main harness bench declared layer layer_suite op_suite)
  list(APPEND ST_MOE_BENCH_SOURCES ${CMAKE_CURRENT_LIST_DIR}/${source}.cc)
endforeach()
# Ops are timed by cases of the tests' table, without what computes them on the CPU.
include(${CMAKE_CURRENT_LIST_DIR}/../../test/native/cases.cmake)
list(APPEND ST_MOE_BENCH_SOURCES "$<FILTER:$<TARGET_OBJECTS:op_cases>,EXCLUDE,/host.cc>")
