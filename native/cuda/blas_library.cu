#include "cuda/blas_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace st_moe::cuda {

static const char* const kNames[] = {"libcublas.so.13", "libcublas.so.12"};

static std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Folders outside of the loader's paths: the toolkit, then the Python wheel of an active environment.
static std::vector<std::string> folders() {
  std::vector<std::string> patterns;
  for (const std::string& toolkit : {environment("CUDA_PATH"), std::string("/usr/local/cuda")})
    if (!toolkit.empty()) patterns.push_back(toolkit + "/lib64");
  for (const std::string& python : {environment("VIRTUAL_ENV"), environment("CONDA_PREFIX")}) {
    if (python.empty()) continue;
    for (const char* wheel : {"cu13", "cublas"})
      patterns.push_back(python + "/lib/python3*/site-packages/nvidia/" + wheel + "/lib");
  }
  std::vector<std::string> found;
  for (const std::string& pattern : patterns) {
    glob_t matches{};
    if (glob(pattern.c_str(), 0, nullptr, &matches) == 0)
      for (size_t i = 0; i < matches.gl_pathc; ++i) found.push_back(matches.gl_pathv[i]);
    globfree(&matches);
  }
  return found;
}

// libcublas needs the libcublasLt that lies beside it, which the loader may not find by itself.
static void* open_in(const std::string& folder, std::string name) {
  const std::string library = folder + "/" + name;
  dlopen((folder + "/" + name.replace(name.find(".so"), 0, "Lt")).c_str(), RTLD_NOW | RTLD_LOCAL);
  return dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
}

static void* open_library(std::string* reason) {
  if (const std::string path = environment("ST_MOE_CUBLAS_LIBRARY"); !path.empty()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char* error = library ? nullptr : dlerror();
    *reason = "ST_MOE_CUBLAS_LIBRARY: " + (error ? std::string(error) : path + " cannot be opened");
    return library;
  }
  for (const char* name : kNames)
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  *reason = "no libcublas.so.13 or libcublas.so.12 in the paths of the loader";
  for (const std::string& folder : folders()) {
    for (const char* name : kNames)
      if (void* library = open_in(folder, name)) return library;
    *reason += ", " + folder;
  }
  *reason += "; install CUDA 12 or 13, or name the file in ST_MOE_CUBLAS_LIBRARY";
  return nullptr;
}

template <class Function>
static bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

static BlasLibrary load() {
  BlasLibrary blas{};
#if defined(ST_MOE_SIMT)
  if (environment("ST_MOE_CUBLAS_LIBRARY").empty())
    return {cublasCreate_v2,
            cublasDestroy_v2,
            cublasSetStream_v2,
            cublasGetVersion_v2,
            cublasGetStatusString,
            cublasGemmStridedBatchedEx,
            cublasGemmGroupedBatchedEx,
            true,
            {}};
#endif
  std::string reason;
  if (void* library = open_library(&reason)) {
    find(library, "cublasGemmGroupedBatchedEx", &blas.gemm_grouped_batched);
    blas.found = find(library, "cublasCreate_v2", &blas.create) && find(library, "cublasDestroy_v2", &blas.destroy) &&
                 find(library, "cublasSetStream_v2", &blas.set_stream) &&
                 find(library, "cublasGetVersion_v2", &blas.get_version) &&
                 find(library, "cublasGetStatusString", &blas.status_string) &&
                 find(library, "cublasGemmStridedBatchedEx", &blas.gemm_strided_batched);
    reason = "the library that was found is not cuBLAS 12 or 13";
  }
  if (!blas.found) std::snprintf(blas.reason, sizeof blas.reason, "%s", reason.c_str());
  return blas;
}

const BlasLibrary& blas_library() {
  static const auto* const blas = new BlasLibrary(load());
  return *blas;
}

}  // namespace st_moe::cuda
