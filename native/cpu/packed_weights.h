#pragma once
#include "core/pack.h"
#include "cpu/gemm.h"

// A batch of weights packed for GEMMs, stored with the parameter: a second GEMM with the same values does not pack
// again, and reads half of the bytes. In training the values change before that, so the first use only leaves a mark.
namespace st_moe::cpu::ST_MOE_ISA {

template <class T>
class PackedWeights {
 public:
  // weights [batch, K, N], batch_stride elements apart.
  PackedWeights(const Context& ctx, PackedCopies* copies, const MatrixView<T>& weights, int64_t batch,
                int64_t batch_stride, int64_t K, int64_t N, DType compute)
      : size_(copies && weights.plain() ? packed_size<T>(ctx, K, N, compute) : 0) {
    if (size_ == 0 || batch == 0) return;
    const int32_t along_k = weights.row_stride == 1;
    const PackKey key{kPanels + along_k, compute, batch, K, N}, mark{kMark + along_k, compute, batch, K, N};
    data_ = static_cast<const T*>(copies->find(*copies, key));
    if (data_) return;
    const bool again = copies->find(*copies, mark);
    Memory copy(again ? static_cast<size_t>(batch * size_) * sizeof(T) : 1);
    if (!copy.data) return;  // the GEMM packs as it goes
    if (again) pack_weights(ctx, weights, batch, batch_stride, K, N, compute, static_cast<T*>(copy.data));
    if (!copies->keep(*copies, again ? key : mark, copy.data, copy.bytes)) return;
    if (again) data_ = static_cast<const T*>(copy.data);
    copy.data = nullptr;
  }

  // For GemmProblem::packed_b; null if there is no copy.
  const T* at(int64_t index) const { return data_ ? data_ + index * size_ : nullptr; }

 private:
  enum Layout : int32_t { kPanels = 0, kMark = 2 };

  struct Memory {
    explicit Memory(size_t bytes) : bytes(bytes), data(cache_allocate(bytes)) {}
    ~Memory() { cache_release(data, bytes); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    size_t bytes;
    void* data;  // null once the parameter owns it
  };

  int64_t size_;
  const T* data_ = nullptr;
};

}  // namespace st_moe::cpu::ST_MOE_ISA
