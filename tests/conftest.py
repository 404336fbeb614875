"""Every test sees eight virtual CPU devices and strict shapes."""

import os

# Before jax is imported anywhere: the number of host devices is fixed at start-up.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
