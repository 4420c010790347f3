# Tests that mistakes are found: by wrong results or the emulator itself, by AddressSanitizer or UBSan, and by
# ThreadSanitizer as a detector of races. `tests/finds` runs a program in several orders of threads.
set(finds ${CMAKE_CURRENT_SOURCE_DIR}/tests/finds)
set(kind plain)
if(ST_MOE_SANITIZE)
  string(REGEX MATCH "^[a-z]+" kind ${ST_MOE_SANITIZE})  # address or thread
endif()

# ---- a small kernel (tests/mistakes.cu): name, and what says so
function(mistake where name pattern)
  if(where STREQUAL "any" OR where STREQUAL kind)
    add_test(NAME mistake.${name} COMMAND ${finds} ${pattern} $<TARGET_FILE:simt_mistakes> ${name})
  endif()
endfunction()

# ---- a small program of the host (tests/host_mistakes.cu)
function(host_mistake name pattern)
  add_test(NAME host_mistake.${name} COMMAND ${finds} ${pattern} $<TARGET_FILE:simt_host_mistakes> ${name})
endfunction()

foreach(order forward rev rand:1)
  add_test(NAME mistake.none.${order} COMMAND simt_mistakes none)
  set_tests_properties(mistake.none.${order} PROPERTIES ENVIRONMENT SIMT_ORDER=${order})
endforeach()
mistake(plain missing_barrier "^wrong")
mistake(address missing_barrier "^wrong")
mistake(thread missing_barrier "data race")
mistake(plain missing_warp_barrier "^wrong")
mistake(address missing_warp_barrier "^wrong")
mistake(thread missing_warp_barrier "data race")
mistake(any off_by_one "^wrong")
mistake(any divergent_barrier "^wrong|different barriers")
mistake(any not_initialised "^wrong")
mistake(any missing_wait "^wrong")
mistake(any wrong_mask "not in the mask")
mistake(any early_return "deadlock|has ended")
mistake(plain past_the_end "past its end")
mistake(address past_the_end "AddressSanitizer: use-after-poison")
mistake(address read_past_the_end "AddressSanitizer: use-after-poison")
mistake(address past_shared_memory "index 256 out of bounds")
mistake(thread same_value "data race")
mistake(plain neighbour_block "^wrong")
mistake(thread neighbour_block "data race")
mistake(thread blocks_same_value "data race")
mistake(thread distant_block "data race")
mistake(plain lost_update "^wrong")
mistake(thread lost_update "data race")
mistake(thread missing_fence "data race")
mistake(any too_much_shared "^wrong")

add_test(NAME host_mistake.none COMMAND simt_host_mistakes none)
host_mistake(sent_memory_changed "^wrong")
host_mistake(sent_memory_freed "memory is freed while work that uses it has not run")
host_mistake(received_memory_freed "memory is freed while work that uses it has not run")
host_mistake(pageable_copy_as_wait "^wrong")
host_mistake(event_destroyed_as_wait "^wrong")
host_mistake(event_recorded_too_early "^wrong")
host_mistake(stream_destroyed_as_wait "a stream is destroyed while a copy from or to the host has not run")
host_mistake(default_stream_not_waited_for "^wrong")
host_mistake(streams_without_order "^wrong")
host_mistake(freed_by_another_stream "^wrong|use-after-free")
host_mistake(copied_after_it_is_freed "memory is freed while work that uses it has not run")
host_mistake(workspace_freed "memory is freed while work that uses it has not run")
host_mistake(used_after_it_is_freed "^wrong|use-after-free")
host_mistake(freed_before_the_replay "^wrong|use-after-free")
host_mistake(blocking_stream "^wrong")

