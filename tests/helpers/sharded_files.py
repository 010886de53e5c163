"""What sharded training saves, made by torch.distributed itself on four processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

WORLD = 4
SHAPES = {
    "model.embed_tokens.weight": (10, 6),
    "model.layers.0.mlp.up_proj.weight": (7, 5),
    "model.layers.0.mlp.down_proj.weight": (5, 9),
    "model.layers.0.norm.weight": (3,),
    "model.layers.1.conv.weight": (4, 3, 6),
    "lm_head.weight": (8, 8),
}
DTYPES = {"model.layers.0.mlp.up_proj.weight": torch.bfloat16, "lm_head.weight": torch.float16}


def whole_model() -> dict[str, torch.Tensor]:
    """The tensors that every layout holds."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(DTYPES.get(name, torch.float32))
        for name, shape in SHAPES.items()
    }


def save_all(root: Path) -> None:
    """Writes every layout into a folder of its own: ranks, mesh, sharded, dcp, dcp_plain."""
    port = 20000 + os.getpid() % 20000
    import torch.distributed.checkpoint
    import torch.distributed.tensor

    torch.multiprocessing.start_processes(_rank, args=(str(root), port), nprocs=WORLD, start_method="fork")


def _rank(rank: int, root: str, port: int) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed._shard.sharded_tensor import Shard as OldShard
    from torch.distributed._shard.sharded_tensor import init_from_local_shards
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    full = whole_model()
    line = init_device_mesh("cpu", (WORLD,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    names = list(full)
    flat = {
        name: distribute_tensor(full[name], line, [Shard(1) if place == 2 else Replicate() if place == 3 else Shard(0)])
        for place, name in enumerate(names)
    }
    ways: list[list[Placement]] = [
        [Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Shard(0)], [Replicate(), Shard(0)],
        [Shard(1), Shard(2)], [Shard(1), Replicate()],
    ]  # fmt: skip
    crossed = {name: distribute_tensor(full[name], grid, way) for name, way in zip(names, ways, strict=True)}
    old = {}
    for name, value in full.items():
        rows = value.chunk(WORLD)
        shards = []
        if rank < len(rows):
            start = sum(len(one) for one in rows[:rank])
            offsets = [start, *[0] * (value.dim() - 1)]
            shards = [OldShard.from_tensor_and_offsets(rows[rank].contiguous(), offsets, rank)]
        old[name] = init_from_local_shards(shards, list(value.shape))
    for folder, state in (("ranks", flat), ("mesh", crossed), ("sharded", old)):
        Path(root, folder).mkdir(exist_ok=True)
        torch.save(state, Path(root, folder, f"model_world_size_{WORLD}_rank_{rank}.pt"))
    optimizer = {"state": {"exp_avg": torch.ones(3)}}
    dcp.save({"model": crossed, "optimizer": optimizer, "step": torch.tensor(3)}, checkpoint_id=f"{root}/dcp")
    dcp.save(dict(flat), checkpoint_id=f"{root}/dcp_plain")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    import sys

    save_all(Path(sys.argv[1]))
