#pragma once

// Replaces the header of the CUDA toolkit when a host compiler compiles .cu files for the tests.
#include "emulator/qualifiers.h"
#include "emulator/vector_types.h"
#include "emulator/engine.h"
#include "emulator/device_builtins.h"
#include "emulator/runtime_api.h"
