"""Render groups: ranks that render one frame together, and how they are formed.

shape.py    the shape of a group and which workers form one; no torch
channel.py  a process group of torch.distributed whose failures are GroupError
group.py    the rendezvous and the process groups of one render group
orders.py   what the leader tells the others
share.py    which pixels a rank renders
exchange.py sums over tensor ranks, in rank order
stages.py   the arithmetic of a tile whose channels are spread over ranks
tensor.py   one tile over tensor ranks, and several in flight
parts.py    what a rank renders of a frame
renderer.py GroupRenderer: the renderer of a group
traffic.py  bytes that ranks exchange, beside LandMark's
"""
