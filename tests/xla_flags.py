"""How XLA compiles what is run once or twice: quickly, whatever the speed of the program."""

# Without its optimiser, LLVM takes a third of the time; in one piece, not one for each core (these
# are busy), three quarters of the rest.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_llvm_force_inline_before_split=false"
)
