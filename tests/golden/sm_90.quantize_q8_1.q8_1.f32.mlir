// quantize_q8_1.q8_1.f32 for sm_90

!bytes = memref<?xi8>
!i32x2 = vector<2xi32>
!i32x4 = vector<4xi32>
!f32x8 = vector<8xf32>
!x = memref<?x?xf32>
!xq = memref<?x?x8xi32>
!xd = memref<?x?x2xi32>
!y = memref<?x?xf32>
!floats = vector<4xf32>
!ints = vector<4xi32>
!int8s = vector<4xi8>
!xbytes = memref<?x?x32xi8>

#quantize_q8_1_b32_l8_buffers = #hal.pipeline.layout<constants = 3, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>]>
// Each dispatch is an executable: its helpers and types are its own, and on CUDA its amount of shared memory, where the kernels of one
// executable all get the sum of what they use.
module attributes {hal.device.targets = [#hal.device.target<"cuda", [#hal.executable.target<"cuda", "cuda-nvptx-fb", {iree_codegen.target_info = #iree_gpu.target<arch = "sm_90", features = "+ptx80", wgp = <compute = fp64|fp32|fp16|int64|int32|int16|int8, storage = b64|b32|b16|b8, subgroup = shuffle|arithmetic, dot = dp4xi8toi32, mma = [], subgroup_size_choices = [32], max_workgroup_sizes = [1024, 1024, 1024], max_thread_count_per_workgroup = 1024, max_workgroup_memory_bytes = 232448, max_workgroup_counts = [2147483647, 65535, 65535]>>}>]> : !hal.device]} {
hal.executable.source private @quantize_q8_1_b32_l8 {
  hal.executable.export public @quantize_q8_1_b32_l8 ordinal(0) layout(#quantize_q8_1_b32_l8_buffers)
      count(%device: !hal.device, %q8_blocks: index, %m: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 32 : index
    %workgroups_0 = arith.ceildivui %q8_blocks, %tile_0 : index
    %tile_1 = arith.constant 1 : index
    %workgroups_1 = arith.ceildivui %m, %tile_1 : index
    hal.return %workgroups_0, %workgroups_1, %one : index, index, index
  }
  builtin.module {

    // ---- Target: NVIDIA GPUs. Every target file defines these functions, under these names.

    func.func private @thread() -> index {
      %thread = gpu.thread_id x
      return %thread : index
    }

    func.func private @block_max(%x8: i32) -> i32 {
      %width = arith.constant 32 : i32
      %step4 = arith.constant 4 : i32
      %other4, %valid4 = gpu.shuffle xor %x8, %step4, %width : i32
      %x4 = arith.maxui %x8, %other4 : i32
      %step2 = arith.constant 2 : i32
      %other2, %valid2 = gpu.shuffle xor %x4, %step2, %width : i32
      %x2 = arith.maxui %x4, %other2 : i32
      %step1 = arith.constant 1 : i32
      %other1, %valid1 = gpu.shuffle xor %x2, %step1, %width : i32
      %x1 = arith.maxui %x2, %other1 : i32
      return %x1 : i32
    }
    func.func private @block_sum(%x8: i32) -> i32 {
      %width = arith.constant 32 : i32
      %step4 = arith.constant 4 : i32
      %other4, %valid4 = gpu.shuffle xor %x8, %step4, %width : i32
      %x4 = arith.addi %x8, %other4 : i32
      %step2 = arith.constant 2 : i32
      %other2, %valid2 = gpu.shuffle xor %x4, %step2, %width : i32
      %x2 = arith.addi %x4, %other2 : i32
      %step1 = arith.constant 1 : i32
      %other1, %valid1 = gpu.shuffle xor %x2, %step1, %width : i32
      %x1 = arith.addi %x2, %other1 : i32
      return %x1 : i32
    }

    // ---- Format: q8_1, the activations' own: f16 d, f16 sum, 32 int8. It is written (ops/quantize_q8_1), never read as a weight.
    // ---- quantize_q8_1: activations to q8: d = max|x| / 127 over 32 values, quants = round(x / d). A NaN or an infinity makes its block's d
    // NaN or infinite, and so every result that uses the block. Rows are padded with zeros to whole blocks. 8 lanes a block.


    func.func @quantize_q8_1_b32_l8() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [256, 1, 1] subgroup_size = 32>} {
      %m_i32 = hal.interface.constant.load layout(#quantize_q8_1_b32_l8_buffers) ordinal(0) : i32
      %m = arith.index_castui %m_i32 : i32 to index
      %k_i32 = hal.interface.constant.load layout(#quantize_q8_1_b32_l8_buffers) ordinal(1) : i32
      %k = arith.index_castui %k_i32 : i32 to index
      %q8_blocks_i32 = hal.interface.constant.load layout(#quantize_q8_1_b32_l8_buffers) ordinal(2) : i32
      %q8_blocks = arith.index_castui %q8_blocks_i32 : i32 to index
      %workgroup_q8_blocks = hal.interface.workgroup.id[0] : index
      %workgroup_m = hal.interface.workgroup.id[1] : index
      %x = hal.interface.binding.subspan layout(#quantize_q8_1_b32_l8_buffers) binding(0) alignment(64) : !x{%m, %k}
      // %bytes = (36 * (%m * %q8_blocks)) : index
      %bytes.1 = arith.constant 36 : index
      %bytes.2 = arith.muli %m, %q8_blocks : index
      %bytes = arith.muli %bytes.1, %bytes.2 : index
      %y = hal.interface.binding.subspan layout(#quantize_q8_1_b32_l8_buffers) binding(1) alignment(64) : !bytes{%bytes}
      %thread = func.call @thread() : () -> index
      // %lane = (%thread mod 8) : index
      %lane.3 = arith.constant 8 : index
      %lane = arith.remui %thread, %lane.3 : index
      // %first_lane = (%lane == 0) : index
      %first_lane.4 = arith.constant 0 : index
      %first_lane = arith.cmpi eq, %lane, %first_lane.4 : index
      // %in_block = (4 * %lane) : index
      %in_block.5 = arith.constant 4 : index
      %in_block = arith.muli %in_block.5, %lane : index
      // %first = (32 * %workgroup_q8_blocks + %thread / 8) : index
      %first.6 = arith.constant 32 : index
      %first.7 = arith.muli %first.6, %workgroup_q8_blocks : index
      %first.8 = arith.constant 8 : index
      %first.9 = arith.divui %thread, %first.8 : index
      %first = arith.addi %first.7, %first.9 : index
      // %stop = (min(32 * (%workgroup_q8_blocks + 1), %q8_blocks)) : index
      %stop.10 = arith.constant 32 : index
      %stop.11 = arith.constant 1 : index
      %stop.12 = arith.addi %workgroup_q8_blocks, %stop.11 : index
      %stop.13 = arith.muli %stop.10, %stop.12 : index
      %stop = arith.minui %stop.13, %q8_blocks : index
      %step = arith.constant 32 : index
      scf.for %q8_block = %first to %stop step %step {
        %quants, %scale, %sums = func.call @quantize_block(%x, %workgroup_m, %k, %q8_block, %in_block) : (!x, index, index, index, index) -> (!int8s, f32, i32)
        // %block = (36 * (%workgroup_m * %q8_blocks + %q8_block)) : index
        %block.14 = arith.constant 36 : index
        %block.15 = arith.muli %workgroup_m, %q8_blocks : index
        %block.16 = arith.addi %block.15, %q8_block : index
        %block = arith.muli %block.14, %block.16 : index
        // %y[%block + 4 + %in_block]
        %quants.18 = arith.constant 4 : index
        %quants.19 = arith.addi %block, %quants.18 : index
        %quants.17 = arith.addi %quants.19, %in_block : index
        vector.store %quants, %y[%quants.17] : !bytes, !int8s
        scf.if %first_lane {
          // %first_sum = (asr(%sums << 16, 16)) : i32
          %first_sum.20 = arith.constant 16 : i32
          %first_sum.21 = arith.shli %sums, %first_sum.20 : i32
          %first_sum.22 = arith.constant 16 : i32
          %first_sum = arith.shrsi %first_sum.21, %first_sum.22 : i32
          // %sum = (%first_sum + asr(%sums - %first_sum, 16)) : i32
          %sum.23 = arith.subi %sums, %first_sum : i32
          %sum.24 = arith.constant 16 : i32
          %sum.25 = arith.shrsi %sum.23, %sum.24 : i32
          %sum = arith.addi %first_sum, %sum.25 : i32
          // %weighted = (sitofp(%sum) * %scale) : f32
          %weighted.26 = arith.sitofp %sum : i32 to f32
          %weighted = arith.mulf %weighted.26, %scale : f32
          %pair = vector.from_elements %scale, %weighted : vector<2xf32>
          %halves = arith.truncf %pair : vector<2xf32> to vector<2xf16>
          %header = vector.bitcast %halves : vector<2xf16> to vector<4xi8>
          vector.store %header, %y[%block] : !bytes, vector<4xi8>
        }
      }
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

// quantize_q8_1.q8_1.f32: flat tensors in, sizes, results into the caller's buffers.
func.func @"quantize_q8_1.q8_1.f32"(%x: tensor<?xf32>, %m_i32: i32, %k_i32: i32, %q8_blocks_i32: i32, %y: tensor<?xi8> {iree.abi.output = 0 : index}) -> (tensor<?xi8>) {
  %c0 = arith.constant 0 : index
  %x_length = tensor.dim %x, %c0 : tensor<?xf32>
  %y_length = tensor.dim %y, %c0 : tensor<?xi8>
  // %m = (index(%m_i32)) : index
  %m = arith.index_castui %m_i32 : i32 to index
  // %k = (index(%k_i32)) : index
  %k = arith.index_castui %k_i32 : i32 to index
  // %q8_blocks = (index(%q8_blocks_i32)) : index
  %q8_blocks = arith.index_castui %q8_blocks_i32 : i32 to index
  %y_result = flow.dispatch @quantize_q8_1_b32_l8::@quantize_q8_1_b32_l8[%q8_blocks, %m](
      %m_i32, %k_i32, %q8_blocks_i32, %x)
      : (i32, i32, i32, tensor<?xf32>{%x_length})
      -> (tensor<?xi8>{%y_length})
  return %y_result : tensor<?xi8>
}
}
