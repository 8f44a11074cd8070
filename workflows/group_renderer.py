"""What a rank of a render group renders with: its share of a scene's channels, whole or block by block, as its tensor ranks hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from landmark_batch.errors import ConfigError
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.job import RenderJob
from landmark_batch.workflows.renderers import fetch_choice, load_whole, open_fetcher

if TYPE_CHECKING:
    from landmark_batch.fetching.choice import FetchChoice
    from landmark_batch.fetching.route import Route
    from landmark_batch.fetching.shared_reads import SharedReads
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.parallel.group import RenderGroup
    from landmark_batch.parallel.renderer import GroupRenderer
    from landmark_batch.workflows.slot_limit import SlotLimit
    from landmark_batch.workflows.snapshot import JobSnapshot


def open_group_renderer(
    snapshot: JobSnapshot,
    device: str,
    group: RenderGroup,
    *,
    outputs: Sequence[OutputSpec],
    kernels: KernelSource | None = None,
    route: Callable[[], Route] | None = None,
    limit: SlotLimit,
) -> GroupRenderer:
    """This rank's renderer: it reads its share of the channels only. device: 'cuda' or 'cpu'. outputs: of the store, which ranks round
    their pixels to. route: as for `open_renderer`, whose errors it raises. limit: of this host; what is taken is noted there.
    """
    import torch

    from landmark_batch.parallel.renderer import GroupRenderer
    from landmark_batch.scene.shard import ChannelShard

    job, shape, threads = snapshot.render_job(), group.membership.shape, snapshot.threads
    if snapshot.renderer.get("kind") != "scene":
        raise ConfigError(f"renderer {snapshot.renderer.get('kind')!r}: groups render scenes")
    job = job.model_copy(update={"model": job.model.model_copy(update={"runtime": snapshot.renderer["runtime"]})})
    shard = ChannelShard(group.membership.rank % shape.tensor, shape.tensor) if shape.tensor > 1 else None
    choice = agreed_choice(snapshot.renderer, job, device, group, limit)
    memory = choice.batch if choice is not None and device == "cuda" else None
    shared = None
    if choice is not None:
        limit.taken = choice.slots
        choice, shared = shared_reads(choice, snapshot.renderer["blocks"]["size"]["block"], group)
    if choice is not None and choice.mode == "dynamic":
        fetcher = open_fetcher(job, choice, device, threads, kernels, route() if route is not None else None, shard, shared)
        where = fetcher.base, fetcher.settings, torch.device(device)
        return GroupRenderer(group, *where, threads=threads, outputs=outputs, fetcher=fetcher, memory=memory)
    weights, settings = load_whole(job, device, threads, kernels, shard)
    return GroupRenderer(group, weights, settings, torch.device(device), threads=threads, outputs=outputs, memory=memory)


def agreed_choice(spec: Mapping[str, Any], job: RenderJob, device: str, group: RenderGroup, limit: SlotLimit) -> FetchChoice | None:
    """`fetch_choice` within this host's limit, the same on all tensor ranks of a data row: with the slots of the one that has the fewest.
    A scene that is too large to be held whole, as groups before this one found, is fetched.
    """
    import torch

    choice, size = fetch_choice(spec, job, device), group.tensor.size
    if choice is None:
        return None
    blocks, most = spec["blocks"], limit.most()
    own = choice.slots if choice.mode == "dynamic" else blocks["size"]["blocks"] + 1  # more than any number of slots
    fewest = own if most is None else min(own, most)
    if size > 1:
        told = torch.full((size,), fewest, dtype=torch.int64, device=group.tensor.device)
        fewest = int(group.tensor.exchange(told, [1] * size, [1] * size).wait().min())
    if fewest == own:
        return choice
    if choice.mode == "dynamic":
        return replace(choice, slots=fewest)
    section = job.fetching.model_copy(update={"mode": "dynamic", "gpu_blocks": fewest})
    alone = {**spec, "blocks": {**blocks, "choice": None}}  # not as the client chose
    return fetch_choice(alone, job.model_copy(update={"fetching": section}), device)


def shared_reads(choice: FetchChoice, block_bytes: int, group: RenderGroup) -> tuple[FetchChoice, SharedReads | None]:
    """What the ranks of this host share of the blocks they read, and what this one has left. Every rank of a group asks."""
    from landmark_batch.fetching.shared_reads import SharedReads
    from landmark_batch.fetching.transit import Offer, make_offer

    dynamic = choice.mode == "dynamic"
    root, offer = make_offer(choice.host_bytes if dynamic else 0, block_bytes, group.membership.shape.size)
    offers = [Offer(*numbers) for numbers in group.tell(offer)]
    shared = SharedReads.join(root, offers, group.rank)
    if shared is None:
        return choice, None
    return replace(choice, host_bytes=choice.host_bytes - max(0, shared.own_bytes - choice.host_spare)), shared
