// mul_mat.q4_k.float for gfx942

!bytes = memref<?xi8>
!i32x2 = vector<2xi32>
!i32x4 = vector<4xi32>
!f32x8 = vector<8xf32>
!x = memref<?x?xf32>
!xq = memref<?x?x8xi32>
!xd = memref<?x?x2xi32>
!y = memref<?x?xf32>
!sub_block = vector<8xi32>
!xh = memref<?x?xf16>
!xscale = memref<?xf32>
!maxima = memref<4xf32, #gpu.address_space<workgroup>>
!i32x8 = vector<8xi32>
!tile_w = memref<128x40xf16, #gpu.address_space<workgroup>>
!tile_x = memref<128x40xf16, #gpu.address_space<workgroup>>
!sums = vector<16x4xf32>
!quants = vector<2x2xi32>
!scales = vector<2x2xf32>
!values = vector<16xf16>
!fragment_w = vector<8xf16>
!fragment_x = vector<8xf16>
!results = vector<4xf32>

#scale_rows_t256_buffers = #hal.pipeline.layout<constants = 2, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>,
  #hal.pipeline.binding<storage_buffer>]>
#mul_mat_float_n128_m128_k32_w2x2_buffers = #hal.pipeline.layout<constants = 3, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>]>
// Each dispatch is an executable: its helpers and types are its own, and on CUDA its amount of shared memory, where the kernels of one
// executable all get the sum of what they use.
module attributes {hal.device.targets = [#hal.device.target<"hip", [#hal.executable.target<"rocm", "rocm-hsaco-fb", {abi = "hip", iree_codegen.target_info = #iree_gpu.target<arch = "gfx942", features = "", wgp = <compute = fp64|fp32|fp16|int64|int32|int16|int8, storage = b64|b32|b16|b8, subgroup = shuffle|arithmetic, dot = dp4xi8toi32, mma = [], subgroup_size_choices = [64], max_workgroup_sizes = [1024, 1024, 1024], max_thread_count_per_workgroup = 1024, max_workgroup_memory_bytes = 65536, max_workgroup_counts = [2147483647, 65535, 65535], max_load_instruction_bits = 128, simds_per_wgp = 4, vgpr_space_bits = 8192, workgroup_memory_bank_count = 32>>}>]> : !hal.device]} {
hal.executable.source private @scale_rows_t256 {
  hal.executable.export public @scale_rows_t256 ordinal(0) layout(#scale_rows_t256_buffers)
      count(%device: !hal.device, %m: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 1 : index
    %workgroups_0 = arith.ceildivui %m, %tile_0 : index
    hal.return %workgroups_0, %one, %one : index, index, index
  }
  builtin.module {

    // ---- Target: AMD GPUs. Every target file defines these functions, under these names.

    func.func private @thread() -> index {
      %thread = gpu.thread_id x
      return %thread : index
    }
    func.func private @lane() -> index {
      %thread = gpu.thread_id x
      // %lane = (%thread mod 64) : index
      %lane.1 = arith.constant 64 : index
      %lane = arith.remui %thread, %lane.1 : index
      return %lane : index
    }
    // The wave's number in its workgroup. The same for all its lanes, which the compiler cannot know: readfirstlane puts it into a
    // scalar register, and with it all addresses that follow from it.
    func.func private @wave() -> index {
      %thread = gpu.thread_id x
      // %wave = (i32(%thread / 64)) : i32
      %wave.1 = arith.constant 64 : index
      %wave.2 = arith.divui %thread, %wave.1 : index
      %wave = arith.index_castui %wave.2 : index to i32
      %uniform = llvm.call_intrinsic "llvm.amdgcn.readfirstlane"(%wave) : (i32) -> i32
      // %index = (index(%uniform)) : index
      %index = arith.index_castui %uniform : i32 to index
      return %index : index
    }

    func.func private @wave_max(%x: f32) -> f32 {
      %max = gpu.subgroup_reduce maxnumf %x : (f32) -> f32
      return %max : f32
    }

    // ---- Format q4_K: super-blocks of 256 weights in 144 bytes: f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles.
    // weight = d * scale[s] * nibble - dmin * min[s], s = k / 32. Each 32 bytes of nibbles hold sub-block 2p low, 2p + 1 high.



    // ---- Fields of a block: integers from any byte, and what formats make of bits.


    // ---- Derived for every format of quantized weights from its @load_quants_8, @load_quants_16 and @load_scale.


    // ---- scale_rows: activations to f16, each row divided by a power of two that puts its largest value between 2^14 and 2^15: nothing
    // overflows, and what falls below f16's normal range is 2^28 times smaller than the row's largest. One workgroup a row.


    func.func @scale_rows_t256() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [256, 1, 1] subgroup_size = 64>} {
      %m_i32 = hal.interface.constant.load layout(#scale_rows_t256_buffers) ordinal(0) : i32
      %m = arith.index_castui %m_i32 : i32 to index
      %k_i32 = hal.interface.constant.load layout(#scale_rows_t256_buffers) ordinal(1) : i32
      %k = arith.index_castui %k_i32 : i32 to index
      %workgroup_m = hal.interface.workgroup.id[0] : index
      %x = hal.interface.binding.subspan layout(#scale_rows_t256_buffers) binding(0) alignment(64) : !x{%m, %k}
      %xh = hal.interface.binding.subspan layout(#scale_rows_t256_buffers) binding(1) alignment(64) : !xh{%m, %k}
      %xscale = hal.interface.binding.subspan layout(#scale_rows_t256_buffers) binding(2) alignment(64) : !xscale{%m}
      %maxima = memref.alloc() : !maxima
      %thread = func.call @thread() : () -> index
      %lane = func.call @lane() : () -> index
      %wave = func.call @wave() : () -> index
      // %first = (8 * %thread) : index
      %first.1 = arith.constant 8 : index
      %first = arith.muli %first.1, %thread : index
      %step = arith.constant 2048 : index

      %zeros = arith.constant dense<0.0> : !f32x8
      %largest = scf.for %i = %first to %k step %step iter_args(%so_far = %zeros) -> (!f32x8) {
        %values = "vector.load"(%x, %workgroup_m, %i) <{alignment = 16 : i64}> : (!x, index, index) -> !f32x8
        %magnitudes = math.absf %values : !f32x8
        // %next = (max(%so_far, %magnitudes)) : !f32x8
        %next = arith.maxnumf %so_far, %magnitudes : !f32x8
        scf.yield %next : !f32x8
      }
      %lane_max = vector.reduction <maxnumf>, %largest : !f32x8 into f32
      %wave_max = func.call @wave_max(%lane_max) : (f32) -> f32
      // %first_lane = (%lane == 0) : index
      %first_lane.2 = arith.constant 0 : index
      %first_lane = arith.cmpi eq, %lane, %first_lane.2 : index
      scf.if %first_lane {
        memref.store %wave_max, %maxima[%wave] : !maxima
      }
      gpu.barrier
      // %maxima[0]
      %all.3 = arith.constant 0 : index
      %all = vector.load %maxima[%all.3] : !maxima, vector<4xf32>
      %amax = vector.reduction <maxnumf>, %all : vector<4xf32> into f32

      // 2^(e - 14) for amax in [2^e, 2^(e+1)), from the exponent's bits, within what has a normal reciprocal.
      %bits = arith.bitcast %amax : f32 to i32
      // %lowered = ((%bits & 0x7F800000) - 0x07000000) : i32
      %lowered.4 = arith.constant 0x7f800000 : i32
      %lowered.5 = arith.andi %bits, %lowered.4 : i32
      %lowered.6 = arith.constant 0x7000000 : i32
      %lowered = arith.subi %lowered.5, %lowered.6 : i32
      %least = arith.constant 0x00800000 : i32
      %scale_bits = arith.maxsi %lowered, %least : i32
      // %inverse_bits = (0x7F000000 - %scale_bits) : i32
      %inverse_bits.7 = arith.constant 0x7f000000 : i32
      %inverse_bits = arith.subi %inverse_bits.7, %scale_bits : i32
      %scale = arith.bitcast %scale_bits : i32 to f32
      %inverse = arith.bitcast %inverse_bits : i32 to f32
      // %first_thread = (%thread == 0) : index
      %first_thread.8 = arith.constant 0 : index
      %first_thread = arith.cmpi eq, %thread, %first_thread.8 : index
      scf.if %first_thread {
        memref.store %scale, %xscale[%workgroup_m] : !xscale
      }
      scf.for %i = %first to %k step %step {
        %values = "vector.load"(%x, %workgroup_m, %i) <{alignment = 16 : i64}> : (!x, index, index) -> !f32x8
        // %scaled = (%values * splat(%inverse)) : !f32x8
        %scaled.9 = vector.broadcast %inverse : f32 to !f32x8
        %scaled = arith.mulf %values, %scaled.9 : !f32x8
        %halves = arith.truncf %scaled : !f32x8 to vector<8xf16>
        "vector.store"(%halves, %xh, %workgroup_m, %i) <{alignment = 16 : i64}> : (vector<8xf16>, !xh, index, index) -> ()
      }
      return
    }
  }
}
hal.executable.source private @mul_mat_float_n128_m128_k32_w2x2 {
  hal.executable.export public @mul_mat_float_n128_m128_k32_w2x2 ordinal(0) layout(#mul_mat_float_n128_m128_k32_w2x2_buffers)
      count(%device: !hal.device, %n: index, %m: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 128 : index
    %workgroups_0 = arith.ceildivui %n, %tile_0 : index
    %tile_1 = arith.constant 128 : index
    %workgroups_1 = arith.ceildivui %m, %tile_1 : index
    hal.return %workgroups_0, %workgroups_1, %one : index, index, index
  }
  builtin.module {

    // ---- Target: AMD GPUs. Every target file defines these functions, under these names.

    func.func private @thread() -> index {
      %thread = gpu.thread_id x
      return %thread : index
    }
    func.func private @lane() -> index {
      %thread = gpu.thread_id x
      // %lane = (%thread mod 64) : index
      %lane.1 = arith.constant 64 : index
      %lane = arith.remui %thread, %lane.1 : index
      return %lane : index
    }
    // The wave's number in its workgroup. The same for all its lanes, which the compiler cannot know: readfirstlane puts it into a
    // scalar register, and with it all addresses that follow from it.
    func.func private @wave() -> index {
      %thread = gpu.thread_id x
      // %wave = (i32(%thread / 64)) : i32
      %wave.1 = arith.constant 64 : index
      %wave.2 = arith.divui %thread, %wave.1 : index
      %wave = arith.index_castui %wave.2 : index to i32
      %uniform = llvm.call_intrinsic "llvm.amdgcn.readfirstlane"(%wave) : (i32) -> i32
      // %index = (index(%uniform)) : index
      %index = arith.index_castui %uniform : i32 to index
      return %index : index
    }

    // 4, 8 or 16 bytes from any byte address: one load.
    func.func private @load8(%from: !bytes, %at: index) -> !i32x2 {
      %loaded = vector.load %from[%at] : !bytes, vector<8xi8>
      %words = vector.bitcast %loaded : vector<8xi8> to !i32x2
      return %words : !i32x2
    }
    func.func private @load16(%from: !bytes, %at: index) -> !i32x4 {
      %loaded = vector.load %from[%at] : !bytes, vector<16xi8>
      %words = vector.bitcast %loaded : vector<16xi8> to !i32x4
      return %words : !i32x4
    }

    // ---- Format q4_K: super-blocks of 256 weights in 144 bytes: f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles.
    // weight = d * scale[s] * nibble - dmin * min[s], s = k / 32. Each 32 bytes of nibbles hold sub-block 2p low, 2p + 1 high.

    func.func private @load_quants_8(%w: !bytes, %block: index, %k: index) -> !i32x2 {
      // @load8(%w, %block + 16 + 32 * (%k / 64) + %k mod 32)
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
      %packed = func.call @load8(%w, %packed.1) : (!bytes, index) -> !i32x2
      // @nibbles_8(%packed, %k / 32 mod 2)
      %quants.12 = arith.constant 32 : index
      %quants.13 = arith.divui %k, %quants.12 : index
      %quants.14 = arith.constant 2 : index
      %quants.11 = arith.remui %quants.13, %quants.14 : index
      %quants = func.call @nibbles_8(%packed, %quants.11) : (!i32x2, index) -> !i32x2
      return %quants : !i32x2
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

    // Of every byte, its nibble, pair of bits or bit of a number, counted from the lowest.
    func.func private @nibbles_8(%packed: !i32x2, %number: index) -> !i32x2 {
      // %field = (%packed >> splat(4 * i32(%number)) & 0x0F0F0F0F) : !i32x2
      %field.1 = arith.constant 4 : i32
      %field.2 = arith.index_castui %number : index to i32
      %field.3 = arith.muli %field.1, %field.2 : i32
      %field.4 = vector.broadcast %field.3 : i32 to !i32x2
      %field.5 = arith.shrui %packed, %field.4 : !i32x2
      %field.6 = arith.constant dense<0xf0f0f0f> : !i32x2
      %field = arith.andi %field.5, %field.6 : !i32x2
      return %field : !i32x2
    }

    // ---- Derived for every format of quantized weights from its @load_quants_8, @load_quants_16 and @load_scale.


    // 8 weights from weight k of a block on: their quants, scale and min.
    func.func private @load_8(%w: !bytes, %block: index, %k: index) -> (!i32x2, f32, f32) {
      %quants = func.call @load_quants_8(%w, %block, %k) : (!bytes, index, index) -> !i32x2
      %scale, %min = func.call @load_scale(%w, %block, %k) : (!bytes, index, index) -> (f32, f32)
      return %quants, %scale, %min : !i32x2, f32, f32
    }
    // scale * (quant - zero) - min, rounded once, as in ggml.
    func.func private @values_8(%quants: !i32x2, %scale: f32, %min: f32) -> !f32x8 {
      %twice = vector.shuffle %quants, %quants [0, 0, 0, 0, 1, 1, 1, 1] : !i32x2, !i32x2
      %down = arith.constant dense<[0, 8, 16, 24, 0, 8, 16, 24]> : !i32x8
      // %floats = (uitofp(%twice >> %down & 255)) : !f32x8
      %floats.1 = arith.shrui %twice, %down : vector<8xi32>
      %floats.2 = arith.constant dense<255> : vector<8xi32>
      %floats.3 = arith.andi %floats.1, %floats.2 : vector<8xi32>
      %floats = arith.uitofp %floats.3 : vector<8xi32> to !f32x8
      // The product is exact, so that multiply and subtract round once either way.
      // %values = (fma(%floats, splat(%scale), splat(-%min))) : !f32x8
      %values.4 = vector.broadcast %scale : f32 to !f32x8
      %values.5 = arith.negf %min : f32
      %values.6 = vector.broadcast %values.5 : f32 to !f32x8
      %values = math.fma %floats, %values.4, %values.6 : !f32x8
      return %values : !f32x8
    }
    // ---- mul_mat_float: y[m, n] = xscale[m] * sum over k of w[n, k] * xh[m, k], in f16 with f32 sums. A workgroup makes 128 x 128 results,
    // 32 of k a step: weights are decoded to f16 into LDS, activations copied there, and each of the 2 x 2 waves multiplies its
    // 64 x 64. The next step's loads are in flight meanwhile, still packed, in registers.


    // ---- What tiles are multiplied of, whatever the matrix unit: fragments, 16 rows by 32 of k, and 16x16 results.


    // A wave's sums, fragment after fragment: those inside y, scaled.
    func.func private @store_sums(%sums: !sums, %lane: index, %y: !y, %xscale: !xscale, %first_n: index, %first_m: index, %n: index, %m: index) {
      %results0_0 = vector.extract %sums[0] : !results from !sums
      // @store_results(%results0_0, %lane, %y, %xscale, %first_n + 0, %first_m + 0, %n, %m)
      %store_results.3 = arith.constant 0 : index
      %store_results.1 = arith.addi %first_n, %store_results.3 : index
      %store_results.4 = arith.constant 0 : index
      %store_results.2 = arith.addi %first_m, %store_results.4 : index
      func.call @store_results(%results0_0, %lane, %y, %xscale, %store_results.1, %store_results.2, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results0_1 = vector.extract %sums[1] : !results from !sums
      // @store_results(%results0_1, %lane, %y, %xscale, %first_n + 0, %first_m + 16, %n, %m)
      %store_results.7 = arith.constant 0 : index
      %store_results.5 = arith.addi %first_n, %store_results.7 : index
      %store_results.8 = arith.constant 16 : index
      %store_results.6 = arith.addi %first_m, %store_results.8 : index
      func.call @store_results(%results0_1, %lane, %y, %xscale, %store_results.5, %store_results.6, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results0_2 = vector.extract %sums[2] : !results from !sums
      // @store_results(%results0_2, %lane, %y, %xscale, %first_n + 0, %first_m + 32, %n, %m)
      %store_results.11 = arith.constant 0 : index
      %store_results.9 = arith.addi %first_n, %store_results.11 : index
      %store_results.12 = arith.constant 32 : index
      %store_results.10 = arith.addi %first_m, %store_results.12 : index
      func.call @store_results(%results0_2, %lane, %y, %xscale, %store_results.9, %store_results.10, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results0_3 = vector.extract %sums[3] : !results from !sums
      // @store_results(%results0_3, %lane, %y, %xscale, %first_n + 0, %first_m + 48, %n, %m)
      %store_results.15 = arith.constant 0 : index
      %store_results.13 = arith.addi %first_n, %store_results.15 : index
      %store_results.16 = arith.constant 48 : index
      %store_results.14 = arith.addi %first_m, %store_results.16 : index
      func.call @store_results(%results0_3, %lane, %y, %xscale, %store_results.13, %store_results.14, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results1_0 = vector.extract %sums[4] : !results from !sums
      // @store_results(%results1_0, %lane, %y, %xscale, %first_n + 16, %first_m + 0, %n, %m)
      %store_results.19 = arith.constant 16 : index
      %store_results.17 = arith.addi %first_n, %store_results.19 : index
      %store_results.20 = arith.constant 0 : index
      %store_results.18 = arith.addi %first_m, %store_results.20 : index
      func.call @store_results(%results1_0, %lane, %y, %xscale, %store_results.17, %store_results.18, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results1_1 = vector.extract %sums[5] : !results from !sums
      // @store_results(%results1_1, %lane, %y, %xscale, %first_n + 16, %first_m + 16, %n, %m)
      %store_results.23 = arith.constant 16 : index
      %store_results.21 = arith.addi %first_n, %store_results.23 : index
      %store_results.24 = arith.constant 16 : index
      %store_results.22 = arith.addi %first_m, %store_results.24 : index
      func.call @store_results(%results1_1, %lane, %y, %xscale, %store_results.21, %store_results.22, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results1_2 = vector.extract %sums[6] : !results from !sums
      // @store_results(%results1_2, %lane, %y, %xscale, %first_n + 16, %first_m + 32, %n, %m)
      %store_results.27 = arith.constant 16 : index
      %store_results.25 = arith.addi %first_n, %store_results.27 : index
      %store_results.28 = arith.constant 32 : index
      %store_results.26 = arith.addi %first_m, %store_results.28 : index
      func.call @store_results(%results1_2, %lane, %y, %xscale, %store_results.25, %store_results.26, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results1_3 = vector.extract %sums[7] : !results from !sums
      // @store_results(%results1_3, %lane, %y, %xscale, %first_n + 16, %first_m + 48, %n, %m)
      %store_results.31 = arith.constant 16 : index
      %store_results.29 = arith.addi %first_n, %store_results.31 : index
      %store_results.32 = arith.constant 48 : index
      %store_results.30 = arith.addi %first_m, %store_results.32 : index
      func.call @store_results(%results1_3, %lane, %y, %xscale, %store_results.29, %store_results.30, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results2_0 = vector.extract %sums[8] : !results from !sums
      // @store_results(%results2_0, %lane, %y, %xscale, %first_n + 32, %first_m + 0, %n, %m)
      %store_results.35 = arith.constant 32 : index
      %store_results.33 = arith.addi %first_n, %store_results.35 : index
      %store_results.36 = arith.constant 0 : index
      %store_results.34 = arith.addi %first_m, %store_results.36 : index
      func.call @store_results(%results2_0, %lane, %y, %xscale, %store_results.33, %store_results.34, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results2_1 = vector.extract %sums[9] : !results from !sums
      // @store_results(%results2_1, %lane, %y, %xscale, %first_n + 32, %first_m + 16, %n, %m)
      %store_results.39 = arith.constant 32 : index
      %store_results.37 = arith.addi %first_n, %store_results.39 : index
      %store_results.40 = arith.constant 16 : index
      %store_results.38 = arith.addi %first_m, %store_results.40 : index
      func.call @store_results(%results2_1, %lane, %y, %xscale, %store_results.37, %store_results.38, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results2_2 = vector.extract %sums[10] : !results from !sums
      // @store_results(%results2_2, %lane, %y, %xscale, %first_n + 32, %first_m + 32, %n, %m)
      %store_results.43 = arith.constant 32 : index
      %store_results.41 = arith.addi %first_n, %store_results.43 : index
      %store_results.44 = arith.constant 32 : index
      %store_results.42 = arith.addi %first_m, %store_results.44 : index
      func.call @store_results(%results2_2, %lane, %y, %xscale, %store_results.41, %store_results.42, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results2_3 = vector.extract %sums[11] : !results from !sums
      // @store_results(%results2_3, %lane, %y, %xscale, %first_n + 32, %first_m + 48, %n, %m)
      %store_results.47 = arith.constant 32 : index
      %store_results.45 = arith.addi %first_n, %store_results.47 : index
      %store_results.48 = arith.constant 48 : index
      %store_results.46 = arith.addi %first_m, %store_results.48 : index
      func.call @store_results(%results2_3, %lane, %y, %xscale, %store_results.45, %store_results.46, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results3_0 = vector.extract %sums[12] : !results from !sums
      // @store_results(%results3_0, %lane, %y, %xscale, %first_n + 48, %first_m + 0, %n, %m)
      %store_results.51 = arith.constant 48 : index
      %store_results.49 = arith.addi %first_n, %store_results.51 : index
      %store_results.52 = arith.constant 0 : index
      %store_results.50 = arith.addi %first_m, %store_results.52 : index
      func.call @store_results(%results3_0, %lane, %y, %xscale, %store_results.49, %store_results.50, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results3_1 = vector.extract %sums[13] : !results from !sums
      // @store_results(%results3_1, %lane, %y, %xscale, %first_n + 48, %first_m + 16, %n, %m)
      %store_results.55 = arith.constant 48 : index
      %store_results.53 = arith.addi %first_n, %store_results.55 : index
      %store_results.56 = arith.constant 16 : index
      %store_results.54 = arith.addi %first_m, %store_results.56 : index
      func.call @store_results(%results3_1, %lane, %y, %xscale, %store_results.53, %store_results.54, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results3_2 = vector.extract %sums[14] : !results from !sums
      // @store_results(%results3_2, %lane, %y, %xscale, %first_n + 48, %first_m + 32, %n, %m)
      %store_results.59 = arith.constant 48 : index
      %store_results.57 = arith.addi %first_n, %store_results.59 : index
      %store_results.60 = arith.constant 32 : index
      %store_results.58 = arith.addi %first_m, %store_results.60 : index
      func.call @store_results(%results3_2, %lane, %y, %xscale, %store_results.57, %store_results.58, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      %results3_3 = vector.extract %sums[15] : !results from !sums
      // @store_results(%results3_3, %lane, %y, %xscale, %first_n + 48, %first_m + 48, %n, %m)
      %store_results.63 = arith.constant 48 : index
      %store_results.61 = arith.addi %first_n, %store_results.63 : index
      %store_results.64 = arith.constant 48 : index
      %store_results.62 = arith.addi %first_m, %store_results.64 : index
      func.call @store_results(%results3_3, %lane, %y, %xscale, %store_results.61, %store_results.62, %n, %m) : (!results, index, !y, !xscale, index, index, index, index) -> ()
      return
    }
    func.func private @store_results(%results: !results, %lane: index, %y: !y, %xscale: !xscale, %first_n: index, %first_m: index, %n: index, %m: index) {
      // @result_m(%lane, 0)
      %in_m0.1 = arith.constant 0 : index
      %in_m0 = func.call @result_m(%lane, %in_m0.1) : (index, index) -> index
      // %m0 = (%first_m + %in_m0) : index
      %m0 = arith.addi %first_m, %in_m0 : index
      // %xscale[min(%m0, %m - 1)]
      %scale0.3 = arith.constant 1 : index
      %scale0.4 = arith.subi %m, %scale0.3 : index
      %scale0.2 = arith.minui %m0, %scale0.4 : index
      %scale0 = memref.load %xscale[%scale0.2] : !xscale
      // @result_m(%lane, 1)
      %in_m1.5 = arith.constant 1 : index
      %in_m1 = func.call @result_m(%lane, %in_m1.5) : (index, index) -> index
      // %m1 = (%first_m + %in_m1) : index
      %m1 = arith.addi %first_m, %in_m1 : index
      // %xscale[min(%m1, %m - 1)]
      %scale1.7 = arith.constant 1 : index
      %scale1.8 = arith.subi %m, %scale1.7 : index
      %scale1.6 = arith.minui %m1, %scale1.8 : index
      %scale1 = memref.load %xscale[%scale1.6] : !xscale
      // @result_m(%lane, 2)
      %in_m2.9 = arith.constant 2 : index
      %in_m2 = func.call @result_m(%lane, %in_m2.9) : (index, index) -> index
      // %m2 = (%first_m + %in_m2) : index
      %m2 = arith.addi %first_m, %in_m2 : index
      // %xscale[min(%m2, %m - 1)]
      %scale2.11 = arith.constant 1 : index
      %scale2.12 = arith.subi %m, %scale2.11 : index
      %scale2.10 = arith.minui %m2, %scale2.12 : index
      %scale2 = memref.load %xscale[%scale2.10] : !xscale
      // @result_m(%lane, 3)
      %in_m3.13 = arith.constant 3 : index
      %in_m3 = func.call @result_m(%lane, %in_m3.13) : (index, index) -> index
      // %m3 = (%first_m + %in_m3) : index
      %m3 = arith.addi %first_m, %in_m3 : index
      // %xscale[min(%m3, %m - 1)]
      %scale3.15 = arith.constant 1 : index
      %scale3.16 = arith.subi %m, %scale3.15 : index
      %scale3.14 = arith.minui %m3, %scale3.16 : index
      %scale3 = memref.load %xscale[%scale3.14] : !xscale
      // @result_n(%lane, 0)
      %in_n0.17 = arith.constant 0 : index
      %in_n0 = func.call @result_n(%lane, %in_n0.17) : (index, index) -> index
      // %n0 = (%first_n + %in_n0) : index
      %n0 = arith.addi %first_n, %in_n0 : index
      // %inside0 = (%n0 < %n and %m0 < %m) : index
      %inside0.18 = arith.cmpi ult, %n0, %n : index
      %inside0.19 = arith.cmpi ult, %m0, %m : index
      %inside0 = arith.andi %inside0.18, %inside0.19 : i1
      scf.if %inside0 {
        %result = vector.extract %results[0] : f32 from !results
        // %scaled = (%result * %scale0) : f32
        %scaled = arith.mulf %result, %scale0 : f32
        memref.store %scaled, %y[%m0, %n0] : !y
      }
      // @result_n(%lane, 1)
      %in_n1.20 = arith.constant 1 : index
      %in_n1 = func.call @result_n(%lane, %in_n1.20) : (index, index) -> index
      // %n1 = (%first_n + %in_n1) : index
      %n1 = arith.addi %first_n, %in_n1 : index
      // %inside1 = (%n1 < %n and %m1 < %m) : index
      %inside1.21 = arith.cmpi ult, %n1, %n : index
      %inside1.22 = arith.cmpi ult, %m1, %m : index
      %inside1 = arith.andi %inside1.21, %inside1.22 : i1
      scf.if %inside1 {
        %result = vector.extract %results[1] : f32 from !results
        // %scaled = (%result * %scale1) : f32
        %scaled = arith.mulf %result, %scale1 : f32
        memref.store %scaled, %y[%m1, %n1] : !y
      }
      // @result_n(%lane, 2)
      %in_n2.23 = arith.constant 2 : index
      %in_n2 = func.call @result_n(%lane, %in_n2.23) : (index, index) -> index
      // %n2 = (%first_n + %in_n2) : index
      %n2 = arith.addi %first_n, %in_n2 : index
      // %inside2 = (%n2 < %n and %m2 < %m) : index
      %inside2.24 = arith.cmpi ult, %n2, %n : index
      %inside2.25 = arith.cmpi ult, %m2, %m : index
      %inside2 = arith.andi %inside2.24, %inside2.25 : i1
      scf.if %inside2 {
        %result = vector.extract %results[2] : f32 from !results
        // %scaled = (%result * %scale2) : f32
        %scaled = arith.mulf %result, %scale2 : f32
        memref.store %scaled, %y[%m2, %n2] : !y
      }
      // @result_n(%lane, 3)
      %in_n3.26 = arith.constant 3 : index
      %in_n3 = func.call @result_n(%lane, %in_n3.26) : (index, index) -> index
      // %n3 = (%first_n + %in_n3) : index
      %n3 = arith.addi %first_n, %in_n3 : index
      // %inside3 = (%n3 < %n and %m3 < %m) : index
      %inside3.27 = arith.cmpi ult, %n3, %n : index
      %inside3.28 = arith.cmpi ult, %m3, %m : index
      %inside3 = arith.andi %inside3.27, %inside3.28 : i1
      scf.if %inside3 {
        %result = vector.extract %results[3] : f32 from !results
        // %scaled = (%result * %scale3) : f32
        %scaled = arith.mulf %result, %scale3 : f32
        memref.store %scaled, %y[%m3, %n3] : !y
      }
      return
    }

    // ---- Matrix unit: MFMA 16x16x16 f16 (gfx90a, gfx942), wave64. Every matrix file defines (or includes) these functions, under these names; a
    // fragment is 16 rows of one operand by 32 of k. Both operands take k in the same order, so that any order will do: lane group
    // g = lane / 16 takes 8g..8g+7 in one 16-byte read, its first half for the first instruction, its second for the second.
    func.func private @fragment_w(%tile: !tile_w, %row: index, %k: index, %lane: index) -> !fragment_w {
      // %tile[%row + %lane mod 16, %k + 8 * (%lane / 16)]
      %values.3 = arith.constant 16 : index
      %values.4 = arith.remui %lane, %values.3 : index
      %values.1 = arith.addi %row, %values.4 : index
      %values.5 = arith.constant 8 : index
      %values.6 = arith.constant 16 : index
      %values.7 = arith.divui %lane, %values.6 : index
      %values.8 = arith.muli %values.5, %values.7 : index
      %values.2 = arith.addi %k, %values.8 : index
      %values = vector.load %tile[%values.1, %values.2] : !tile_w, !fragment_w
      return %values : !fragment_w
    }
    func.func private @fragment_x(%tile: !tile_x, %row: index, %k: index, %lane: index) -> !fragment_x {
      // %tile[%row + %lane mod 16, %k + 8 * (%lane / 16)]
      %values.3 = arith.constant 16 : index
      %values.4 = arith.remui %lane, %values.3 : index
      %values.1 = arith.addi %row, %values.4 : index
      %values.5 = arith.constant 8 : index
      %values.6 = arith.constant 16 : index
      %values.7 = arith.divui %lane, %values.6 : index
      %values.8 = arith.muli %values.5, %values.7 : index
      %values.2 = arith.addi %k, %values.8 : index
      %values = vector.load %tile[%values.1, %values.2] : !tile_x, !fragment_x
      return %values : !fragment_x
    }
    // Where in the 16x16 results a lane's element i lies: n along the rows of the weight, m along those of the activations.
    func.func private @result_n(%lane: index, %i: index) -> index {
      // %n = (4 * (%lane / 16) + %i) : index
      %n.1 = arith.constant 4 : index
      %n.2 = arith.constant 16 : index
      %n.3 = arith.divui %lane, %n.2 : index
      %n.4 = arith.muli %n.1, %n.3 : index
      %n = arith.addi %n.4, %i : index
      return %n : index
    }

    // What MFMA and WMMA have in common: two instructions for the 32 k of a fragment, and a lane for each column of the results.
    func.func private @multiply(%w: !fragment_w, %x: !fragment_x, %sums: !results) -> !results {
      %w0 = vector.shuffle %w, %w [0, 1, 2, 3] : !fragment_w, !fragment_w
      %w1 = vector.shuffle %w, %w [4, 5, 6, 7] : !fragment_w, !fragment_w
      %x0 = vector.shuffle %x, %x [0, 1, 2, 3] : !fragment_x, !fragment_x
      %x1 = vector.shuffle %x, %x [4, 5, 6, 7] : !fragment_x, !fragment_x
      %first = amdgpu.mfma 16x16x16 %w0 * %x0 + %sums : vector<4xf16>, vector<4xf16>, !results
      %both = amdgpu.mfma 16x16x16 %w1 * %x1 + %first : vector<4xf16>, vector<4xf16>, !results
      return %both : !results
    }
    func.func private @result_m(%lane: index, %i: index) -> index {
      // %m = (%lane mod 16) : index
      %m.1 = arith.constant 16 : index
      %m = arith.remui %lane, %m.1 : index
      return %m : index
    }

    func.func @mul_mat_float_n128_m128_k32_w2x2() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_gpu.pipeline<BaseLowering> workgroup_size = [256, 1, 1] subgroup_size = 64>} {
      %m_i32 = hal.interface.constant.load layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) ordinal(0) : i32
      %m = arith.index_castui %m_i32 : i32 to index
      %n_i32 = hal.interface.constant.load layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) ordinal(1) : i32
      %n = arith.index_castui %n_i32 : i32 to index
      %blocks_i32 = hal.interface.constant.load layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) ordinal(2) : i32
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
      // %steps = (%k / 32) : index
      %steps.3 = arith.constant 32 : index
      %steps = arith.divui %k, %steps.3 : index
      %w = hal.interface.binding.subspan layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) binding(0) alignment(64) : !bytes{%bytes}
      %xh = hal.interface.binding.subspan layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) binding(1) alignment(64) : !xh{%m, %k}
      %xscale = hal.interface.binding.subspan layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) binding(2) alignment(64) : !xscale{%m}
      %y = hal.interface.binding.subspan layout(#mul_mat_float_n128_m128_k32_w2x2_buffers) binding(3) alignment(64) : !y{%m, %n}
      %tile_w = memref.alloc() : !tile_w
      %tile_x = memref.alloc() : !tile_x
      // %first_n = (128 * %workgroup_n) : index
      %first_n.4 = arith.constant 128 : index
      %first_n = arith.muli %first_n.4, %workgroup_n : index
      // %first_m = (128 * %workgroup_m) : index
      %first_m.5 = arith.constant 128 : index
      %first_m = arith.muli %first_m.5, %workgroup_m : index
      %lane = func.call @lane() : () -> index
      %wave = func.call @wave() : () -> index

      // What this thread stages: 16 consecutive weights of a row and 16 activations of one; rows beyond the last are clamped to it.
      %row_w, %k_w = func.call @staged_w() : () -> (index, index)
      %row_x, %k_x = func.call @staged_x() : () -> (index, index)
      // %row_at = (min(%first_n + %row_w, %n - 1) * %row_bytes) : index
      %row_at.6 = arith.addi %first_n, %row_w : index
      %row_at.7 = arith.constant 1 : index
      %row_at.8 = arith.subi %n, %row_at.7 : index
      %row_at.9 = arith.minui %row_at.6, %row_at.8 : index
      %row_at = arith.muli %row_at.9, %row_bytes : index
      // %source_m = (min(%first_m + %row_x, %m - 1)) : index
      %source_m.10 = arith.addi %first_m, %row_x : index
      %source_m.11 = arith.constant 1 : index
      %source_m.12 = arith.subi %m, %source_m.11 : index
      %source_m = arith.minui %source_m.10, %source_m.12 : index
      // %wave_n = (64 * (%wave mod 2)) : index
      %wave_n.13 = arith.constant 64 : index
      %wave_n.14 = arith.constant 2 : index
      %wave_n.15 = arith.remui %wave, %wave_n.14 : index
      %wave_n = arith.muli %wave_n.13, %wave_n.15 : index
      // %wave_m = (64 * (%wave / 2)) : index
      %wave_m.16 = arith.constant 64 : index
      %wave_m.17 = arith.constant 2 : index
      %wave_m.18 = arith.divui %wave, %wave_m.17 : index
      %wave_m = arith.muli %wave_m.16, %wave_m.18 : index
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %zeros = arith.constant dense<0.0> : !sums
      // @load_step(%w, %row_at, %k_w, %xh, %source_m, %k_x, 0)
      %quants0.19 = arith.constant 0 : index
      %quants0, %scales0, %values0 = func.call @load_step(%w, %row_at, %k_w, %xh, %source_m, %k_x, %quants0.19) : (!bytes, index, index, !xh, index, index, index) -> (!quants, !scales, !values)
      %done:4 = scf.for %step = %c0 to %steps step %c1 iter_args(%quants = %quants0, %scales = %scales0, %values = %values0, %sums = %zeros)
          -> (!quants, !scales, !values, !sums) {
        gpu.barrier
        func.call @stage(%quants, %scales, %values, %tile_w, %tile_x) : (!quants, !scales, !values, !tile_w, !tile_x) -> ()
        gpu.barrier
        // @load_step(%w, %row_at, %k_w, %xh, %source_m, %k_x, min(%step + 1, %steps - 1))
        %next_quants.21 = arith.constant 1 : index
        %next_quants.22 = arith.addi %step, %next_quants.21 : index
        %next_quants.23 = arith.constant 1 : index
        %next_quants.24 = arith.subi %steps, %next_quants.23 : index
        %next_quants.20 = arith.minui %next_quants.22, %next_quants.24 : index
        %next_quants, %next_scales, %next_values = func.call @load_step(%w, %row_at, %k_w, %xh, %source_m, %k_x, %next_quants.20) : (!bytes, index, index, !xh, index, index, index) -> (!quants, !scales, !values)

        %next_sums = func.call @wave_multiply(%tile_w, %tile_x, %wave_n, %wave_m, %lane, %sums) : (!tile_w, !tile_x, index, index, index, !sums) -> !sums
        scf.yield %next_quants, %next_scales, %next_values, %next_sums : !quants, !scales, !values, !sums
      }
      // @store_sums(%done#3, %lane, %y, %xscale, %first_n + %wave_n, %first_m + %wave_m, %n, %m)
      %store_sums.25 = arith.addi %first_n, %wave_n : index
      %store_sums.26 = arith.addi %first_m, %wave_m : index
      func.call @store_sums(%done#3, %lane, %y, %xscale, %store_sums.25, %store_sums.26, %n, %m) : (!sums, index, !y, !xscale, index, index, index, index) -> ()
      return
    }
    // Row and first k, within the tiles, of what a thread stages.
    func.func private @staged_w() -> (index, index) {
      %thread = func.call @thread() : () -> index
      // %row = (%thread / 2) : index
      %row.1 = arith.constant 2 : index
      %row = arith.divui %thread, %row.1 : index
      // %k = (16 * (%thread mod 2)) : index
      %k.2 = arith.constant 16 : index
      %k.3 = arith.constant 2 : index
      %k.4 = arith.remui %thread, %k.3 : index
      %k = arith.muli %k.2, %k.4 : index
      return %row, %k : index, index
    }
    func.func private @staged_x() -> (index, index) {
      %thread = func.call @thread() : () -> index
      // %row = (%thread / 2) : index
      %row.1 = arith.constant 2 : index
      %row = arith.divui %thread, %row.1 : index
      // %k = (16 * (%thread mod 2)) : index
      %k.2 = arith.constant 16 : index
      %k.3 = arith.constant 2 : index
      %k.4 = arith.remui %thread, %k.3 : index
      %k = arith.muli %k.2, %k.4 : index
      return %row, %k : index, index
    }
    // A step's loads of one thread.
    func.func private @load_step(%w: !bytes, %row_at: index, %k_w: index, %xh: !xh, %m: index, %k_x: index, %step: index) -> (!quants, !scales, !values) {
      // %k = (32 * %step + %k_w) : index
      %k.1 = arith.constant 32 : index
      %k.2 = arith.muli %k.1, %step : index
      %k = arith.addi %k.2, %k_w : index
      // %block = (%row_at + 144 * (%k / 256)) : index
      %block.3 = arith.constant 144 : index
      %block.4 = arith.constant 0x100 : index
      %block.5 = arith.divui %k, %block.4 : index
      %block.6 = arith.muli %block.3, %block.5 : index
      %block = arith.addi %row_at, %block.6 : index
      // @load_8(%w, %block, %k mod 256 + 0)
      %quants0.8 = arith.constant 0x100 : index
      %quants0.9 = arith.remui %k, %quants0.8 : index
      %quants0.10 = arith.constant 0 : index
      %quants0.7 = arith.addi %quants0.9, %quants0.10 : index
      %quants0, %scale0, %min0 = func.call @load_8(%w, %block, %quants0.7) : (!bytes, index, index) -> (!i32x2, f32, f32)
      %pair0 = vector.from_elements %scale0, %min0 : vector<2xf32>
      // @load_8(%w, %block, %k mod 256 + 8)
      %quants1.12 = arith.constant 0x100 : index
      %quants1.13 = arith.remui %k, %quants1.12 : index
      %quants1.14 = arith.constant 8 : index
      %quants1.11 = arith.addi %quants1.13, %quants1.14 : index
      %quants1, %scale1, %min1 = func.call @load_8(%w, %block, %quants1.11) : (!bytes, index, index) -> (!i32x2, f32, f32)
      %pair1 = vector.from_elements %scale1, %min1 : vector<2xf32>
      %quants.15 = ub.poison : !quants
      %quants.16 = vector.insert %quants0, %quants.15[0] : vector<2xi32> into !quants
      %quants = vector.insert %quants1, %quants.16[1] : vector<2xi32> into !quants
      %scales.17 = ub.poison : !scales
      %scales.18 = vector.insert %pair0, %scales.17[0] : vector<2xf32> into !scales
      %scales = vector.insert %pair1, %scales.18[1] : vector<2xf32> into !scales
      // %xh[%m, 32 * %step + %k_x]
      %values.20 = arith.constant 32 : index
      %values.21 = arith.muli %values.20, %step : index
      %values.19 = arith.addi %values.21, %k_x : index
      %values = "vector.load"(%xh, %m, %values.19) <{alignment = 16 : i64}> : (!xh, index, index) -> !values
      return %quants, %scales, %values : !quants, !scales, !values
    }
    // Decodes and stores them in LDS.
    func.func private @stage(%quants: !quants, %scales: !scales, %values: !values, %tile_w: !tile_w, %tile_x: !tile_x) {
      %row_w, %k_w = func.call @staged_w() : () -> (index, index)
      %row_x, %k_x = func.call @staged_x() : () -> (index, index)
      %quants0 = vector.extract %quants[0] : !i32x2 from !quants
      %scale0 = vector.extract %scales[0, 0] : f32 from !scales
      %min0 = vector.extract %scales[0, 1] : f32 from !scales
      %weights0 = func.call @values_8(%quants0, %scale0, %min0) : (!i32x2, f32, f32) -> !f32x8
      %halves0 = arith.truncf %weights0 : !f32x8 to vector<8xf16>
      // %tile_w[%row_w, %k_w + 0]
      %halves0.2 = arith.constant 0 : index
      %halves0.1 = arith.addi %k_w, %halves0.2 : index
      "vector.store"(%halves0, %tile_w, %row_w, %halves0.1) <{alignment = 16 : i64}> : (vector<8xf16>, !tile_w, index, index) -> ()
      %quants1 = vector.extract %quants[1] : !i32x2 from !quants
      %scale1 = vector.extract %scales[1, 0] : f32 from !scales
      %min1 = vector.extract %scales[1, 1] : f32 from !scales
      %weights1 = func.call @values_8(%quants1, %scale1, %min1) : (!i32x2, f32, f32) -> !f32x8
      %halves1 = arith.truncf %weights1 : !f32x8 to vector<8xf16>
      // %tile_w[%row_w, %k_w + 8]
      %halves1.4 = arith.constant 8 : index
      %halves1.3 = arith.addi %k_w, %halves1.4 : index
      "vector.store"(%halves1, %tile_w, %row_w, %halves1.3) <{alignment = 16 : i64}> : (vector<8xf16>, !tile_w, index, index) -> ()
      %values0 = vector.shuffle %values, %values [0, 1, 2, 3, 4, 5, 6, 7] : !values, !values
      // %tile_x[%row_x, %k_x + 0]
      %values0.6 = arith.constant 0 : index
      %values0.5 = arith.addi %k_x, %values0.6 : index
      "vector.store"(%values0, %tile_x, %row_x, %values0.5) <{alignment = 16 : i64}> : (vector<8xf16>, !tile_x, index, index) -> ()
      %values1 = vector.shuffle %values, %values [8, 9, 10, 11, 12, 13, 14, 15] : !values, !values
      // %tile_x[%row_x, %k_x + 8]
      %values1.8 = arith.constant 8 : index
      %values1.7 = arith.addi %k_x, %values1.8 : index
      "vector.store"(%values1, %tile_x, %row_x, %values1.7) <{alignment = 16 : i64}> : (vector<8xf16>, !tile_x, index, index) -> ()
      return
    }
    // A wave's part of the tiles' product, added to its sums.
    func.func private @wave_multiply(%tile_w: !tile_w, %tile_x: !tile_x, %wave_n: index, %wave_m: index, %lane: index, %sums: !sums) -> !sums {
      %sum0_0 = vector.extract %sums[0] : !results from !sums
      %sum1_0 = vector.extract %sums[1] : !results from !sums
      %sum2_0 = vector.extract %sums[2] : !results from !sums
      %sum3_0 = vector.extract %sums[3] : !results from !sums
      %sum4_0 = vector.extract %sums[4] : !results from !sums
      %sum5_0 = vector.extract %sums[5] : !results from !sums
      %sum6_0 = vector.extract %sums[6] : !results from !sums
      %sum7_0 = vector.extract %sums[7] : !results from !sums
      %sum8_0 = vector.extract %sums[8] : !results from !sums
      %sum9_0 = vector.extract %sums[9] : !results from !sums
      %sum10_0 = vector.extract %sums[10] : !results from !sums
      %sum11_0 = vector.extract %sums[11] : !results from !sums
      %sum12_0 = vector.extract %sums[12] : !results from !sums
      %sum13_0 = vector.extract %sums[13] : !results from !sums
      %sum14_0 = vector.extract %sums[14] : !results from !sums
      %sum15_0 = vector.extract %sums[15] : !results from !sums
      // @fragment_w(%tile_w, %wave_n + 0, 0, %lane)
      %w0_0.3 = arith.constant 0 : index
      %w0_0.1 = arith.addi %wave_n, %w0_0.3 : index
      %w0_0.2 = arith.constant 0 : index
      %w0_0 = func.call @fragment_w(%tile_w, %w0_0.1, %w0_0.2, %lane) : (!tile_w, index, index, index) -> !fragment_w
      // @fragment_w(%tile_w, %wave_n + 16, 0, %lane)
      %w1_0.6 = arith.constant 16 : index
      %w1_0.4 = arith.addi %wave_n, %w1_0.6 : index
      %w1_0.5 = arith.constant 0 : index
      %w1_0 = func.call @fragment_w(%tile_w, %w1_0.4, %w1_0.5, %lane) : (!tile_w, index, index, index) -> !fragment_w
      // @fragment_w(%tile_w, %wave_n + 32, 0, %lane)
      %w2_0.9 = arith.constant 32 : index
      %w2_0.7 = arith.addi %wave_n, %w2_0.9 : index
      %w2_0.8 = arith.constant 0 : index
      %w2_0 = func.call @fragment_w(%tile_w, %w2_0.7, %w2_0.8, %lane) : (!tile_w, index, index, index) -> !fragment_w
      // @fragment_w(%tile_w, %wave_n + 48, 0, %lane)
      %w3_0.12 = arith.constant 48 : index
      %w3_0.10 = arith.addi %wave_n, %w3_0.12 : index
      %w3_0.11 = arith.constant 0 : index
      %w3_0 = func.call @fragment_w(%tile_w, %w3_0.10, %w3_0.11, %lane) : (!tile_w, index, index, index) -> !fragment_w
      // @fragment_x(%tile_x, %wave_m + 0, 0, %lane)
      %x0_0.15 = arith.constant 0 : index
      %x0_0.13 = arith.addi %wave_m, %x0_0.15 : index
      %x0_0.14 = arith.constant 0 : index
      %x0_0 = func.call @fragment_x(%tile_x, %x0_0.13, %x0_0.14, %lane) : (!tile_x, index, index, index) -> !fragment_x
      %sum0_1 = func.call @multiply(%w0_0, %x0_0, %sum0_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum4_1 = func.call @multiply(%w1_0, %x0_0, %sum4_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum8_1 = func.call @multiply(%w2_0, %x0_0, %sum8_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum12_1 = func.call @multiply(%w3_0, %x0_0, %sum12_0) : (!fragment_w, !fragment_x, !results) -> !results
      // @fragment_x(%tile_x, %wave_m + 16, 0, %lane)
      %x1_0.18 = arith.constant 16 : index
      %x1_0.16 = arith.addi %wave_m, %x1_0.18 : index
      %x1_0.17 = arith.constant 0 : index
      %x1_0 = func.call @fragment_x(%tile_x, %x1_0.16, %x1_0.17, %lane) : (!tile_x, index, index, index) -> !fragment_x
      %sum1_1 = func.call @multiply(%w0_0, %x1_0, %sum1_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum5_1 = func.call @multiply(%w1_0, %x1_0, %sum5_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum9_1 = func.call @multiply(%w2_0, %x1_0, %sum9_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum13_1 = func.call @multiply(%w3_0, %x1_0, %sum13_0) : (!fragment_w, !fragment_x, !results) -> !results
      // @fragment_x(%tile_x, %wave_m + 32, 0, %lane)
      %x2_0.21 = arith.constant 32 : index
      %x2_0.19 = arith.addi %wave_m, %x2_0.21 : index
      %x2_0.20 = arith.constant 0 : index
      %x2_0 = func.call @fragment_x(%tile_x, %x2_0.19, %x2_0.20, %lane) : (!tile_x, index, index, index) -> !fragment_x
      %sum2_1 = func.call @multiply(%w0_0, %x2_0, %sum2_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum6_1 = func.call @multiply(%w1_0, %x2_0, %sum6_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum10_1 = func.call @multiply(%w2_0, %x2_0, %sum10_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum14_1 = func.call @multiply(%w3_0, %x2_0, %sum14_0) : (!fragment_w, !fragment_x, !results) -> !results
      // @fragment_x(%tile_x, %wave_m + 48, 0, %lane)
      %x3_0.24 = arith.constant 48 : index
      %x3_0.22 = arith.addi %wave_m, %x3_0.24 : index
      %x3_0.23 = arith.constant 0 : index
      %x3_0 = func.call @fragment_x(%tile_x, %x3_0.22, %x3_0.23, %lane) : (!tile_x, index, index, index) -> !fragment_x
      %sum3_1 = func.call @multiply(%w0_0, %x3_0, %sum3_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum7_1 = func.call @multiply(%w1_0, %x3_0, %sum7_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum11_1 = func.call @multiply(%w2_0, %x3_0, %sum11_0) : (!fragment_w, !fragment_x, !results) -> !results
      %sum15_1 = func.call @multiply(%w3_0, %x3_0, %sum15_0) : (!fragment_w, !fragment_x, !results) -> !results
      %next.25 = ub.poison : !sums
      %next.26 = vector.insert %sum0_1, %next.25[0] : vector<4xf32> into !sums
      %next.27 = vector.insert %sum1_1, %next.26[1] : vector<4xf32> into !sums
      %next.28 = vector.insert %sum2_1, %next.27[2] : vector<4xf32> into !sums
      %next.29 = vector.insert %sum3_1, %next.28[3] : vector<4xf32> into !sums
      %next.30 = vector.insert %sum4_1, %next.29[4] : vector<4xf32> into !sums
      %next.31 = vector.insert %sum5_1, %next.30[5] : vector<4xf32> into !sums
      %next.32 = vector.insert %sum6_1, %next.31[6] : vector<4xf32> into !sums
      %next.33 = vector.insert %sum7_1, %next.32[7] : vector<4xf32> into !sums
      %next.34 = vector.insert %sum8_1, %next.33[8] : vector<4xf32> into !sums
      %next.35 = vector.insert %sum9_1, %next.34[9] : vector<4xf32> into !sums
      %next.36 = vector.insert %sum10_1, %next.35[10] : vector<4xf32> into !sums
      %next.37 = vector.insert %sum11_1, %next.36[11] : vector<4xf32> into !sums
      %next.38 = vector.insert %sum12_1, %next.37[12] : vector<4xf32> into !sums
      %next.39 = vector.insert %sum13_1, %next.38[13] : vector<4xf32> into !sums
      %next.40 = vector.insert %sum14_1, %next.39[14] : vector<4xf32> into !sums
      %next = vector.insert %sum15_1, %next.40[15] : vector<4xf32> into !sums
      return %next : !sums
    }
  }
}

// mul_mat.q4_k.float: flat tensors in, sizes, results into the caller's buffers.
func.func @"mul_mat.q4_k.float"(%w: tensor<?xi8>, %x: tensor<?xf32>, %m_i32: i32, %n_i32: i32, %blocks_i32: i32, %y: tensor<?xf32> {iree.abi.output = 0 : index}) -> (tensor<?xf32>) {
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
  // %xh_length = (%m * %k) : index
  %xh_length = arith.muli %m, %k : index
  // %xscale_length = (%m * 1) : index
  %xscale_length.2 = arith.constant 1 : index
  %xscale_length = arith.muli %m, %xscale_length.2 : index
  %xh, %xscale = flow.dispatch @scale_rows_t256::@scale_rows_t256[%m](
      %m_i32, %k_i32, %x)
      : (i32, i32, tensor<?xf32>{%x_length})
      -> (tensor<?xf16>{%xh_length}, tensor<?xf32>{%xscale_length})
  %y_result = flow.dispatch @mul_mat_float_n128_m128_k32_w2x2::@mul_mat_float_n128_m128_k32_w2x2[%n, %m](
      %m_i32, %n_i32, %blocks_i32, %w, %xh, %xscale)
      : (i32, i32, i32, tensor<?xi8>{%w_length}, tensor<?xf16>{%xh_length}, tensor<?xf32>{%xscale_length})
      -> (tensor<?xf32>{%y_length})
  return %y_result : tensor<?xf32>
}
}
