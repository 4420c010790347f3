#include "cuda/blas_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <vector>

#include "cuda/stream.h"

namespace st_moe::cuda {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Folders outside the loader's paths: the toolkits, then the Python wheel of an active environment.
std::vector<std::string> folders() {
  std::vector<std::string> patterns;
  for (const std::string& toolkit :
       {environment("CUDA_PATH"), std::string("/usr/local/cuda"), std::string("/usr/local/cuda-1[23]*")})
    if (!toolkit.empty()) patterns.push_back(toolkit + "/lib64");
  for (const std::string& python : {environment("VIRTUAL_ENV"), environment("CONDA_PREFIX")}) {
    if (python.empty()) continue;
    for (const char* packages : {"site-packages", "dist-packages"})
      for (const char* wheel : {"cu13", "cublas"})
        patterns.push_back(python + "/lib/python3*/" + packages + "/nvidia/" + wheel + "/lib");
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

// Best first. A driver for CUDA 12 cannot run cuBLAS 13; one for CUDA 13 runs both.
std::vector<std::string> candidates(const std::vector<std::string>& folders) {
  if (const std::string path = environment("ST_MOE_CUBLAS_LIBRARY"); !path.empty()) return {path};
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::vector<std::string> names{"libcublas.so.13", "libcublas.so.12"}, paths;
  if (driver < 13000) std::swap(names[0], names[1]);
  for (const std::string& name : names) {
    paths.push_back(name);
    for (const std::string& folder : folders) {
      glob_t matches{};
      if (glob((folder + "/" + name).c_str(), 0, nullptr, &matches) == 0) paths.push_back(folder + "/" + name);
      globfree(&matches);
    }
  }
  return paths;
}

// libcublas needs the libcublasLt next to it, which the loader may not find.
void* open_library(const std::string& path) {
  const size_t file = path.rfind('/'), name = path.rfind("libcublas.");
  if (file != std::string::npos && name == file + 1)
    dlopen((path.substr(0, file) + "/libcublasLt." + path.substr(file + 1 + sizeof "libcublas")).c_str(),
           RTLD_NOW | RTLD_LOCAL);
  return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
}

template <class Function>
bool find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
  return *function != nullptr;
}

bool find_all(void* library, BlasLibrary* blas) {
  find(library, "cublasGemmGroupedBatchedEx", &blas->gemm_grouped_batched);
  return find(library, "cublasCreate_v2", &blas->create) && find(library, "cublasDestroy_v2", &blas->destroy) &&
         find(library, "cublasSetStream_v2", &blas->set_stream) &&
         find(library, "cublasSetWorkspace_v2", &blas->set_workspace) &&
         find(library, "cublasGetStatusString", &blas->status_string) &&
         find(library, "cublasGemmStridedBatchedEx", &blas->gemm_strided_batched);
}

constexpr int kSide = 32;  // of the matrices of the trial
constexpr size_t kTrialBytes = kSide * kSide * sizeof(float);

// The device memory of a trial.
struct Trial {
  const BlasLibrary& blas;
  cudaStream_t stream = nullptr;
  float* device = nullptr;  // a, b and c
  cublasHandle_t handle = nullptr;

  explicit Trial(const BlasLibrary& library) : blas(library) {}
  ~Trial() {
    if (handle) blas.destroy(handle);
    cudaFree(device);
    if (stream) cudaStreamDestroy(stream);
    cudaGetLastError();
  }
};

// The error of a library; empty if it multiplies small integers correctly, whose sums are exact in any order.
std::string try_library(const BlasLibrary& blas) {
  std::vector<float> a(kSide * kSide), b(a.size()), c(a.size()), wanted(a.size());
  for (int i = 0; i < kSide * kSide; ++i) a[i] = static_cast<float>(i % 7 - 3), b[i] = static_cast<float>(i % 5 - 2);
  for (int i = 0; i < kSide * kSide; ++i)
    for (int k = 0; k < kSide; ++k) wanted[i] += a[i % kSide + k * kSide] * b[k + i / kSide * kSide];
  Trial trial(blas);
  check(cudaStreamCreateWithFlags(&trial.stream, cudaStreamNonBlocking), "trial of cuBLAS");
  check(cudaMalloc(&trial.device, 3 * kTrialBytes), "trial of cuBLAS");
  float *on_a = trial.device, *on_b = on_a + a.size(), *on_c = on_b + b.size();
  const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, kTrialBytes, kind, trial.stream), "trial of cuBLAS");
  };
  copy(on_a, a.data(), cudaMemcpyHostToDevice);
  copy(on_b, b.data(), cudaMemcpyHostToDevice);
  copy(on_c, c.data(), cudaMemcpyHostToDevice);

  const auto says = [&](const char* what, cublasStatus_t status) {
    return std::string(what) + " gives " + blas.status_string(status);
  };
  const float one = 1, zero = 0;
  cublasStatus_t status = blas.create(&trial.handle);
  if (status != CUBLAS_STATUS_SUCCESS) return says("cublasCreate", status);
  status = blas.set_stream(trial.handle, trial.stream);
  if (status != CUBLAS_STATUS_SUCCESS) return says("cublasSetStream", status);
  status = blas.gemm_strided_batched(trial.handle, CUBLAS_OP_N, CUBLAS_OP_N, kSide, kSide, kSide, &one, on_a,
                                     CUDA_R_32F, kSide, 0, on_b, CUDA_R_32F, kSide, 0, &zero, on_c, CUDA_R_32F, kSide,
                                     0, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) return says("a small GEMM", status);
  copy(c.data(), on_c, cudaMemcpyDeviceToHost);
  check(cudaStreamSynchronize(trial.stream), "trial of cuBLAS");
  return c == wanted ? "" : "the result of a small GEMM is wrong";
}

