"""One operator over several processes, one a GPU: each multiplies some of a block's columns.

Every process has the model, the same x and so the same operator.  The first, the leader, runs whatever needs products,
such as `specxai.svd`; the others serve: they wait for columns, multiply them, and send the result back.

Orders and errors go over a group of processes of their own on the CPU (gloo), so that no GPU waits for them; columns
and results go over the default group, between GPUs where its backend can (NCCL), else through the CPU.
"""

from specxai.parallel.wide import columns

__all__ = ["columns"]
