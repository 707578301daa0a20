"""DeepSpeed's ZeRO under Lightning: where the layers lie in its flat tensors, and one step a window.

`partitions`, `stage12`, `stage3`, `bf16` and `backend` are the only files that touch DeepSpeed's internals.
"""
