# The table of cases, for tests and benchmarks.
if(NOT TARGET op_cases)
  file(GLOB cases CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cases/*.cc)
  add_library(op_cases OBJECT ${cases})
  target_include_directories(op_cases PRIVATE ${CMAKE_CURRENT_LIST_DIR}/../../native)
endif()
