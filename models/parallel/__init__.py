"""One training on several workers: data parallel (FSDP2), expert parallel, both together; sharded checkpoints.

Needs torch.distributed to be initialised by whoever starts the workers (gloo on CPU, nccl on GPU). Nothing here starts a process.
"""
