import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidi.benchmarking import programs
from bidi.errors import UserError

STEP = "jit(_fun)/shard_map/while/body/Transformer.decode_step/"
TEXT = """
HloModule jit__fun

%body (p: (f32[2])) -> (f32[2]) {
  %p = (f32[2]) parameter(0)
  %get-tuple-element.1 = f32[2] get-tuple-element(%p), index=0
  %fusion.1 = f32[2] fusion(%get-tuple-element.1), calls=%c, metadata={op_name="STEPdecoder/layers_0/self_attention/vmap(qkv)/dot_general" stack_frame_id=1}
  %dot.2 = f32[2,2]{1,0} dot(%fusion.1, %fusion.9), lhs_contracting_dims={1}
  %fusion.3 = f32[2] fusion(%dot.2), metadata={op_name="STEPdecoder/layers_0/vmap(self_attention_norm)/add"}
  %fusion.4 = f32[2] fusion(%dot.2), metadata={op_name="STEPdecoder/layers_0/vmap(feedforward)/in/dot_general"}
  %fusion.5 = f32[2] fusion(%dot.2), metadata={op_name="STEPprojection/...d,vd->...v/dot_general"}
  %fusion.6 = f32[2] fusion(%dot.2), metadata={op_name="STEPjit(log_softmax)/sub"}
  %sort.7 = (f32[2]{0}, s32[2]{0}) sort(%fusion.6, %iota), metadata={op_name="jit(_fun)/while/body/top_k"}
  %fusion.8 = f32[2] fusion(%dot.2), metadata={op_name="jit(_fun)/while/body/bookkeeping/vmap()/gather"}
  %copy.9 = f32[2]{0} copy(%fusion.8)
  ROOT %tuple.10 = (f32[2]) tuple(%copy.9)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %fusion.11 = f32[2] fusion(%x), metadata={op_name="jit(_fun)/Transformer.start/Transformer.encode/encoder/layer_0/feedforward/in/dot_general"}
  %copy.12 = f32[2]{0} copy(%get-tuple-element.1)
  ROOT %while.13 = (f32[2], /*index=1*/f32[2]{0}) while(%tuple), body=%body, metadata={op_name="jit(_fun)/while"}
}
""".replace("STEP", STEP)  # noqa: E501 -- XLA's lines are long


def test_instructions_belong_to_parts():
    parts = programs.parts(TEXT)
    expected = {
        "fusion.1": "attention",
        "dot.2": "attention",
        "fusion.3": "rest",
        "fusion.4": "feed-forward",
        "fusion.5": "projection",
        "fusion.6": "projection",
        "sort.7": "top-k",
        "fusion.8": "bookkeeping",
        "copy.9": "bookkeeping",
        "fusion.11": "encoder",
        "copy.12": "rest",
    }
    assert {name: parts[name] for name in expected} == expected
    assert "while.13" not in parts


def compiled_anew(size, name="top_k"):
    @jax.jit
    def program(x):
        with jax.named_scope(name):
            return jnp.sort(x @ x).sum() + size

    return lambda: program(jnp.ones((size, size))).block_until_ready()


def test_only_what_was_compiled_within_is_seen():
    before = compiled_anew(7)
    before()
    with programs.watch() as executables:
        before()
        during = compiled_anew(9)
        during()
    compiled_anew(11)()
    named = [module.name for one in executables for module in one.hlo_modules()]
    assert named.count("jit_program") == 1
    program = next(one for one in executables if one.hlo_modules()[0].name == "jit_program")
    assert programs.memory([program])["arguments"] == 9 * 9 * 4


def test_memory_is_of_the_program_that_needs_most():
    with programs.watch() as executables:
        small, large = compiled_anew(20), compiled_anew(200)
        large(), small()
    assert programs.memory(executables)["arguments"] == 200 * 200 * 4
    assert programs.memory(executables)["temporary"] >= 200 * 200 * 4


def test_time_goes_where_the_work_is():
    shares = programs.time_shares(compiled_anew(300))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["top-k"] > 0.9
    assert shares["attention"] == shares["projection"] == 0


def test_a_profiler_that_tells_nothing():
    runs = iter([compiled_anew(30)] + 3 * [lambda: np.ones(3)])
    with pytest.raises(UserError, match="measure without --profile"):
        programs.time_shares(lambda: next(runs)())
