"""A network that is trained in this process, or by several workers of a Ray cluster through Ray Train (DDP).

Either way the same batches are drawn, and the mean of the workers' gradients is the gradient of the whole batch
(Li et al., 2020, https://arxiv.org/abs/2006.15704), so any number of workers learns the same network.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

DEFAULTS = {"epochs": 15, "batch": 64, "rate": 0.2, "hidden": 32, "workers": 2, "seed": 0}


def fit(data: Any, params: dict[str, Any], run: Any) -> nn.Module:
    """What Modelkeep calls: the loss of every epoch goes to the run; the network answers probabilities."""
    given = DEFAULTS | params
    rows = np.asarray(data.matrix, np.float32)
    codes = np.searchsorted(np.asarray(data.classes), data.target)
    net = layers(rows.shape[1], len(data.classes), given)
    told = on_ray(rows, codes, given) if run.engine.startswith("ray") else learn(net, rows, codes, given)
    for epoch, loss, weights in told:
        run.log_metric("loss", loss, epoch)
        if weights is not None:
            net.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return nn.Sequential(net, nn.Softmax(dim=1))


def layers(width: int, classes: int, given: dict[str, Any]) -> nn.Module:
    torch.manual_seed(given["seed"])
    return nn.Sequential(nn.Linear(width, given["hidden"]), nn.ReLU(), nn.Linear(given["hidden"], classes))


def learn(
    net: nn.Module,
    rows: np.ndarray,
    codes: np.ndarray,
    given: dict[str, Any],
    rank: int = 0,
    size: int = 1,
    mean: Callable[[float], float] = float,
) -> Iterator[tuple[int, float, None]]:
    """Stochastic gradient descent on worker ``rank`` of ``size``: yields each epoch's number and mean loss.

    Args:
        net: Changed in place; wrapped by DDP when there are several workers.
        rows: All of them, (n, features), float32.
        codes: (n,), places among the classes.
        mean: Of a number over the workers.
    """
    batch = min(given["batch"], len(rows)) // size * size  # equal shares, or the mean would not be the batch's
    if not batch:
        raise ValueError(f"batches of {given['batch']} rows for {size} workers; expected a row for each at least")
    x, y = torch.from_numpy(rows), torch.from_numpy(codes)
    step = torch.optim.SGD(net.parameters(), lr=given["rate"], momentum=0.9)
    drawn = np.random.default_rng(given["seed"])
    for epoch in range(1, given["epochs"] + 1):
        order = drawn.permutation(len(rows))
        losses = []
        for start in range(0, len(rows) - batch + 1, batch):
            share = order[start + rank : start + batch : size]
            step.zero_grad()
            loss = nn.functional.cross_entropy(net(x[share]), y[share])
            loss.backward()
            step.step()
            losses.append(loss.item())
        yield epoch, mean(float(np.mean(losses))), None


def on_ray(rows: np.ndarray, codes: np.ndarray, given: dict[str, Any]) -> Iterator[tuple[int, float, Any]]:
    """The same from the cluster that Modelkeep has connected to; the last epoch brings the weights."""
    import ray
    from ray.util.queue import Queue

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    told = Queue(actor_options={"num_cpus": 0})
    driver = ray.remote(num_cpus=0, max_retries=0)(drive).remote(rows, codes, given, told)
    ended = False
    while not ended:
        ended = bool(ray.wait([driver], timeout=0.5)[0])
        while not told.empty():
            yield told.get()
    ray.get(driver)  # raises what a worker raised
    told.shutdown()


def drive(rows: np.ndarray, codes: np.ndarray, given: dict[str, Any], told: Any) -> None:
    """Runs on the cluster, as Ray Train does not work through a client."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = {"rows": ray.put((rows, codes)), "given": given, "told": told}
    with tempfile.TemporaryDirectory() as folder:  # Ray Train's own notes; what counts goes through the queue
        TorchTrainer(
            on_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=given["workers"]),
            run_config=RunConfig(storage_path=folder),
        ).fit()


def on_worker(config: dict[str, Any]) -> None:
    """One worker's share; the first one tells."""
    import ray
    from ray.train import get_context
    from ray.train.torch import prepare_model

    rows, codes = ray.get(config["rows"])
    given, told = config["given"], config["told"]
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    net = layers(rows.shape[1], int(codes.max()) + 1, given)
    shared = prepare_model(net)

    def mean(value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        if size > 1:
            torch.distributed.all_reduce(total)
        return float(total) / size

    for epoch, loss, _ in learn(shared, rows.copy(), codes.copy(), given, rank, size, mean):
        last = epoch == given["epochs"]
        weights = {name: value.cpu().numpy() for name, value in net.state_dict().items()} if last else None
        if rank == 0:
            told.put((epoch, loss, weights))
