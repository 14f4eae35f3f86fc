#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/exchange.h"
#include "engine/ops/cuda/tiles.h"

// Matrices whose columns ranks have computed, made whole on every rank. Bits are moved, never
// added.
//
// Exchanges of a stream are numbered from 1 within a *round*, a step say, which end_round() closes;
// every rank must enqueue the same ones. Small parts travel as packets, 4 bytes beside the number
// of the exchange in one 8-byte store, so that there is nothing to fence and nobody to signal: a
// reader polls the data themselves. Large ones are stored in place, then a flag a block.
//
// A rank may be one exchange ahead of a peer: it writes its part of a peer's matrix from exchange k
// on once that peer has begun k - 1. Whatever reads or writes the matrix on a rank must therefore
// be enqueued ahead of the exchange before the one that fills it again.

namespace thaw::ops::cuda {

/// A matrix in the user's bytes of every region, cut by columns.
struct GatherParams {
  ExchangeView exchange;
  std::uint32_t ordinal = 0;  ///< of the round, from 1
  std::size_t offset = 0;  ///< Exchange::offset_of the matrix
  /// The own part where it is not in place; null: it lies in the matrix already.
  const std::byte* source = nullptr;
  /// The own part is in place, and linear() has sent it: only the others' are received. Only where
  /// packets_serve().
  bool sent = false;
  std::size_t source_stride = 0;  ///< bytes from run to run
  /// The matrix as `runs` rows of units; a unit's bytes follow one another.
  int runs = 0;
  std::size_t run_stride = 0;
  int unit_bytes = 0;  ///< a multiple of 4
  int unit_stride = 0;
  int bounds[kMostRanks + 1] = {};  ///< units [bounds[r], bounds[r + 1]) are rank r's
};

/// Of a float32 matrix [num_rows][cols], each rank's part in place. `bounds`: columns, one more
/// than ranks, from 0 to cols.
GatherParams gather_of_rows(const Exchange& exchange, std::uint32_t ordinal, float* matrix,
                            int num_rows, int cols, std::span<const int> bounds);

/// Of tiles [num_rows, matrix.cols] from each rank's own [num_rows, its columns]. `bounds`:
/// columns, multiples of 64.
GatherParams gather_of_tiles(const Exchange& exchange, std::uint32_t ordinal, Tiles part,
                             Tiles matrix, int num_rows, std::span<const int> bounds);

/// Whether every rank's part of such tiles is small enough for packets, and of one tile of rows.
bool packets_serve(int num_rows, std::span<const int> bounds);

/// Makes the matrix whole on every rank. Throws kInvalidArgument for what cannot be.
void all_gather(const CudaDevice& device, const GatherParams& params,
                thaw::cuda::StreamView stream);

/// rms_norm of a matrix [num_rows][norm.x_stride] of which each rank has computed its columns, in
/// one kernel; bit for bit what all_gather and rms_norm give. The other ranks' columns of x need
/// not be written and hold what they held. Only for gather_norm_serves(); norm.rows must be null.
struct GatherNormParams {
  ExchangeView exchange;
  std::uint32_t ordinal = 0;
  RmsNormParams norm;
  bool sent = false;  ///< linear() has sent the own columns
  int bounds[kMostRanks + 1] = {};  ///< columns, multiples of 4
};
void gather_norm(const CudaDevice& device, const GatherNormParams& params,
                 thaw::cuda::StreamView stream);
/// Whether every part is small enough for packets.
bool gather_norm_serves(int size, int num_rows, std::span<const int> bounds);

/// Closes a round of `num_exchanges`. The last operation of every round; without one nothing is
/// enqueued.
void end_round(const CudaDevice& device, const ExchangeView& exchange, std::uint32_t num_exchanges,
               thaw::cuda::StreamView stream);

/// A round of its own that makes numbers of exchanges long past safe to come again. They are 32
/// bits wide: to be enqueued on every rank at least once in 2^31 exchanges.
void refresh_exchange(const CudaDevice& device, const Exchange& exchange,
                      thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
