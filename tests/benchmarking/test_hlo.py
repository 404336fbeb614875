"""Work counted in the text of programs, by hand and by what XLA compiles here.

Letters: N rows, D and F features.
"""

import jax
import jax.numpy as jnp
import pytest

from bidi.benchmarking import hlo

# As TPUs' programs look: a product as a convolution, a loop over four slices that gathers, a fetch
# into a core's memory S(1), a reduction over groups of four of eight devices.
TEXT = """
HloModule jit_step, is_scheduled=true

%fused_computation (param_0: bf16[4,16,8], param_1: s32[]) -> bf16[1,16,8] {
  %param_0 = bf16[4,16,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.1 = bf16[1,16,8]{2,1,0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,16,8}
}

%body (param.2: (s32[], bf16[4,16,8])) -> (s32[], bf16[4,16,8]) {
  %param.2 = (s32[]{:T(128)}, /*index=1*/bf16[4,16,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)S(2)} get-tuple-element(%param.2), index=0
  %x = bf16[4,16,8]{2,1,0} get-tuple-element(%param.2), index=1
  %slice = bf16[1,16,8]{2,1,0:S(1)} fusion(%x, %i), kind=kLoop, calls=%fused_computation
  %gathered = bf16[1,64,8]{2,1,0:S(1)} all-gather(%slice), replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) tuple(%i, %x)
}

%condition (param.3: (s32[], bf16[4,16,8])) -> pred[] {
  %param.3 = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%param.3), index=0
  %limit = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x.1: bf16[4,16,8], w.1: bf16[8,32,1]) -> f32[16,32] {
  %x.1 = bf16[4,16,8]{2,1,0} parameter(0)
  %w.1 = bf16[8,32,1]{2,1,0} parameter(1)
  %zero = s32[]{:T(128)S(2)} constant(0)
  %copy-start = (bf16[8,32,1]{2,1,0:S(1)}, bf16[8,32,1]{2,1,0}, u32[]{:S(2)}) copy-start(%w.1)
  %copy-done = bf16[8,32,1]{2,1,0:S(1)} copy-done(%copy-start)
  %start = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) while(%start), condition=%condition, body=%body
  %y = bf16[4,16,8]{2,1,0} get-tuple-element(%loop), index=1
  %product = f32[4,16,32]{2,1,0:S(1)} convolution(%y, %copy-done), window={size=1}, dim_labels=0bf_io0->0bf
  ROOT %reduced = f32[4,16,32]{2,1,0} all-reduce(%product), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""

SLICE = 16 * 8 * 2
LEFT, RIGHT, RESULT = 4 * SLICE, 8 * 32 * 2, 4 * 16 * 32 * 4


def test_a_program_by_hand():
    work = hlo.work(TEXT, devices=8)
    assert work.open_loops == 0
    assert work.flops == 2 * 4 * 16 * 8 * 32
    assert work.collectives == {
        # Of four devices each has a quarter, gets three and sends three.
        "all-gather": hlo.Collective(4, 4 * 4 * SLICE, 4 * 3 * SLICE),
        "all-reduce": hlo.Collective(1, RESULT, 2 * RESULT * 3 / 4),
    }
    assert work.sent == 12 * SLICE + 1.5 * RESULT
    # The weights once, four slices, the product's left side, the reduced result.
    assert work.bytes == RIGHT + 4 * SLICE + LEFT + RESULT


def test_loops_that_end_by_the_data_go_round_as_often_as_said():
    opened = TEXT.replace("direction=LT", "direction=NE")
    once, often = (hlo.work(opened, 8, open_rounds=rounds) for rounds in (1, 7))
    assert once.open_loops == often.open_loops == 1
    assert once.collectives["all-gather"].count == 1
    assert often.collectives["all-gather"].count == 7
    assert often.collectives["all-reduce"].count == 1
    known = opened.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert hlo.work(known, 8).collectives["all-gather"].count == 5


def test_rounds_that_are_two_in_one_are_counted_once():
    counted = TEXT.replace(
        "  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) tuple(%i, %x)",
        "  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)\n"
        "  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,16,8]{2,1,0}) tuple(%next, %x)",
    )
    assert counted != TEXT
    assert hlo.work(counted, 8).collectives["all-gather"].count == 2
    odd = counted.replace("constant(4)", "constant(5)")
    assert hlo.work(odd, 8).collectives["all-gather"].count == 3


ASYNC = """
HloModule jit_step, is_scheduled=true

