// dequantize.q6_k.f16 for x86-64-v3

!bytes = memref<?xi8>
!i32x2 = vector<2xi32>
!i32x4 = vector<4xi32>
!f32x8 = vector<8xf32>
!x = memref<?x?xf32>
!xq = memref<?x?x8xi32>
!xd = memref<?x?x2xi32>
!y = memref<?x?xf32>
!sub_block = vector<4xi32>
!i32x8 = vector<8xi32>
!values = memref<?xf16>

#dequantize_f16_b64_t1_buffers = #hal.pipeline.layout<constants = 1, bindings = [
  #hal.pipeline.binding<storage_buffer, ReadOnly>,
  #hal.pipeline.binding<storage_buffer>]>
// Each dispatch is an executable: its helpers and types are its own, and on CUDA its amount of shared memory, where the kernels of one
// executable all get the sum of what they use.
module attributes {hal.device.targets = [#hal.device.target<"local", [#hal.executable.target<"llvm-cpu", "embedded-elf-x86_64", {cpu = "x86-64-v3", cpu_features = "", data_layout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128", max_stack_allocation_size = 32768 : i64, native_vector_size = 32 : i64, target_triple = "x86_64-unknown-unknown-eabi-elf"}>]> : !hal.device]} {
hal.executable.source private @dequantize_f16_b64_t1 {
  hal.executable.export public @dequantize_f16_b64_t1 ordinal(0) layout(#dequantize_f16_b64_t1_buffers)
      count(%device: !hal.device, %blocks: index) -> (index, index, index) {
    %one = arith.constant 1 : index
    %tile_0 = arith.constant 64 : index
    %workgroups_0 = arith.ceildivui %blocks, %tile_0 : index
    hal.return %workgroups_0, %one, %one : index, index, index
  }
  builtin.module {

    // ---- Target: CPUs. Every target file defines these functions, under these names. A workgroup is one thread, a wave one lane.

    func.func private @thread() -> index {
      %zero = arith.constant 0 : index
      return %zero : index
    }
    // 4, 8 or 16 bytes from any byte address.
    func.func private @load8(%from: !bytes, %at: index) -> !i32x2 {
      %loaded = vector.load %from[%at] : !bytes, vector<8xi8>
      %words = vector.bitcast %loaded : vector<8xi8> to !i32x2
      return %words : !i32x2
    }
    func.func private @load_f16(%from: !bytes, %at: index) -> f32 {
      %loaded = vector.load %from[%at] : !bytes, vector<2xi8>
      %halves = vector.bitcast %loaded : vector<2xi8> to vector<1xf16>
      %half = vector.extract %halves[0] : f16 from vector<1xf16>
      %value = arith.extf %half : f16 to f32
      return %value : f32
    }

    // ---- Format q6_K: super-blocks of 256 weights in 210 bytes: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d.
    // weight = d * scale[k / 16] * (6 bits - 32). Half h of a block (128 weights) keeps its quarters 0 and 2 in the low and high nibbles of
    // bytes 64h..64h+31, quarters 1 and 3 in those of the next 32; quarter j's top bits are bits 2j, 2j+1 of bytes 128 + 32h..128 + 32h+31.

    func.func private @load_quants_8(%w: !bytes, %block: index, %k: index) -> !i32x2 {
      // @load8(%w, %block + 64 * (%k / 128) + %k mod 64)
      %packed.2 = arith.constant 64 : index
      %packed.3 = arith.constant 128 : index
      %packed.4 = arith.divui %k, %packed.3 : index
      %packed.5 = arith.muli %packed.2, %packed.4 : index
      %packed.6 = arith.addi %block, %packed.5 : index
      %packed.7 = arith.constant 64 : index
      %packed.8 = arith.remui %k, %packed.7 : index
      %packed.1 = arith.addi %packed.6, %packed.8 : index
      %packed = func.call @load8(%w, %packed.1) : (!bytes, index) -> !i32x2
      // @load8(%w, %block + 128 + 32 * (%k / 128) + %k mod 32)
      %pairs.10 = arith.constant 128 : index
      %pairs.11 = arith.addi %block, %pairs.10 : index
      %pairs.12 = arith.constant 32 : index
      %pairs.13 = arith.constant 128 : index
      %pairs.14 = arith.divui %k, %pairs.13 : index
      %pairs.15 = arith.muli %pairs.12, %pairs.14 : index
      %pairs.16 = arith.addi %pairs.11, %pairs.15 : index
      %pairs.17 = arith.constant 32 : index
      %pairs.18 = arith.remui %k, %pairs.17 : index
      %pairs.9 = arith.addi %pairs.16, %pairs.18 : index
      %pairs = func.call @load8(%w, %pairs.9) : (!bytes, index) -> !i32x2
      // @nibbles_8(%packed, %k / 64 mod 2)
      %low.20 = arith.constant 64 : index
      %low.21 = arith.divui %k, %low.20 : index
      %low.22 = arith.constant 2 : index
      %low.19 = arith.remui %low.21, %low.22 : index
      %low = func.call @nibbles_8(%packed, %low.19) : (!i32x2, index) -> !i32x2
      // @bit_pairs_8(%pairs, %k / 32 mod 4)
      %high.24 = arith.constant 32 : index
      %high.25 = arith.divui %k, %high.24 : index
      %high.26 = arith.constant 4 : index
      %high.23 = arith.remui %high.25, %high.26 : index
      %high = func.call @bit_pairs_8(%pairs, %high.23) : (!i32x2, index) -> !i32x2
      // %quants = (%low | %high << 4) : !i32x2
      %quants.27 = arith.constant dense<4> : !i32x2
      %quants.28 = arith.shli %high, %quants.27 : !i32x2
      %quants = arith.ori %low, %quants.28 : !i32x2
      return %quants : !i32x2
    }
    func.func private @load_scale(%w: !bytes, %block: index, %k: index) -> (f32, f32) {
      // @load_f16(%w, %block + 208)
      %d.2 = arith.constant 208 : index
      %d.1 = arith.addi %block, %d.2 : index
      %d = func.call @load_f16(%w, %d.1) : (!bytes, index) -> f32
      // %w[%block + 192 + %k / 16]
      %byte.4 = arith.constant 192 : index
      %byte.5 = arith.addi %block, %byte.4 : index
      %byte.6 = arith.constant 16 : index
      %byte.7 = arith.divui %k, %byte.6 : index
      %byte.3 = arith.addi %byte.5, %byte.7 : index
      %byte = memref.load %w[%byte.3] : !bytes
      %int = arith.sitofp %byte : i8 to f32
      // %scale = (%d * %int) : f32
      %scale = arith.mulf %d, %int : f32
      %min = arith.constant 0.0 : f32
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
    func.func private @bit_pairs_8(%packed: !i32x2, %number: index) -> !i32x2 {
      // %field = (%packed >> splat(2 * i32(%number)) & 0x03030303) : !i32x2
      %field.1 = arith.constant 2 : i32
      %field.2 = arith.index_castui %number : index to i32
      %field.3 = arith.muli %field.1, %field.2 : i32
      %field.4 = vector.broadcast %field.3 : i32 to !i32x2
      %field.5 = arith.shrui %packed, %field.4 : !i32x2
      %field.6 = arith.constant dense<0x3030303> : !i32x2
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
    func.func private @load_values(%w: !bytes, %block: index, %k: index) -> !f32x8 {
      %quants, %scale, %min = func.call @load_8(%w, %block, %k) : (!bytes, index, index) -> (!i32x2, f32, f32)
      %values = func.call @values_8(%quants, %scale, %min) : (!i32x2, f32, f32) -> !f32x8
      return %values : !f32x8
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
      // %values = ((%floats - 32) * splat(%scale)) : !f32x8
      %values.4 = arith.constant dense<32.0> : !f32x8
      %values.5 = arith.subf %floats, %values.4 : !f32x8
      %values.6 = vector.broadcast %scale : f32 to !f32x8
      %values = arith.mulf %values.5, %values.6 : !f32x8
      return %values : !f32x8
    }
    // ---- dequantize: weights as numbers, tile after tile.

    func.func @dequantize_f16_b64_t1() attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_cpu.pipeline<Default>>} {
      %blocks_i32 = hal.interface.constant.load layout(#dequantize_f16_b64_t1_buffers) ordinal(0) : i32
      %blocks = arith.index_castui %blocks_i32 : i32 to index
      %workgroup_blocks = hal.interface.workgroup.id[0] : index
      // %bytes = (210 * %blocks) : index
      %bytes.1 = arith.constant 210 : index
      %bytes = arith.muli %bytes.1, %blocks : index
      // %k = (256 * %blocks) : index
      %k.2 = arith.constant 0x100 : index
      %k = arith.muli %k.2, %blocks : index
      %w = hal.interface.binding.subspan layout(#dequantize_f16_b64_t1_buffers) binding(0) alignment(64) : !bytes{%bytes}
      %y = hal.interface.binding.subspan layout(#dequantize_f16_b64_t1_buffers) binding(1) alignment(64) : !values{%k}
      // @convert_tile(%w, 0, %y, 0, %blocks, %workgroup_blocks)
      %convert_tile.3 = arith.constant 0 : index
      %convert_tile.4 = arith.constant 0 : index
      func.call @convert_tile(%w, %convert_tile.3, %y, %convert_tile.4, %blocks, %workgroup_blocks) : (!bytes, index, !values, index, index, index) -> ()
      return
    }


    // A tile of 64 blocks of a row that starts at byte w_at, as numbers from y[y_at] on: 8 of them a thread at a time.
    func.func private @convert_tile(%w: !bytes, %w_at: index, %y: !values, %y_at: index, %blocks: index, %tile: index) {
      %thread = func.call @thread() : () -> index
      // %first = (2048 * %tile + %thread) : index
      %first.1 = arith.constant 0x800 : index
      %first.2 = arith.muli %first.1, %tile : index
      %first = arith.addi %first.2, %thread : index
      // %stop = (min(2048 * (%tile + 1), 32 * %blocks)) : index
      %stop.3 = arith.constant 0x800 : index
      %stop.4 = arith.constant 1 : index
      %stop.5 = arith.addi %tile, %stop.4 : index
      %stop.6 = arith.muli %stop.3, %stop.5 : index
      %stop.7 = arith.constant 32 : index
      %stop.8 = arith.muli %stop.7, %blocks : index
      %stop = arith.minui %stop.6, %stop.8 : index
      %threads = arith.constant 1 : index
      scf.for %i = %first to %stop step %threads {
        func.call @convert_8(%w, %w_at, %y, %y_at, %i) : (!bytes, index, !values, index, index) -> ()
      }
      return
    }
    // Eight i of the row.
    func.func private @convert_8(%w: !bytes, %w_at: index, %y: !values, %y_at: index, %i: index) {
      // @load_values(%w, %w_at + 210 * (%i / 32), 8 * (%i mod 32))
      %values.3 = arith.constant 210 : index
      %values.4 = arith.constant 32 : index
      %values.5 = arith.divui %i, %values.4 : index
      %values.6 = arith.muli %values.3, %values.5 : index
      %values.1 = arith.addi %w_at, %values.6 : index
      %values.7 = arith.constant 8 : index
      %values.8 = arith.constant 32 : index
      %values.9 = arith.remui %i, %values.8 : index
      %values.2 = arith.muli %values.7, %values.9 : index
      %values = func.call @load_values(%w, %values.1, %values.2) : (!bytes, index, index) -> !f32x8
      %rounded = arith.truncf %values : !f32x8 to vector<8xf16>
      // %y[%y_at + 8 * %i]
      %rounded.11 = arith.constant 8 : index
      %rounded.12 = arith.muli %rounded.11, %i : index
      %rounded.10 = arith.addi %y_at, %rounded.12 : index
      "vector.store"(%rounded, %y, %rounded.10) <{alignment = 16 : i64}> : (vector<8xf16>, !values, index) -> ()
      return
    }
  }
}

// dequantize.q6_k.f16: flat tensors in, sizes, results into the caller's buffers.
func.func @"dequantize.q6_k.f16"(%w: tensor<?xi8>, %blocks_i32: i32, %y: tensor<?xf16> {iree.abi.output = 0 : index}) -> (tensor<?xf16>) {
  %c0 = arith.constant 0 : index
  %w_length = tensor.dim %w, %c0 : tensor<?xi8>
  %y_length = tensor.dim %y, %c0 : tensor<?xf16>
  // %blocks = (index(%blocks_i32)) : index
  %blocks = arith.index_castui %blocks_i32 : i32 to index
  %y_result = flow.dispatch @dequantize_f16_b64_t1::@dequantize_f16_b64_t1[%blocks](
      %blocks_i32, %w)
      : (i32, tensor<?xi8>{%w_length})
      -> (tensor<?xf16>{%y_length})
  return %y_result : tensor<?xf16>
}
}
