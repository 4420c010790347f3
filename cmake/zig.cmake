# Crosses with the Zig compiler ST_MOE_ZIG to ST_MOE_TARGET, such as x86_64-linux-musl; see scripts/prebuilds.mjs.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ST_MOE_TARGET ST_MOE_ZIG)
string(REGEX MATCH "^([^-]+)-([^-.]+)" matched "${ST_MOE_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_OSX_SYSROOT "")  # Zig has its own
else()
  set(CMAKE_SYSTEM_NAME Linux)
  if(CMAKE_MATCH_2 STREQUAL "windows")
    set(CMAKE_SYSTEM_NAME Windows)
  endif()
  set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
endif()
set(CMAKE_CXX_COMPILER ${ST_MOE_ZIG} c++ -target ${ST_MOE_TARGET})
# Zig's names of instruction sets
set(ST_MOE_X64_LEVEL x86_64_v)
set(ST_MOE_ARM_BF16 -mcpu=generic+v8_2a+bf16)
