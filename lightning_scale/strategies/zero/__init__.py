"""DeepSpeed's ZeRO under Lightning: where the layers lie in its flat tensors, and one step a window.

`deepspeed_internals` is the list of what is touched of DeepSpeed's own inside.
"""