# ---- the kernels of the backend with one line changed: a plugin whose tests must fail
# `source` is compiled again where `file` is a header that it includes.
function(mutant where name file source test from to pattern)
  if(NOT where STREQUAL kind)
    return()
  endif()
  file(READ ${root}/native/cuda/${file} text)
  string(REPLACE "${from}" "${to}" changed "${text}")
  if(changed STREQUAL text)
    message(FATAL_ERROR "mutant ${name}: native/cuda/${file} has no '${from}'")
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${root}/native/cuda/${file})
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/mutants/${name})
  file(GLOB others ${folder}/cuda/*)  # an earlier version may have changed another file
  list(REMOVE_ITEM others ${folder}/cuda/${file})
  if(others)
    file(REMOVE ${others})
  endif()
  file(CONFIGURE OUTPUT ${folder}/cuda/${file} CONTENT "${changed}" @ONLY)
  set(compiled ${root}/native/cuda/${source})
  if(file STREQUAL source)
    set(compiled ${folder}/cuda/${source})
  endif()
  add_library(mutant_${name} MODULE $<FILTER:$<TARGET_OBJECTS:simt_backend>,EXCLUDE,/${source}>
                                    $<TARGET_OBJECTS:simt_emulator>)
  add_library(mutated_${name} OBJECT ${compiled})
  set_source_files_properties(${compiled} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  target_include_directories(mutated_${name} BEFORE PRIVATE ${folder} ${CMAKE_CURRENT_SOURCE_DIR} ${root}/native)
  target_sources(mutant_${name} PRIVATE $<TARGET_OBJECTS:mutated_${name}>)
  target_link_libraries(mutant_${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  add_test(NAME mutant.${name} COMMAND ${finds} ${pattern} $<TARGET_FILE:cuda_ops_test> ${test})  # a group of its table
  set_tests_properties(mutant.${name} PROPERTIES
    ENVIRONMENT "ST_MOE_CUDA_LIBRARY=$<TARGET_FILE:mutant_${name}>;ST_MOE_TEST_SMALL=1;TSAN_OPTIONS=halt_on_error=1")
endfunction()

mutant(thread scan_off_by_one kernel.cuh route.cu route "lane >= offset" "lane > offset" "FAIL|data race")
mutant(thread slots_missing_barrier route.cu route.cu route
       "    __syncwarp();\n    if (e >= 0 && (same" "    if (e >= 0 && (same" "data race")
mutant(thread slots_wrong_mask route.cu route.cu route "(1u << lane) - 1" "(2u << lane) - 1" "FAIL|data race")
mutant(thread choose_missing_barrier route.cu route.cu route
       "    __syncthreads();\n    r.add_up(work)" "    r.add_up(work)" "data race")
mutant(thread reduce_missing_barrier kernel.cuh route.cu route
       "partial[warp] = value;\n  __syncthreads();" "partial[warp] = value;" "data race")
mutant(thread reduce_reused_too_early kernel.cuh route.cu route
       "  __syncthreads();  // an earlier call may still read\n" "" "data race")
mutant(thread reduce_wrong_mask kernel.cuh softmax.cu layers
       "__shfl_xor_sync(kAllLanes, value" "__shfl_xor_sync(0xffffu, value" "not in the mask")
mutant(thread sort_off_by_one kernel.cuh embedding.cu layers "lane >= offset" "lane > offset" "FAIL|data race")
mutant(thread sort_missing_barrier sort.cuh embedding.cu layers
       "in_warp[warp][digit] = __popc(peers);\n      __syncthreads();" "in_warp[warp][digit] = __popc(peers);"
       "data race")
mutant(thread blocks_overlap vector.cuh unary.cu elementwise
       "blockIdx.x * int64_t{blockDim.x} + threadIdx.x" "blockIdx.x * int64_t{blockDim.x - 1} + threadIdx.x" "data race")
mutant(address elementwise_one_too_many vector.cuh unary.cu elementwise "i < size;" "i <= size;" "AddressSanitizer")
mutant(address softmax_one_too_many router.cuh route.cu route "e < E; e += kWarp) largest" "e <= E; e += kWarp) largest"
       "AddressSanitizer")
mutant(thread sorted_with_the_next plan_sorted.cu plan_sorted.cu routing
       "row_of[order[i]] = has_row" "row_of[i] = has_row" "FAIL")
mutant(address sorted_one_too_many plan_sorted.cu plan_sorted.cu routing
       "if (i < R) assignment" "if (i <= R) assignment" "AddressSanitizer")
mutant(plain staging_filled_too_early stream.cu stream.cu optimizers
       "wait_for(part);\n    std::memcpy(part.data" "std::memcpy(part.data" "FAIL")
mutant(plain result_read_too_early stream.cu stream.cu creation
       "wait_for(part_at(done));\n    std::memcpy(static_cast<char*>(host)" "std::memcpy(static_cast<char*>(host)" "FAIL")