%begin (p.1: bf16[8,4]) -> (bf16[8,4], bf16[8,32], u32[]) {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %gather.1 = bf16[8,32]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %begun = (bf16[8,4]{1,0}, bf16[8,32]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (p.2: bf16[8,4], p.3: bf16[8,32], p.4: f32[64]) -> (f32[64], bf16[8,32], bf16[8,32]) {
  %p.2 = bf16[8,4]{1,0} parameter(0)
  %p.3 = bf16[8,32]{1,0} parameter(1)
  %p.4 = f32[64]{0} parameter(2)
  %gather.2 = bf16[8,32]{1,0} all-gather(%p.2), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
  %twice = f32[64]{0} add(%p.4, %p.4)
  ROOT %tuple.2 = (f32[64]{0}, bf16[8,32]{1,0}, bf16[8,32]{1,0}) tuple(%twice, %p.3, %gather.2)
}

%end (p.5: bf16[8,4], p.6: bf16[8,32]) -> bf16[8,32] {
  %p.5 = bf16[8,4]{1,0} parameter(0)
  %p.6 = bf16[8,32]{1,0} parameter(1)
  %gather.3 = bf16[8,32]{1,0} all-gather(%p.5), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %ended = bf16[8,32]{1,0} custom-call(%gather.3, %p.6), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x.1: bf16[8,4], y.1: f32[64]) -> bf16[8,32] {
  %x.1 = bf16[8,4]{1,0} parameter(0)
  %y.1 = f32[64]{0} parameter(1)
  %start = (bf16[8,4]{1,0}, bf16[8,32]{1,0}, u32[]{:S(2)}) fusion(%x.1), kind=kCustom, calls=%begin
  %shard = bf16[8,4]{1,0} get-tuple-element(%start), index=0
  %room = bf16[8,32]{1,0} get-tuple-element(%start), index=1
  %meanwhile = (f32[64]{0}, bf16[8,32]{1,0}, bf16[8,32]{1,0}) fusion(%shard, %room, %y.1), kind=kCustom, calls=%async_collective_fusion
  %there = bf16[8,32]{1,0} get-tuple-element(%meanwhile), index=2
  ROOT %done = bf16[8,32]{1,0} fusion(%shard, %there), kind=kCustom, calls=%end
}
"""


def test_a_collective_beside_other_fusions_is_counted_once():
    work = hlo.work(ASYNC, 8)
    gathered = 8 * 32 * 2
    assert work.collectives == {"all-gather": hlo.Collective(1, gathered, gathered * 7 / 8)}
    # The share is read and the whole written; what is computed meanwhile reads and writes its own.
    assert work.bytes == gathered / 8 + gathered + 2 * 64 * 4


# As GPUs' programs look: a product nested in two fusions, a cache that a step is written into, and a
# branch that is taken or not, in a loop that ends by the data.
GPU = """
HloModule jit_search, is_scheduled=true

%replaces (old: f32[], new: f32[]) -> f32[] {
  %old = f32[] parameter(0)
  ROOT %new = f32[] parameter(1)
}

%written (p.1: f32[32,8], p.2: s32[2,1], p.3: f32[2,1,8]) -> f32[32,8] {
  %p.1 = f32[32,8]{1,0} parameter(0)
  %p.2 = s32[2,1]{1,0} parameter(1)
  %p.3 = f32[2,1,8]{2,1,0} parameter(2)
  ROOT %scatter.1 = f32[32,8]{1,0} scatter(%p.1, %p.2, %p.3), update_window_dims={1,2}, inserted_window_dims={}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%replaces
}

%tile (p.4: f32[32,8], p.5: f32[8,4]) -> f32[32,4] {
  %p.4 = f32[32,8]{1,0} parameter(0)
  %p.5 = f32[8,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[32,4]{1,0} dot(%p.4, %p.5), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%product (p.6: f32[32,8], p.7: f32[8,4]) -> f32[32,4] {
  %p.6 = f32[32,8]{1,0} parameter(0)
  %p.7 = f32[8,4]{1,0} parameter(1)
  ROOT %inner.1 = f32[32,4]{1,0} fusion(%p.6, %p.7), kind=kCustom, calls=%tile
}

%taken (p.8: f32[32,4]) -> f32[32,4] {
  %p.8 = f32[32,4]{1,0} parameter(0)
  ROOT %neg.1 = f32[32,4]{1,0} negate(%p.8)
}

%left (p.9: f32[32,4]) -> f32[32,4] {
  ROOT %p.9 = f32[32,4]{1,0} parameter(0)
}

%body (p.10: (pred[], f32[32,8], s32[2,1], f32[2,1,8], f32[8,4])) -> (pred[], f32[32,8], s32[2,1], f32[2,1,8], f32[8,4]) {
  %p.10 = (pred[], f32[32,8]{1,0}, s32[2,1]{1,0}, f32[2,1,8]{2,1,0}, f32[8,4]{1,0}) parameter(0)
  %go = pred[] get-tuple-element(%p.10), index=0
  %cache = f32[32,8]{1,0} get-tuple-element(%p.10), index=1
  %at = s32[2,1]{1,0} get-tuple-element(%p.10), index=2
  %step = f32[2,1,8]{2,1,0} get-tuple-element(%p.10), index=3
  %kernel = f32[8,4]{1,0} get-tuple-element(%p.10), index=4
  %cache.2 = f32[32,8]{1,0} fusion(%cache, %at, %step), kind=kInput, calls=%written
  %logits = f32[32,4]{1,0} fusion(%cache.2, %kernel), kind=kCustom, calls=%product
  %maybe = f32[32,4]{1,0} conditional(%go, %logits, %logits), true_computation=%taken, false_computation=%left
  ROOT %next = (pred[], f32[32,8]{1,0}, s32[2,1]{1,0}, f32[2,1,8]{2,1,0}, f32[8,4]{1,0}) tuple(%go, %cache.2, %at, %step, %kernel)
}

%condition (p.11: (pred[], f32[32,8], s32[2,1], f32[2,1,8], f32[8,4])) -> pred[] {
  %p.11 = (pred[], f32[32,8]{1,0}, s32[2,1]{1,0}, f32[2,1,8]{2,1,0}, f32[8,4]{1,0}) parameter(0)
  %again = pred[] get-tuple-element(%p.11), index=0
  ROOT %not = pred[] not(%again)
}

ENTRY %main (x: (pred[], f32[32,8], s32[2,1], f32[2,1,8], f32[8,4])) -> f32[32,8] {
  %x = (pred[], f32[32,8]{1,0}, s32[2,1]{1,0}, f32[2,1,8]{2,1,0}, f32[8,4]{1,0}) parameter(0)
  %loop = (pred[], f32[32,8]{1,0}, s32[2,1]{1,0}, f32[2,1,8]{2,1,0}, f32[8,4]{1,0}) while(%x), condition=%condition, body=%body
  %found = f32[32,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %copy.1 = f32[32,8]{1,0} copy(%found)
}
"""


def test_a_program_of_a_gpu_by_hand():
    work = hlo.work(GPU, 1, open_rounds=5)
    assert work.open_loops == 1
    assert work.flops == 5 * 2 * 32 * 8 * 4
    # Written, multiplied, negated, asked whether to go on; and a copy of what was found.
    assert (work.open_kernels, work.kernels) == (4, 5 * 4 + 1)
    cache, kernel, logits = 32 * 8 * 4, 8 * 4 * 4, 32 * 4 * 4
    # Of the cache a step is written, with the places where, and all is read by the product.
    written = 2 * 2 * 8 * 4 + 2 * 4
    a_round = written + cache + kernel + logits + 2 * logits + 2
    assert work.bytes == 5 * a_round + 2 * cache


STARTED = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[64], y: f32[8]) -> (f32[64], f32[8], f32[64]) {
  %x = f32[64]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %added = f32[64]{0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %added.done = f32[64]{0} all-reduce-done(%added)
  %share = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%x), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %share.done = f32[8]{0} reduce-scatter-done(%share)
  %whole = (f32[8]{0}, f32[64]{0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %whole.done = f32[64]{0} all-gather-done(%whole)
  ROOT %all = (f32[64]{0}, f32[8]{0}, f32[64]{0}) tuple(%added.done, %share.done, %whole.done)
}
"""


def test_collectives_that_are_started_and_waited_for():
    work = hlo.work(STARTED, 8)
    assert work.kernels == 3
    assert {kind: one.count for kind, one in work.collectives.items()} == {
        "all-reduce": 1,
        "reduce-scatter": 1,
        "all-gather": 1,
    }
    assert work.bytes == 4 * (64 + 64) + 4 * (64 + 8) + 4 * (8 + 64)


def test_products_that_cannot_be_counted_are_not_left_out():
    text = GPU.replace(
        "fusion(%cache.2, %kernel), kind=kCustom, calls=%product",
        'custom-call(%cache.2, %kernel), custom_call_target="__cublas$gemm"',
    )
    with pytest.raises(ValueError, match=r"not counted: logits.*cublas"):
        hlo.work(text, 1)


def test_what_is_added_up_in_places_is_counted_whole():
    text = GPU.replace(
        "ROOT %new = f32[] parameter(1)",
        "%new = f32[] parameter(1)\n  ROOT %sum = f32[] add(%old, %new)",
    )
    more = hlo.work(text, 1).bytes - hlo.work(GPU, 1).bytes
    assert more == 2 * 32 * 8 * 4 - 2 * 8 * 4


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[1,8]<=[8]", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}", 4),
    ],
)
def test_group_sizes(attributes, size):
    text = TEXT.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", attributes)
    assert hlo.work(text, 8).collectives["all-reduce"].sent == 2 * RESULT * (size - 1) / size


@pytest.mark.parametrize(
    ("window", "lhs", "rhs", "labels", "out", "flops"),
    [
        # A batched product as a TPU's compiler writes it: of 4 taps one meets an input.
        ("size=4 stride=3 lhs_dilate=4", (4, 5, 6), (4, 6, 7), "0bf_0io->0bf", (4, 5, 7), 4),
        # A contraction over the spatial axis.
        ("size=4", (4, 5, 6), (4, 6, 7), "0bf_0io->0bf", (1, 5, 7), 4),
        # Padding meets nothing: 3 places, taps 2, 3, 2.
        ("size=3 pad=1_1", (3, 5, 6), (3, 6, 7), "0bf_0io->0bf", (3, 5, 7), 7),
    ],
)
def test_convolutions(window, lhs, rhs, labels, out, flops):
    def shape(sizes):
        return f"f32[{','.join(map(str, sizes))}]"

    text = (
        "ENTRY %main () -> f32[] {\n"
        f"  %l = {shape(lhs)} parameter(0)\n"
        f"  %r = {shape(rhs)} parameter(1)\n"
        f"  ROOT %c = {shape(out)} convolution(%l, %r), window={{{window}}}, dim_labels={labels}\n"
        "}\n"
    )
    assert hlo.work(text, 1).flops == flops * 2 * 5 * 6 * 7


def test_what_xla_compiles_here():
    """A scan of products, reduced over eight devices: the same by arithmetic."""

    def step(x_ND, w_DF):
        def round_(total, w_DD):
            return total + x_ND @ w_DD, None

        total, _ = jax.lax.scan(round_, jnp.zeros((16, 8)), w_DF)
        return jax.lax.psum(total, "i")

    mapped = jax.pmap(step, axis_name="i", in_axes=(0, None), out_axes=None)
    compiled = mapped.lower(
        jax.ShapeDtypeStruct((8, 16, 8), jnp.float32), jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
    ).compile()
    work = hlo.work(compiled.as_text(), 8)
    assert work.open_loops == 0
    assert work.flops == 5 * 2 * 16 * 8 * 8
    assert work.collectives.keys() == {"all-reduce"}
    assert work.collectives["all-reduce"].bytes == 16 * 8 * 4
    assert work.bytes >= 5 * 8 * 8 * 4
