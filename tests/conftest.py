"""One thread for all tests (the machine's cores are shared), and shape checks on the tensor code."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (found by the hook through its name)

install_import_hook(
    ["rft.attention", "rft.packing", "rft.head", "rft.policy", "rft.rollout", "rft.training"],
    "tests.shapes.checked",
)