std::string open_and_try(const std::string& path, BlasLibrary* blas) {
  void* library = open_library(path);
  if (!library) {
    const char* error = dlerror();
    return error ? error : "cannot be opened";
  }
  if (!find_all(library, blas)) return "this is not cuBLAS 12 or 13";
  try {
    return try_library(*blas);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::device_fault) throw;
    return error.what();
  }
}

BlasSearch search() {
  BlasLibrary blas{};
#if defined(ST_MOE_SIMT)
  if (environment("ST_MOE_CUBLAS_LIBRARY").empty() && environment("SIMT_CUBLAS") != "files") {
    blas = {cublasCreate_v2,       cublasDestroy_v2,           cublasSetStream_v2,        cublasSetWorkspace_v2,
            cublasGetStatusString, cublasGemmStridedBatchedEx, cublasGemmGroupedBatchedEx};
    const std::string wrong = try_library(blas);
    return {wrong.empty() ? new BlasLibrary(blas) : nullptr, wrong};
  }
#endif
  const std::vector<std::string> places = folders();
  std::string tried, looked;
  for (const std::string& path : candidates(places)) {
    const std::string wrong = open_and_try(path, &blas);
    if (wrong.empty()) return {new BlasLibrary(blas), ""};
    tried += (wrong.rfind(path, 0) == 0 ? "" : path + ": ") + wrong + "; ";
  }
  if (!environment("ST_MOE_CUBLAS_LIBRARY").empty()) return {nullptr, "ST_MOE_CUBLAS_LIBRARY: " + tried};
  for (const std::string& folder : places) looked += ", " + folder;
  return {nullptr, tried + "looked in the paths of the loader" + looked +
                       "; install CUDA 12 or 13, or name the file in ST_MOE_CUBLAS_LIBRARY"};
}

}  // namespace

const BlasSearch& find_blas() {
  static const auto* const found = new BlasSearch(search());
  return *found;
}

const BlasLibrary& blas_library() {
  const BlasSearch& found = find_blas();
  if (!found.library) fail(ErrorCode::backend_unavailable, "cublas: %s", found.reason.c_str());
  return *found.library;
}

}  // namespace st_moe::cuda
