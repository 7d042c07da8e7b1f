// mul_mat_vec.q4_k.1 for gfx1100

!bytes = memref<?xi8>
!i32x2 = vector<2xi32>
!i32x4 = vector<4xi32>
!f32x8 = vector<8xf32>
!x = memref<?x?xf32>
!xq = memref<?x?x8xi32>
!xd = memref<?x?x2xi32>
!y = memref<?x?xf32>
!sub_block = vector<8xi32>
!floats = vector<4xf32>
!ints = vector<4xi32>
!int8s = vector<4xi8>
!xbytes = memref<?x?x32xi8>
!xq_tiles = memref<?x1x4x32x16xi8>
!xd_tiles = memref<?x1x1x32x4xi32>
!quants = vector<2x8xi32>
!scales = vector<2xf32>
!rows = vector<1xf32>
!ints_2 = vector<1xi32>
!xq_tiles_2 = memref<?x1x4x32x4xi32>
!words = vector<4xi32>
!sums = vector<1xf32>

#quantize_q8_1_tiles_m1_t64_b32_l8_buffers = #hal.pipeline.layout<constants = 3, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>,
  #hal.pipeline.binding<storage_buffer>]>
#mul_mat_vec_tiles_m1_n4_w4_t64_buffers = #hal.pipeline.layout<constants = 3, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>]>
// Each dispatch is an executable: its helpers and types are its own, and on CUDA its amount of shared memory, where the kernels of one
// executable all get the sum of what they use.
module attributes {hal.device.targets = [#hal.device.target<"hip", [#hal.executable.target<"rocm", "rocm-hsaco-fb", {abi = "hip", iree_codegen.target_info = #iree_gpu.target<arch = "gfx1100", features = "", wgp = <compute = fp64|fp32|fp16|int64|int32|int16|int8, storage = b64|b32|b16|b8, subgroup = shuffle|arithmetic, dot = dp4xi8toi32, mma = [], subgroup_size_choices = [32, 64], max_workgroup_sizes = [1024, 1024, 1024], max_thread_count_per_workgroup = 1024, max_workgroup_memory_bytes = 65536, max_workgroup_counts = [2147483647, 65535, 65535], max_load_instruction_bits = 128, simds_per_wgp = 4, vgpr_space_bits = 8192, workgroup_memory_bank_count = 32>>}>]> : !hal.device]} {
hal.executable.source private @quantize_q8_1_tiles_m1_t64_b32_l8 {
  hal.executable.export public @quantize_q8_1_tiles_m1_t64_b32_l8 ordinal(0) layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers)
      count(%device: !hal.device, %q8_blocks: index, %m: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 32 : index
    %workgroups_0 = arith.ceildivui %q8_blocks, %tile_0 : index
    %tile_1 = arith.constant 1 : index
    %workgroups_1 = arith.ceildivui %m, %tile_1 : index
    hal.return %workgroups_0, %workgroups_1, %one : index, index, index
  }
  builtin.module {

    // ---- Target: AMD GPUs. Every target file defines these functions, under these names.

    func.func private @thread() -> index {
      %thread = gpu.thread_id x
      return %thread : index
    }

    // Over the 8 lanes that share a q8 block; the maximum is unsigned.
    func.func private @block_max(%x: i32) -> i32 {
      %max = gpu.subgroup_reduce maxui %x cluster(size = 8) : (i32) -> i32
      return %max : i32
    }
    func.func private @block_sum(%x: i32) -> i32 {
      %sum = gpu.subgroup_reduce add %x cluster(size = 8) : (i32) -> i32
      return %sum : i32
    }

    // ---- Format q4_K: super-blocks of 256 weights in 144 bytes: f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles.
    // weight = d * scale[s] * nibble - dmin * min[s], s = k / 32. Each 32 bytes of nibbles hold sub-block 2p low, 2p + 1 high.



    // ---- Fields of a block: integers from any byte, and what formats make of bits.


    // ---- Derived for every format of quantized weights from its @load_quants_8, @load_quants_16 and @load_scale.


    // ---- quantize_q8_1_tiles: activations to q8: d = max|x| / 127 over 32 values, quants = round(x / d). A NaN or an infinity makes its block's d
    // NaN or infinite, and so every result that uses the block. Rows are padded with zeros to whole blocks. 8 lanes a block.

    // See kernels/mul_mat_vec_tiles.mlir.j2.

    func.func @quantize_q8_1_tiles_m1_t64_b32_l8() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [256, 1, 1] subgroup_size = 32>} {
      %m_i32 = hal.interface.constant.load layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) ordinal(0) : i32
      %m = arith.index_castui %m_i32 : i32 to index
      %k_i32 = hal.interface.constant.load layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) ordinal(1) : i32
      %k = arith.index_castui %k_i32 : i32 to index
      %q8_blocks_i32 = hal.interface.constant.load layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) ordinal(2) : i32
      %q8_blocks = arith.index_castui %q8_blocks_i32 : i32 to index
      %workgroup_q8_blocks = hal.interface.workgroup.id[0] : index
      %workgroup_m = hal.interface.workgroup.id[1] : index
      %x = hal.interface.binding.subspan layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) binding(0) alignment(64) : !x{%m, %k}
      // %k_tiles = ((32 * %q8_blocks + 2047) / 2048) : index
      %k_tiles.1 = arith.constant 32 : index
      %k_tiles.2 = arith.muli %k_tiles.1, %q8_blocks : index
      %k_tiles.3 = arith.constant 0x7ff : index
      %k_tiles.4 = arith.addi %k_tiles.2, %k_tiles.3 : index
      %k_tiles.5 = arith.constant 0x800 : index
      %k_tiles = arith.divui %k_tiles.4, %k_tiles.5 : index
      // %all_tiles = ((%m + 0) / 1 * %k_tiles) : index
      %all_tiles.6 = arith.constant 0 : index
      %all_tiles.7 = arith.addi %m, %all_tiles.6 : index
      %all_tiles.8 = arith.constant 1 : index
      %all_tiles.9 = arith.divui %all_tiles.7, %all_tiles.8 : index
      %all_tiles = arith.muli %all_tiles.9, %k_tiles : index
      // %first_tile = (%workgroup_m / 1 * %k_tiles) : index
      %first_tile.10 = arith.constant 1 : index
      %first_tile.11 = arith.divui %workgroup_m, %first_tile.10 : index
      %first_tile = arith.muli %first_tile.11, %k_tiles : index
      // %column = (%workgroup_m mod 1) : index
      %column.12 = arith.constant 1 : index
      %column = arith.remui %workgroup_m, %column.12 : index
      %xq = hal.interface.binding.subspan layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) binding(1) alignment(64) : !xq_tiles{%all_tiles}
      %xd = hal.interface.binding.subspan layout(#quantize_q8_1_tiles_m1_t64_b32_l8_buffers) binding(2) alignment(64) : !xd_tiles{%all_tiles}
      %thread = func.call @thread() : () -> index
      // %lane = (%thread mod 8) : index
      %lane.13 = arith.constant 8 : index
      %lane = arith.remui %thread, %lane.13 : index
      // %first_lane = (%lane == 0) : index
      %first_lane.14 = arith.constant 0 : index
      %first_lane = arith.cmpi eq, %lane, %first_lane.14 : index
      // %in_block = (4 * %lane) : index
      %in_block.15 = arith.constant 4 : index
      %in_block = arith.muli %in_block.15, %lane : index
      // %first = (32 * %workgroup_q8_blocks + %thread / 8) : index
      %first.16 = arith.constant 32 : index
      %first.17 = arith.muli %first.16, %workgroup_q8_blocks : index
      %first.18 = arith.constant 8 : index
      %first.19 = arith.divui %thread, %first.18 : index
      %first = arith.addi %first.17, %first.19 : index
      // %stop = (min(32 * (%workgroup_q8_blocks + 1), %q8_blocks)) : index
      %stop.20 = arith.constant 32 : index
      %stop.21 = arith.constant 1 : index
      %stop.22 = arith.addi %workgroup_q8_blocks, %stop.21 : index
      %stop.23 = arith.muli %stop.20, %stop.22 : index
      %stop = arith.minui %stop.23, %q8_blocks : index
      %step = arith.constant 32 : index
      scf.for %q8_block = %first to %stop step %step {
        %quants, %scale, %sums = func.call @quantize_block(%x, %workgroup_m, %k, %q8_block, %in_block) : (!x, index, index, index, index) -> (!int8s, f32, i32)
        // @store_quants(%quants, %xq, %first_tile, %column, 32 * %q8_block + %in_block)
        %store_quants.25 = arith.constant 32 : index
        %store_quants.26 = arith.muli %store_quants.25, %q8_block : index
        %store_quants.24 = arith.addi %store_quants.26, %in_block : index
        func.call @store_quants(%quants, %xq, %first_tile, %column, %store_quants.24) : (!int8s, !xq_tiles, index, index, index) -> ()
        scf.if %first_lane {
          // %first_sum = (asr(%sums << 16, 16)) : i32
          %first_sum.27 = arith.constant 16 : i32
          %first_sum.28 = arith.shli %sums, %first_sum.27 : i32
          %first_sum.29 = arith.constant 16 : i32
          %first_sum = arith.shrsi %first_sum.28, %first_sum.29 : i32
          // %last_sum = (asr(%sums - %first_sum, 16)) : i32
          %last_sum.30 = arith.subi %sums, %first_sum : i32
          %last_sum.31 = arith.constant 16 : i32
          %last_sum = arith.shrsi %last_sum.30, %last_sum.31 : i32
          // @store_scale(%scale, %first_sum + %last_sum, %xd, %first_tile, %column, 32 * %q8_block)
          %store_scale.32 = arith.addi %first_sum, %last_sum : i32
          %store_scale.34 = arith.constant 32 : index
          %store_scale.33 = arith.muli %store_scale.34, %q8_block : index
          func.call @store_scale(%scale, %store_scale.32, %xd, %first_tile, %column, %store_scale.33) : (f32, i32, !xd_tiles, index, index, index) -> ()
        }
      }
      return
    }
    // Where the activation that is multiplied with weight k of a row lies: the tile, the lane that takes it, which of the lane's runs it is in,
    // and its place there.
    func.func private @place(%k: index) -> (index, index, index, index) {
      // %lane_tile = (1 * (%k / 64) + %k mod 16 / 16) : index
      %lane_tile.1 = arith.constant 1 : index
      %lane_tile.2 = arith.constant 64 : index
      %lane_tile.3 = arith.divui %k, %lane_tile.2 : index
      %lane_tile.4 = arith.muli %lane_tile.1, %lane_tile.3 : index
      %lane_tile.5 = arith.constant 16 : index
      %lane_tile.6 = arith.remui %k, %lane_tile.5 : index
      %lane_tile.7 = arith.constant 16 : index
      %lane_tile.8 = arith.divui %lane_tile.6, %lane_tile.7 : index
      %lane_tile = arith.addi %lane_tile.4, %lane_tile.8 : index
      // %tile = (%lane_tile / 32) : index
      %tile.9 = arith.constant 32 : index
      %tile = arith.divui %lane_tile, %tile.9 : index
      // %lane = (%lane_tile mod 32) : index
      %lane.10 = arith.constant 32 : index
      %lane = arith.remui %lane_tile, %lane.10 : index
      // %run = (%k mod 64 / 16) : index
      %run.11 = arith.constant 64 : index
      %run.12 = arith.remui %k, %run.11 : index
      %run.13 = arith.constant 16 : index
      %run = arith.divui %run.12, %run.13 : index
      // %at = (%k mod 16) : index
      %at.14 = arith.constant 16 : index
      %at = arith.remui %k, %at.14 : index
      return %tile, %lane, %run, %at : index, index, index, index
    }
    func.func private @store_quants(%quants: !int8s, %xq: !xq_tiles, %first_tile: index, %column: index, %k: index) {
      %tile, %lane, %run, %at = func.call @place(%k) : (index) -> (index, index, index, index)
      // %xq[%first_tile + %tile, %column, %run, %lane, %at]
      %quants.1 = arith.addi %first_tile, %tile : index
      "vector.store"(%quants, %xq, %quants.1, %column, %run, %lane, %at) <{alignment = 4 : i64}> : (!int8s, !xq_tiles, index, index, index, index, index) -> ()
      return
    }
    // The scale of a sub-block's activations; and what the format's weights take of their sum: itself, as f32.
    func.func private @store_scale(%scale: f32, %sum: i32, %xd: !xd_tiles, %first_tile: index, %column: index, %k: index) {
      %tile, %lane, %run, %at = func.call @place(%k) : (index) -> (index, index, index, index)
      %bits = arith.bitcast %scale : f32 to i32
      // %float = (sitofp(%sum)) : f32
      %float = arith.sitofp %sum : i32 to f32
      %second = arith.bitcast %float : f32 to i32
      %pair = vector.from_elements %bits, %second : !i32x2
      // %sub_block = (%run / 2) : index
      %sub_block.1 = arith.constant 2 : index
      %sub_block = arith.divui %run, %sub_block.1 : index
      // %xd[%first_tile + %tile, %column, %sub_block / 2, %lane, 2 * (%sub_block mod 2)]
      %pair.2 = arith.addi %first_tile, %tile : index
      %pair.5 = arith.constant 2 : index
      %pair.3 = arith.divui %sub_block, %pair.5 : index
      %pair.6 = arith.constant 2 : index
      %pair.7 = arith.constant 2 : index
      %pair.8 = arith.remui %sub_block, %pair.7 : index
      %pair.4 = arith.muli %pair.6, %pair.8 : index
      vector.store %pair, %xd[%pair.2, %column, %pair.3, %lane, %pair.4] : !xd_tiles, !i32x2
      return
    }
    // One lane's part of a block: its quants; the block's scale; the sums of the block's first and last 16 quants, first + 65536 * last.
    func.func private @quantize_block(%x: !x, %row: index, %k: index, %q8_block: index, %in_block: index) -> (!int8s, f32, i32) {
      // @load_padded(%x, %row, %k, 32 * %q8_block + %in_block)
      %values.2 = arith.constant 32 : index
      %values.3 = arith.muli %values.2, %q8_block : index
      %values.1 = arith.addi %values.3, %in_block : index
      %values = func.call @load_padded(%x, %row, %k, %values.1) : (!x, index, index, index) -> !floats
      // The largest magnitude, by its bits: a NaN is larger than infinity then. (IREE turns maximumf into a maximum that drops NaNs on ROCm.)
      %bits = arith.bitcast %values : !floats to !ints
      // %magnitudes = (%bits & 0x7FFFFFFF) : !ints
      %magnitudes.4 = arith.constant dense<0x7fffffff> : !ints
      %magnitudes = arith.andi %bits, %magnitudes.4 : !ints
      %lane_max = vector.reduction <maxui>, %magnitudes : !ints into i32
      %block_max = func.call @block_max(%lane_max) : (i32) -> i32
      %amax = arith.bitcast %block_max : i32 to f32
      // %scale = (%amax / 127) : f32
      %scale.5 = arith.constant 127.0 : f32
      %scale = arith.divf %amax, %scale.5 : f32
      %zero = arith.constant 0.0 : f32
      %some = arith.cmpf one, %scale, %zero : f32
      // %reciprocal = (1 / %scale) : f32
      %reciprocal.6 = arith.constant 1.0 : f32
      %reciprocal = arith.divf %reciprocal.6, %scale : f32
      %inverse = arith.select %some, %reciprocal, %zero : f32
      // %scaled = (%values * splat(%inverse)) : !floats
      %scaled.7 = vector.broadcast %inverse : f32 to !floats
      %scaled = arith.mulf %values, %scaled.7 : !floats
      %rounded = math.round %scaled : !floats
      // Denormal scales overflow the reciprocal; ggml's cast of such values to int8 is undefined, ours saturates.
      // %within = (min(max(%rounded, -127), 127)) : !floats
      %within.8 = arith.constant dense<-127.0> : !floats
      %within.9 = arith.maxnumf %rounded, %within.8 : !floats
      %within.10 = arith.constant dense<127.0> : !floats
      %within = arith.minnumf %within.9, %within.10 : !floats
      %ints = arith.fptosi %within : !floats to !ints
      %quants = arith.trunci %ints : !ints to !int8s

      %order = arith.constant dense<[0, 1, 2, 3]> : !ints
      // %weighted = (%ints << (splat(i32(%in_block)) + %order & 16)) : !ints
      %weighted.11 = arith.index_castui %in_block : index to i32
      %weighted.12 = vector.broadcast %weighted.11 : i32 to !ints
      %weighted.13 = arith.addi %weighted.12, %order : !ints
      %weighted.14 = arith.constant dense<16> : !ints
      %weighted.15 = arith.andi %weighted.13, %weighted.14 : !ints
      %weighted = arith.shli %ints, %weighted.15 : !ints
      %lane_sum = vector.reduction <add>, %weighted : !ints into i32
      %sums = func.call @block_sum(%lane_sum) : (i32) -> i32
      return %quants, %scale, %sums : !int8s, f32, i32
    }
    // x[row, at..at+3], zeros from k on. Whole and aligned unless the row ends here or its length is odd.
    func.func private @load_padded(%x: !x, %row: index, %k: index, %at: index) -> !floats {
      // %plain = (%at + 4 <= %k and %k mod 4 == 0) : index
      %plain.1 = arith.constant 4 : index
      %plain.2 = arith.addi %at, %plain.1 : index
      %plain.3 = arith.cmpi ule, %plain.2, %k : index
      %plain.4 = arith.constant 4 : index
      %plain.5 = arith.remui %k, %plain.4 : index
      %plain.6 = arith.constant 0 : index
      %plain.7 = arith.cmpi eq, %plain.5, %plain.6 : index
      %plain = arith.andi %plain.3, %plain.7 : i1
      %loaded = scf.if %plain -> (!floats) {
        %all = "vector.load"(%x, %row, %at) <{alignment = 16 : i64}> : (!x, index, index) -> !floats
        scf.yield %all : !floats
      } else {
        %zero = arith.constant 0.0 : f32
        // %at0 = (%at + 0) : index
        %at0.8 = arith.constant 0 : index
        %at0 = arith.addi %at, %at0.8 : index
        // %inside0 = (%at0 < %k) : index
        %inside0 = arith.cmpi ult, %at0, %k : index
        %value0 = scf.if %inside0 -> (f32) {
          %one = memref.load %x[%row, %at0] : !x
          scf.yield %one : f32
        } else {
          scf.yield %zero : f32
        }
        // %at1 = (%at + 1) : index
        %at1.9 = arith.constant 1 : index
        %at1 = arith.addi %at, %at1.9 : index
        // %inside1 = (%at1 < %k) : index
        %inside1 = arith.cmpi ult, %at1, %k : index
        %value1 = scf.if %inside1 -> (f32) {
          %one = memref.load %x[%row, %at1] : !x
          scf.yield %one : f32
        } else {
          scf.yield %zero : f32
        }
        // %at2 = (%at + 2) : index
        %at2.10 = arith.constant 2 : index
        %at2 = arith.addi %at, %at2.10 : index
        // %inside2 = (%at2 < %k) : index
        %inside2 = arith.cmpi ult, %at2, %k : index
        %value2 = scf.if %inside2 -> (f32) {
          %one = memref.load %x[%row, %at2] : !x
          scf.yield %one : f32
        } else {
          scf.yield %zero : f32
        }
        // %at3 = (%at + 3) : index
        %at3.11 = arith.constant 3 : index
        %at3 = arith.addi %at, %at3.11 : index
        // %inside3 = (%at3 < %k) : index
        %inside3 = arith.cmpi ult, %at3, %k : index
        %value3 = scf.if %inside3 -> (f32) {
          %one = memref.load %x[%row, %at3] : !x
          scf.yield %one : f32
        } else {
          scf.yield %zero : f32
        }
        %some = vector.from_elements %value0, %value1, %value2, %value3 : !floats
        scf.yield %some : !floats
      }
      return %loaded : !floats
    }
  }
}
hal.executable.source private @mul_mat_vec_tiles_m1_n4_w4_t64 {
  hal.executable.export public @mul_mat_vec_tiles_m1_n4_w4_t64 ordinal(0) layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers)
      count(%device: !hal.device, %n: index, %m: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 4 : index
    %workgroups_0 = arith.ceildivui %n, %tile_0 : index
    %tile_1 = arith.constant 1 : index
    %workgroups_1 = arith.ceildivui %m, %tile_1 : index
    hal.return %workgroups_0, %workgroups_1, %one : index, index, index
  }
  builtin.module {

    // ---- Target: AMD GPUs. Every target file defines these functions, under these names.

    func.func private @lane() -> index {
      %thread = gpu.thread_id x
      // %lane = (%thread mod 32) : index
      %lane.1 = arith.constant 32 : index
      %lane = arith.remui %thread, %lane.1 : index
      return %lane : index
    }
    // The wave's number in its workgroup. The same for all its lanes, which the compiler cannot know: readfirstlane puts it into a
    // scalar register, and with it all addresses that follow from it.
    func.func private @wave() -> index {
      %thread = gpu.thread_id x
      // %wave = (i32(%thread / 32)) : i32
      %wave.1 = arith.constant 32 : index
      %wave.2 = arith.divui %thread, %wave.1 : index
      %wave = arith.index_castui %wave.2 : index to i32
      %uniform = llvm.call_intrinsic "llvm.amdgcn.readfirstlane"(%wave) : (i32) -> i32
      // %index = (index(%uniform)) : index
      %index = arith.index_castui %uniform : i32 to index
      return %index : index
    }

    func.func private @load16(%from: !bytes, %at: index) -> !i32x4 {
      %loaded = vector.load %from[%at] : !bytes, vector<16xi8>
      %words = vector.bitcast %loaded : vector<16xi8> to !i32x4
      return %words : !i32x4
    }
    // from + a . b over the int8 values of a sub-block: one v_dot4 a word.
    func.func private @dot(%a: !sub_block, %b: !sub_block, %sum0: i32) -> i32 {
      // The first saturates, which it never comes to: with that, LLVM takes the form that adds to another register or a constant, where
      // v_dot4c of gfx9 and gfx10 wants a copy in the register that it adds to.
      %saturates = arith.constant true
      %wraps = arith.constant false
      %a0 = vector.extract %a[0] : i32 from !sub_block
      %b0 = vector.extract %b[0] : i32 from !sub_block
      %sum1 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a0, %b0, %sum0, %saturates) : (i32, i32, i32, i1) -> i32
      %a1 = vector.extract %a[1] : i32 from !sub_block
      %b1 = vector.extract %b[1] : i32 from !sub_block
      %sum2 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a1, %b1, %sum1, %wraps) : (i32, i32, i32, i1) -> i32
      %a2 = vector.extract %a[2] : i32 from !sub_block
      %b2 = vector.extract %b[2] : i32 from !sub_block
      %sum3 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a2, %b2, %sum2, %wraps) : (i32, i32, i32, i1) -> i32
      %a3 = vector.extract %a[3] : i32 from !sub_block
      %b3 = vector.extract %b[3] : i32 from !sub_block
      %sum4 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a3, %b3, %sum3, %wraps) : (i32, i32, i32, i1) -> i32
      %a4 = vector.extract %a[4] : i32 from !sub_block
      %b4 = vector.extract %b[4] : i32 from !sub_block
      %sum5 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a4, %b4, %sum4, %wraps) : (i32, i32, i32, i1) -> i32
      %a5 = vector.extract %a[5] : i32 from !sub_block
      %b5 = vector.extract %b[5] : i32 from !sub_block
      %sum6 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a5, %b5, %sum5, %wraps) : (i32, i32, i32, i1) -> i32
      %a6 = vector.extract %a[6] : i32 from !sub_block
      %b6 = vector.extract %b[6] : i32 from !sub_block
      %sum7 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a6, %b6, %sum6, %wraps) : (i32, i32, i32, i1) -> i32
      %a7 = vector.extract %a[7] : i32 from !sub_block
      %b7 = vector.extract %b[7] : i32 from !sub_block
      %sum8 = llvm.call_intrinsic "llvm.amdgcn.sdot4"(%a7, %b7, %sum7, %wraps) : (i32, i32, i32, i1) -> i32
      return %sum8 : i32
    }
    // Over the wave.
    func.func private @wave_sum(%x: f32) -> f32 {
      %sum = gpu.subgroup_reduce add %x : (f32) -> f32
      return %sum : f32
    }

    // ---- Format q4_K: super-blocks of 256 weights in 144 bytes: f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles.
    // weight = d * scale[s] * nibble - dmin * min[s], s = k / 32. Each 32 bytes of nibbles hold sub-block 2p low, 2p + 1 high.

    func.func private @load_quants_16(%w: !bytes, %block: index, %k: index) -> !i32x4 {
      // @load16(%w, %block + 16 + 32 * (%k / 64) + %k mod 32)
      %packed.2 = arith.constant 16 : index
      %packed.3 = arith.addi %block, %packed.2 : index
      %packed.4 = arith.constant 32 : index
      %packed.5 = arith.constant 64 : index
      %packed.6 = arith.divui %k, %packed.5 : index
      %packed.7 = arith.muli %packed.4, %packed.6 : index
      %packed.8 = arith.addi %packed.3, %packed.7 : index
      %packed.9 = arith.constant 32 : index
      %packed.10 = arith.remui %k, %packed.9 : index
      %packed.1 = arith.addi %packed.8, %packed.10 : index
      %packed = func.call @load16(%w, %packed.1) : (!bytes, index) -> !i32x4
      // @nibbles_16(%packed, %k / 32 mod 2)
      %quants.12 = arith.constant 32 : index
      %quants.13 = arith.divui %k, %quants.12 : index
      %quants.14 = arith.constant 2 : index
      %quants.11 = arith.remui %quants.13, %quants.14 : index
      %quants = func.call @nibbles_16(%packed, %quants.11) : (!i32x4, index) -> !i32x4
      return %quants : !i32x4
    }

    // Scale and min of q4_K and q5_K, 6 bits each, after f16 d and f16 dmin:
    //
    //     bytes 4..7     DDAAAAAA   A: scale of sub-blocks 0..3; D: top bits of the scales of 4..7
    //     bytes 8..11    EEBBBBBB   B: min of sub-blocks 0..3; E: top bits of the mins of 4..7
    //     bytes 12..15   eeeedddd   d: low bits of the scales of sub-blocks 4..7; e: of their mins
    //
    // Two sub-blocks at a time, in the low bytes of a word: those that share the bytes of their nibbles share this too.
    func.func private @load_scale(%w: !bytes, %block: index, %k: index) -> (f32, f32) {
      %header = func.call @load16(%w, %block) : (!bytes, index) -> !i32x4
      %h:4 = vector.to_elements %header : !i32x4
      // %pair = (i32(%k / 64)) : i32
      %pair.1 = arith.constant 64 : index
      %pair.2 = arith.divui %k, %pair.1 : index
      %pair = arith.index_castui %pair.2 : index to i32
      // %scales = (%h#1 >> 16 * (%pair & 1)) : i32
      %scales.3 = arith.constant 16 : i32
      %scales.4 = arith.constant 1 : i32
      %scales.5 = arith.andi %pair, %scales.4 : i32
      %scales.6 = arith.muli %scales.3, %scales.5 : i32
      %scales = arith.shrui %h#1, %scales.6 : i32
      // %mins = (%h#2 >> 16 * (%pair & 1)) : i32
      %mins.7 = arith.constant 16 : i32
      %mins.8 = arith.constant 1 : i32
      %mins.9 = arith.andi %pair, %mins.8 : i32
      %mins.10 = arith.muli %mins.7, %mins.9 : i32
      %mins = arith.shrui %h#2, %mins.10 : i32
      // %low = (%h#3 >> 16 * (%pair & 1)) : i32
      %low.11 = arith.constant 16 : i32
      %low.12 = arith.constant 1 : i32
      %low.13 = arith.andi %pair, %low.12 : i32
      %low.14 = arith.muli %low.11, %low.13 : i32
      %low = arith.shrui %h#3, %low.14 : i32
      // %scale_pair = (select(%pair < 2, %scales & 0x3F3F, %low & 0x0F0F | %scales >> 2 & 0x3030)) : i32
      %scale_pair.15 = arith.constant 2 : i32
      %scale_pair.16 = arith.cmpi ult, %pair, %scale_pair.15 : i32
      %scale_pair.17 = arith.constant 0x3f3f : i32
      %scale_pair.18 = arith.andi %scales, %scale_pair.17 : i32
      %scale_pair.19 = arith.constant 0xf0f : i32
      %scale_pair.20 = arith.andi %low, %scale_pair.19 : i32
      %scale_pair.21 = arith.constant 2 : i32
      %scale_pair.22 = arith.shrui %scales, %scale_pair.21 : i32
      %scale_pair.23 = arith.constant 0x3030 : i32
      %scale_pair.24 = arith.andi %scale_pair.22, %scale_pair.23 : i32
      %scale_pair.25 = arith.ori %scale_pair.20, %scale_pair.24 : i32
      %scale_pair = arith.select %scale_pair.16, %scale_pair.18, %scale_pair.25 : i32
      // %min_pair = (select(%pair < 2, %mins & 0x3F3F, %low >> 4 & 0x0F0F | %mins >> 2 & 0x3030)) : i32
      %min_pair.26 = arith.constant 2 : i32
      %min_pair.27 = arith.cmpi ult, %pair, %min_pair.26 : i32
      %min_pair.28 = arith.constant 0x3f3f : i32
      %min_pair.29 = arith.andi %mins, %min_pair.28 : i32
      %min_pair.30 = arith.constant 4 : i32
      %min_pair.31 = arith.shrui %low, %min_pair.30 : i32
      %min_pair.32 = arith.constant 0xf0f : i32
      %min_pair.33 = arith.andi %min_pair.31, %min_pair.32 : i32
      %min_pair.34 = arith.constant 2 : i32
      %min_pair.35 = arith.shrui %mins, %min_pair.34 : i32
      %min_pair.36 = arith.constant 0x3030 : i32
      %min_pair.37 = arith.andi %min_pair.35, %min_pair.36 : i32
      %min_pair.38 = arith.ori %min_pair.33, %min_pair.37 : i32
      %min_pair = arith.select %min_pair.27, %min_pair.29, %min_pair.38 : i32
      %d_dmin = vector.from_elements %h#0 : vector<1xi32>
      %halves = vector.bitcast %d_dmin : vector<1xi32> to vector<2xf16>
      %floats = arith.extf %halves : vector<2xf16> to vector<2xf32>
      %d = vector.extract %floats[0] : f32 from vector<2xf32>
      %dmin = vector.extract %floats[1] : f32 from vector<2xf32>
      // %byte = (8 * i32(%k / 32 mod 2)) : i32
      %byte.39 = arith.constant 8 : i32
      %byte.40 = arith.constant 32 : index
      %byte.41 = arith.divui %k, %byte.40 : index
      %byte.42 = arith.constant 2 : index
      %byte.43 = arith.remui %byte.41, %byte.42 : index
      %byte.44 = arith.index_castui %byte.43 : index to i32
      %byte = arith.muli %byte.39, %byte.44 : i32
      // %scale = (%d * uitofp(%scale_pair >> %byte & 0xFF)) : f32
      %scale.45 = arith.shrui %scale_pair, %byte : i32
      %scale.46 = arith.constant 255 : i32
      %scale.47 = arith.andi %scale.45, %scale.46 : i32
      %scale.48 = arith.uitofp %scale.47 : i32 to f32
      %scale = arith.mulf %d, %scale.48 : f32
      // %min = (%dmin * uitofp(%min_pair >> %byte & 0xFF)) : f32
      %min.49 = arith.shrui %min_pair, %byte : i32
      %min.50 = arith.constant 255 : i32
      %min.51 = arith.andi %min.49, %min.50 : i32
      %min.52 = arith.uitofp %min.51 : i32 to f32
      %min = arith.mulf %dmin, %min.52 : f32
      return %scale, %min : f32, f32
    }

    // ---- Fields of a block: integers from any byte, and what formats make of bits.

    func.func private @nibbles_16(%packed: !i32x4, %number: index) -> !i32x4 {
      // %field = (%packed >> splat(4 * i32(%number)) & 0x0F0F0F0F) : !i32x4
      %field.1 = arith.constant 4 : i32
      %field.2 = arith.index_castui %number : index to i32
      %field.3 = arith.muli %field.1, %field.2 : i32
      %field.4 = vector.broadcast %field.3 : i32 to !i32x4
      %field.5 = arith.shrui %packed, %field.4 : !i32x4
      %field.6 = arith.constant dense<0xf0f0f0f> : !i32x4
      %field = arith.andi %field.5, %field.6 : !i32x4
      return %field : !i32x4
    }

    // ---- Derived for every format of quantized weights from its @load_quants_8, @load_quants_16 and @load_scale.



    // ---- mul_mat_vec_tiles: y[m, n] = sum over k of w[n, k] * x[m, k], the activations as q8, in tiles. The lanes of a wave take tiles of
    // 64 weights in turn, of 1 row of the weight at a time: 4 runs of 16, spread over the weights that lie in the same bytes.
    // A tile of activations is what the lanes of a wave need for that, column by column: the first 16 of each lane, lane after lane, then the
    // next 16; their scales and sums likewise. So each load of a wave is contiguous, and all of a tile lie at constant distances.


    func.func @mul_mat_vec_tiles_m1_n4_w4_t64() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [128, 1, 1] subgroup_size = 32>} {
      %m_i32 = hal.interface.constant.load layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) ordinal(0) : i32
      %m = arith.index_castui %m_i32 : i32 to index
      %n_i32 = hal.interface.constant.load layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) ordinal(1) : i32
      %n = arith.index_castui %n_i32 : i32 to index
      %blocks_i32 = hal.interface.constant.load layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) ordinal(2) : i32
      %blocks = arith.index_castui %blocks_i32 : i32 to index
      %workgroup_n = hal.interface.workgroup.id[0] : index
      %workgroup_m = hal.interface.workgroup.id[1] : index
      // %row_bytes = (144 * %blocks) : index
      %row_bytes.1 = arith.constant 144 : index
      %row_bytes = arith.muli %row_bytes.1, %blocks : index
      // %bytes = (%n * %row_bytes) : index
      %bytes = arith.muli %n, %row_bytes : index
      // %k = (256 * %blocks) : index
      %k.2 = arith.constant 0x100 : index
      %k = arith.muli %k.2, %blocks : index
      // %all_tiles = ((%m + 0) / 1 * ((%k + 2047) / 2048)) : index
      %all_tiles.3 = arith.constant 0 : index
      %all_tiles.4 = arith.addi %m, %all_tiles.3 : index
      %all_tiles.5 = arith.constant 1 : index
      %all_tiles.6 = arith.divui %all_tiles.4, %all_tiles.5 : index
      %all_tiles.7 = arith.constant 0x7ff : index
      %all_tiles.8 = arith.addi %k, %all_tiles.7 : index
      %all_tiles.9 = arith.constant 0x800 : index
      %all_tiles.10 = arith.divui %all_tiles.8, %all_tiles.9 : index
      %all_tiles = arith.muli %all_tiles.6, %all_tiles.10 : index
      %w = hal.interface.binding.subspan layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) binding(0) alignment(64) : !bytes{%bytes}
      %xq = hal.interface.binding.subspan layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) binding(1) alignment(64) : !xq_tiles_2{%all_tiles}
      %xd = hal.interface.binding.subspan layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) binding(2) alignment(64) : !xd_tiles{%all_tiles}
      %y = hal.interface.binding.subspan layout(#mul_mat_vec_tiles_m1_n4_w4_t64_buffers) binding(3) alignment(64) : !y{%m, %n}
      %lane = func.call @lane() : () -> index
      %wave = func.call @wave() : () -> index
      // %first_lane = (%lane == 0) : index
      %first_lane.11 = arith.constant 0 : index
      %first_lane = arith.cmpi eq, %lane, %first_lane.11 : index
      // %row = (4 * %workgroup_n + 1 * %wave) : index
      %row.12 = arith.constant 4 : index
      %row.13 = arith.muli %row.12, %workgroup_n : index
      %row.14 = arith.constant 1 : index
      %row.15 = arith.muli %row.14, %wave : index
      %row = arith.addi %row.13, %row.15 : index
      // %has_rows = (%row < %n) : index
      %has_rows = arith.cmpi ult, %row, %n : index
      scf.if %has_rows {
        // Rows of the weight beyond the last repeat it.
        // %row0 = (%row + 0) : index
        %row0.16 = arith.constant 0 : index
        %row0 = arith.addi %row, %row0.16 : index
        // %row_at0 = (%row0 * %row_bytes) : index
        %row_at0 = arith.muli %row0, %row_bytes : index
        // @lane_sums(%w, %xq, %xd, %row_at0, %workgroup_m, %blocks, %lane, 32)
        %lane_sums.17 = arith.constant 32 : index
        %lane_sums = func.call @lane_sums(%w, %xq, %xd, %row_at0, %workgroup_m, %blocks, %lane, %lane_sums.17) : (!bytes, !xq_tiles_2, !xd_tiles, index, index, index, index, index) -> !sums
        %sums = func.call @over_wave(%lane_sums) : (!sums) -> !sums
        scf.if %first_lane {
          func.call @store_sums(%sums, %y, %m, %workgroup_m, %row0) : (!sums, !y, index, index, index) -> ()
        }
      }
      return
    }
    func.func private @over_wave(%lane_sums: !sums) -> !sums {
      %lane_sum0 = vector.extract %lane_sums[0] : f32 from !sums
      %sum0 = func.call @wave_sum(%lane_sum0) : (f32) -> f32
      %sums = vector.from_elements %sum0 : !sums
      return %sums : !sums
    }
    func.func private @store_sums(%sums: !sums, %y: !y, %m: index, %workgroup_m: index, %row0: index) {
      // %m0 = (1 * %workgroup_m + 0) : index
      %m0.1 = arith.constant 1 : index
      %m0.2 = arith.muli %m0.1, %workgroup_m : index
      %m0.3 = arith.constant 0 : index
      %m0 = arith.addi %m0.2, %m0.3 : index
      // %inside0 = (%m0 < %m) : index
      %inside0 = arith.cmpi ult, %m0, %m : index
      scf.if %inside0 {
        %sum0_0 = vector.extract %sums[0] : f32 from !sums
        memref.store %sum0_0, %y[%m0, %row0] : !y
      }
      return
    }
    func.func private @lane_sums(%w: !bytes, %xq: !xq_tiles_2, %xd: !xd_tiles, %row_at0: index, %m_tile: index, %blocks: index, %first: index, %step: index) -> !sums {
      // %lane_tiles = (4 * %blocks) : index
      %lane_tiles.1 = arith.constant 4 : index
      %lane_tiles = arith.muli %lane_tiles.1, %blocks : index
      // %first_tile = (%m_tile * ((%lane_tiles + 31) / 32)) : index
      %first_tile.2 = arith.constant 31 : index
      %first_tile.3 = arith.addi %lane_tiles, %first_tile.2 : index
      %first_tile.4 = arith.constant 32 : index
      %first_tile.5 = arith.divui %first_tile.3, %first_tile.4 : index
      %first_tile = arith.muli %m_tile, %first_tile.5 : index
      %zeros = arith.constant dense<0.0> : !rows
      %done:1 = scf.for %i = %first to %lane_tiles step %step iter_args(
          %sum0_0 = %zeros) -> (!rows) {
        // %tile = (%first_tile + %i / 32) : index
        %tile.6 = arith.constant 32 : index
        %tile.7 = arith.divui %i, %tile.6 : index
        %tile = arith.addi %first_tile, %tile.7 : index
        // %lane = (%i mod 32) : index
        %lane.8 = arith.constant 32 : index
        %lane = arith.remui %i, %lane.8 : index
        // %k = (64 * (%i mod 4 / 1) + 16 * (%i mod 1)) : index
        %k.9 = arith.constant 64 : index
        %k.10 = arith.constant 4 : index
        %k.11 = arith.remui %i, %k.10 : index
        %k.12 = arith.constant 1 : index
        %k.13 = arith.divui %k.11, %k.12 : index
        %k.14 = arith.muli %k.9, %k.13 : index
        %k.15 = arith.constant 16 : index
        %k.16 = arith.constant 1 : index
        %k.17 = arith.remui %i, %k.16 : index
        %k.18 = arith.muli %k.15, %k.17 : index
        %k = arith.addi %k.14, %k.18 : index
        // @load_tile(%w, %row_at0 + 144 * (%i / 4), %k)
        %quants0.20 = arith.constant 144 : index
        %quants0.21 = arith.constant 4 : index
        %quants0.22 = arith.divui %i, %quants0.21 : index
        %quants0.23 = arith.muli %quants0.20, %quants0.22 : index
        %quants0.19 = arith.addi %row_at0, %quants0.23 : index
        %quants0, %scales0, %mins0 = func.call @load_tile(%w, %quants0.19, %k) : (!bytes, index, index) -> (!quants, !scales, !scales)
        // %xd[%tile, 0, 0, %lane, 0]
        %xd0_0.24 = arith.constant 0 : index
        %xd0_0.25 = arith.constant 0 : index
        %xd0_0.26 = arith.constant 0 : index
        %xd0_0 = "vector.load"(%xd, %tile, %xd0_0.24, %xd0_0.25, %lane, %xd0_0.26) <{alignment = 16 : i64}> : (!xd_tiles, index, index, index, index, index) -> !words
        %q0_0 = vector.extract %quants0[0] : !sub_block from !quants
        %scale0_0 = vector.extract %scales0[0] : f32 from !scales
        %min0_0 = vector.extract %mins0[0] : f32 from !scales
        %scales_0 = vector.from_elements %scale0_0 : !rows
        %mins_0 = vector.from_elements %min0_0 : !rows
        // %xq[%tile, 0, 0, %lane, 0]
        %x0_0_0.27 = arith.constant 0 : index
        %x0_0_0.28 = arith.constant 0 : index
        %x0_0_0.29 = arith.constant 0 : index
        %x0_0_0 = "vector.load"(%xq, %tile, %x0_0_0.27, %x0_0_0.28, %lane, %x0_0_0.29) <{alignment = 16 : i64}> : (!xq_tiles_2, index, index, index, index, index) -> !i32x4
        // %xq[%tile, 0, 1, %lane, 0]
        %x0_0_1.30 = arith.constant 0 : index
        %x0_0_1.31 = arith.constant 1 : index
        %x0_0_1.32 = arith.constant 0 : index
        %x0_0_1 = "vector.load"(%xq, %tile, %x0_0_1.30, %x0_0_1.31, %lane, %x0_0_1.32) <{alignment = 16 : i64}> : (!xq_tiles_2, index, index, index, index, index) -> !i32x4
        %x0_0 = vector.shuffle %x0_0_0, %x0_0_1 [0, 1, 2, 3, 4, 5, 6, 7] : !i32x4, !i32x4
        %bits0_0 = vector.extract %xd0_0[0] : i32 from !words
        %d0_0 = arith.bitcast %bits0_0 : i32 to f32
        %second0_0 = vector.extract %xd0_0[1] : i32 from !words
        // @dot(%q0_0, %x0_0, 0)
        %dot0_0_0.33 = arith.constant 0 : i32
        %dot0_0_0 = func.call @dot(%q0_0, %x0_0, %dot0_0_0.33) : (!sub_block, !sub_block, i32) -> i32
        %dots0_0 = vector.from_elements %dot0_0_0 : !ints_2
        // %scaled0_0 = (sitofp(%dots0_0) * %scales_0) : !rows
        %scaled0_0.34 = arith.sitofp %dots0_0 : vector<1xi32> to !rows
        %scaled0_0 = arith.mulf %scaled0_0.34, %scales_0 : !rows
        %sum_of0_0 = arith.bitcast %second0_0 : i32 to f32
        // %product0_0 = (fma(-%mins_0, splat(%sum_of0_0), %scaled0_0)) : !rows
        %product0_0.35 = arith.negf %mins_0 : !rows
        %product0_0.36 = vector.broadcast %sum_of0_0 : f32 to !rows
        %product0_0 = math.fma %product0_0.35, %product0_0.36, %scaled0_0 : !rows
        // %sum0_1 = (fma(%product0_0, splat(%d0_0), %sum0_0)) : !rows
        %sum0_1.37 = vector.broadcast %d0_0 : f32 to !rows
        %sum0_1 = math.fma %product0_0, %sum0_1.37, %sum0_0 : !rows
        %q0_1 = vector.extract %quants0[1] : !sub_block from !quants
        %scale0_1 = vector.extract %scales0[1] : f32 from !scales
        %min0_1 = vector.extract %mins0[1] : f32 from !scales
        %scales_1 = vector.from_elements %scale0_1 : !rows
        %mins_1 = vector.from_elements %min0_1 : !rows
        // %xq[%tile, 0, 2, %lane, 0]
        %x0_1_0.38 = arith.constant 0 : index
        %x0_1_0.39 = arith.constant 2 : index
        %x0_1_0.40 = arith.constant 0 : index
        %x0_1_0 = "vector.load"(%xq, %tile, %x0_1_0.38, %x0_1_0.39, %lane, %x0_1_0.40) <{alignment = 16 : i64}> : (!xq_tiles_2, index, index, index, index, index) -> !i32x4
        // %xq[%tile, 0, 3, %lane, 0]
        %x0_1_1.41 = arith.constant 0 : index
        %x0_1_1.42 = arith.constant 3 : index
        %x0_1_1.43 = arith.constant 0 : index
        %x0_1_1 = "vector.load"(%xq, %tile, %x0_1_1.41, %x0_1_1.42, %lane, %x0_1_1.43) <{alignment = 16 : i64}> : (!xq_tiles_2, index, index, index, index, index) -> !i32x4
        %x0_1 = vector.shuffle %x0_1_0, %x0_1_1 [0, 1, 2, 3, 4, 5, 6, 7] : !i32x4, !i32x4
        %bits0_1 = vector.extract %xd0_0[2] : i32 from !words
        %d0_1 = arith.bitcast %bits0_1 : i32 to f32
        %second0_1 = vector.extract %xd0_0[3] : i32 from !words
        // @dot(%q0_1, %x0_1, 0)
        %dot0_0_1.44 = arith.constant 0 : i32
        %dot0_0_1 = func.call @dot(%q0_1, %x0_1, %dot0_0_1.44) : (!sub_block, !sub_block, i32) -> i32
        %dots0_1 = vector.from_elements %dot0_0_1 : !ints_2
        // %scaled0_1 = (sitofp(%dots0_1) * %scales_1) : !rows
        %scaled0_1.45 = arith.sitofp %dots0_1 : vector<1xi32> to !rows
        %scaled0_1 = arith.mulf %scaled0_1.45, %scales_1 : !rows
        %sum_of0_1 = arith.bitcast %second0_1 : i32 to f32
        // %product0_1 = (fma(-%mins_1, splat(%sum_of0_1), %scaled0_1)) : !rows
        %product0_1.46 = arith.negf %mins_1 : !rows
        %product0_1.47 = vector.broadcast %sum_of0_1 : f32 to !rows
        %product0_1 = math.fma %product0_1.46, %product0_1.47, %scaled0_1 : !rows
        // %sum0_2 = (fma(%product0_1, splat(%d0_1), %sum0_1)) : !rows
        %sum0_2.48 = vector.broadcast %d0_1 : f32 to !rows
        %sum0_2 = math.fma %product0_1, %sum0_2.48, %sum0_1 : !rows
        scf.yield %sum0_2 : !rows
      }
      %sum0 = vector.extract %done#0[0] : f32 from !rows
      %sums = vector.from_elements %sum0 : !sums
      return %sums : !sums
    }
    // The tile whose first weight is k of a block.
    func.func private @load_tile(%w: !bytes, %block: index, %k: index) -> (!quants, !scales, !scales) {
      // @load_quants_16(%w, %block, %k + 0)
      %run0_0.2 = arith.constant 0 : index
      %run0_0.1 = arith.addi %k, %run0_0.2 : index
      %run0_0 = func.call @load_quants_16(%w, %block, %run0_0.1) : (!bytes, index, index) -> !i32x4
      // @load_quants_16(%w, %block, %k + 16)
      %run0_1.4 = arith.constant 16 : index
      %run0_1.3 = arith.addi %k, %run0_1.4 : index
      %run0_1 = func.call @load_quants_16(%w, %block, %run0_1.3) : (!bytes, index, index) -> !i32x4
      %quants0 = vector.shuffle %run0_0, %run0_1 [0, 1, 2, 3, 4, 5, 6, 7] : !i32x4, !i32x4
      // @load_scale(%w, %block, %k + 0)
      %scale0.6 = arith.constant 0 : index
      %scale0.5 = arith.addi %k, %scale0.6 : index
      %scale0, %min0 = func.call @load_scale(%w, %block, %scale0.5) : (!bytes, index, index) -> (f32, f32)
      // @load_quants_16(%w, %block, %k + 32)
      %run1_0.8 = arith.constant 32 : index
      %run1_0.7 = arith.addi %k, %run1_0.8 : index
      %run1_0 = func.call @load_quants_16(%w, %block, %run1_0.7) : (!bytes, index, index) -> !i32x4
      // @load_quants_16(%w, %block, %k + 48)
      %run1_1.10 = arith.constant 48 : index
      %run1_1.9 = arith.addi %k, %run1_1.10 : index
      %run1_1 = func.call @load_quants_16(%w, %block, %run1_1.9) : (!bytes, index, index) -> !i32x4
      %quants1 = vector.shuffle %run1_0, %run1_1 [0, 1, 2, 3, 4, 5, 6, 7] : !i32x4, !i32x4
      // @load_scale(%w, %block, %k + 32)
      %scale1.12 = arith.constant 32 : index
      %scale1.11 = arith.addi %k, %scale1.12 : index
      %scale1, %min1 = func.call @load_scale(%w, %block, %scale1.11) : (!bytes, index, index) -> (f32, f32)
      %quants.13 = ub.poison : !quants
      %quants.14 = vector.insert %quants0, %quants.13[0] : vector<8xi32> into !quants
      %quants = vector.insert %quants1, %quants.14[1] : vector<8xi32> into !quants
      %scales = vector.from_elements %scale0, %scale1 : !scales
      %mins = vector.from_elements %min0, %min1 : !scales
      return %quants, %scales, %mins : !quants, !scales, !scales
    }
  }
}

