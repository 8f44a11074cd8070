"""Render groups: ranks that render one frame together, and how they are formed.

shape.py    the shape of a group and which workers form one; no torch
channel.py  a process group of torch.distributed whose failures are GroupError
group.py    the rendezvous and the process groups of one render group
orders.py   what the leader tells the others
share.py    which pixels a rank renders
exchange.py sums over tensor ranks, in rank order
stages.py   the arithmetic of a tile whose channels are spread over ranks
tensor.py   one tile over tensor ranks, and several in flight
fused_tensor.py, tensor_frame.py  the same with fused kernels: a batch of rays, and a frame's batches
parts.py    what a rank renders of a frame
pixels.py   pixels as they go to the leader, and the frame they make there
flight.py   frames begun and not yet finished
renderer.py GroupRenderer: the renderer of a group
traffic.py  bytes that ranks exchange, beside LandMark's
"""
