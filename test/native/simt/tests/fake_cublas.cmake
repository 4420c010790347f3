# Libraries for the tests of how cuBLAS is found: cublas/KIND/lib64/libcublas.so.VERSION, each as good as KIND says.
function(fake_cublas kind version)
  set(name fake_cublas_${kind}_${version})
  add_library(${name} MODULE tests/fake_cublas.cc)
  string(TOUPPER FAKE_${kind} fault)
  target_compile_definitions(${name} PRIVATE ${fault} FAKE_NAME="${kind} ${version}")
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${root}/native)
  target_link_libraries(${name} PRIVATE ${CMAKE_DL_LIBS})
  set_target_properties(${name} PROPERTIES
    PREFIX "" OUTPUT_NAME libcublas SUFFIX .so.${version} SKIP_BUILD_RPATH ON
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cublas/${kind}/lib64)
endfunction()

foreach(kind good create gemm wrong symbols)
  fake_cublas(${kind} 12)
  fake_cublas(${kind} 13)
endforeach()

# One that needs the libcublasLt beside it, as the real one does, and does not say where it is.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/cublas_lt.cc "int cublas_lt() { return 0; }\n")
add_library(fake_cublas_lt SHARED ${CMAKE_CURRENT_BINARY_DIR}/cublas_lt.cc)
fake_cublas(lt 13)
set_target_properties(fake_cublas_lt PROPERTIES
  OUTPUT_NAME cublasLt SUFFIX .so.13 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cublas/lt/lib64)
target_link_libraries(fake_cublas_lt_13 PRIVATE -Wl,--no-as-needed fake_cublas_lt)