// mul_mat_vec.q4_k.1: flat tensors in, sizes, results into the caller's buffers.
func.func @"mul_mat_vec.q4_k.1"(%w: tensor<?xi8>, %x: tensor<?xf32>, %m_i32: i32, %n_i32: i32, %blocks_i32: i32, %y: tensor<?xf32> {iree.abi.output = 0 : index}) -> (tensor<?xf32>) {
  %c0 = arith.constant 0 : index
  %w_length = tensor.dim %w, %c0 : tensor<?xi8>
  %x_length = tensor.dim %x, %c0 : tensor<?xf32>
  %y_length = tensor.dim %y, %c0 : tensor<?xf32>
  // %m = (index(%m_i32)) : index
  %m = arith.index_castui %m_i32 : i32 to index
  // %n = (index(%n_i32)) : index
  %n = arith.index_castui %n_i32 : i32 to index
  // %blocks = (index(%blocks_i32)) : index
  %blocks = arith.index_castui %blocks_i32 : i32 to index
  // %k = (256 * %blocks) : index
  %k.1 = arith.constant 0x100 : index
  %k = arith.muli %k.1, %blocks : index
  // %k_i32 = (i32(%k)) : i32
  %k_i32 = arith.index_castui %k : index to i32
  // %q8_blocks = (8 * %blocks) : index
  %q8_blocks.2 = arith.constant 8 : index
  %q8_blocks = arith.muli %q8_blocks.2, %blocks : index
  // %q8_blocks_i32 = (i32(%q8_blocks)) : i32
  %q8_blocks_i32 = arith.index_castui %q8_blocks : index to i32
  // %k_tiles = ((1 * %blocks + 7) / 8) : index
  %k_tiles.3 = arith.constant 1 : index
  %k_tiles.4 = arith.muli %k_tiles.3, %blocks : index
  %k_tiles.5 = arith.constant 7 : index
  %k_tiles.6 = arith.addi %k_tiles.4, %k_tiles.5 : index
  %k_tiles.7 = arith.constant 8 : index
  %k_tiles = arith.divui %k_tiles.6, %k_tiles.7 : index
  // %k_tiles_i32 = (i32(%k_tiles)) : i32
  %k_tiles_i32 = arith.index_castui %k_tiles : index to i32
  // %m_tiles = (1 * %m) : index
  %m_tiles.8 = arith.constant 1 : index
  %m_tiles = arith.muli %m_tiles.8, %m : index
  // %m_tiles_i32 = (i32(%m_tiles)) : i32
  %m_tiles_i32 = arith.index_castui %m_tiles : index to i32
  // %xq_length = (%m_tiles * %k_tiles * 1 * 2048) : index
  %xq_length.9 = arith.muli %m_tiles, %k_tiles : index
  %xq_length.10 = arith.constant 1 : index
  %xq_length.11 = arith.muli %xq_length.9, %xq_length.10 : index
  %xq_length.12 = arith.constant 0x800 : index
  %xq_length = arith.muli %xq_length.11, %xq_length.12 : index
  // %xd_length = (%m_tiles * %k_tiles * 1 * 64 * 8) : index
  %xd_length.13 = arith.muli %m_tiles, %k_tiles : index
  %xd_length.14 = arith.constant 1 : index
  %xd_length.15 = arith.muli %xd_length.13, %xd_length.14 : index
  %xd_length.16 = arith.constant 64 : index
  %xd_length.17 = arith.muli %xd_length.15, %xd_length.16 : index
  %xd_length.18 = arith.constant 8 : index
  %xd_length = arith.muli %xd_length.17, %xd_length.18 : index
  %xq, %xd = flow.dispatch @quantize_q8_1_tiles_m1_t64_b32_l8::@quantize_q8_1_tiles_m1_t64_b32_l8[%q8_blocks, %m](
      %m_i32, %k_i32, %q8_blocks_i32, %x)
      : (i32, i32, i32, tensor<?xf32>{%x_length})
      -> (tensor<?xi8>{%xq_length}, tensor<?xi8>{%xd_length})
  %y_result = flow.dispatch @mul_mat_vec_tiles_m1_n4_w4_t64::@mul_mat_vec_tiles_m1_n4_w4_t64[%n, %m](
      %m_i32, %n_i32, %blocks_i32, %w, %xq, %xd)
      : (i32, i32, i32, tensor<?xi8>{%w_length}, tensor<?xi8>{%xq_length}, tensor<?xi8>{%xd_length})
      -> (tensor<?xf32>{%y_length})
  return %y_result : tensor<?xf32>
}
}
