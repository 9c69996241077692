"""rft beside TRL and vLLM on the same job: each side a process of its own, told what to do over pipes."""
