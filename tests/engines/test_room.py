"""What is said of a part that fits nowhere, and which clusters may yet grow."""

from __future__ import annotations

import json
import math

import pytest

from modelkeep.core.errors import Refused
from modelkeep.engines.ray import grows
from modelkeep.engines.room import Room, must_fit
from modelkeep.spec.declaration import Resources

MORE = {"cpu": "add cores", "memory": "add memory", "gpu": "add GPUs"}
ROOMS = [Room(4, 8e9, 0), Room(2, math.inf, 1)]


@pytest.mark.parametrize(
    ("needs", "parts"),
    [
        ({}, [4, 2]),
        ({"cpu": 0.5}, [8, 4]),
        ({"cpu": 3}, [1, 0]),
        ({"memory": "3GB"}, [2, 2]),
        ({"gpu": 1}, [0, 1]),
        ({"cpu": 0.1, "gpu": 0.1}, [0, 10]),
    ],
)
def test_as_many_parts_fit_as_the_scarcest_of_what_they_need_allows(needs, parts):
    assert [room.parts(Resources(**needs)) for room in ROOMS] == parts
    must_fit(Resources(**needs), ROOMS, "no worker of dask://s:1", MORE)


@pytest.mark.parametrize(
    ("needs", "rooms", "message", "hint"),
    [
        (
            {"cpu": 5},
            ROOMS,
            "resources.cpu: no worker has more than 4 cores, and one part asks for 5",
            "add cores",
        ),
        (
            {"memory": "9GB"},
            ROOMS[:1],
            "resources.memory: no worker has more than 8.0 GB, and one part asks for 9GB",
            "add memory",
        ),
        (
            {"gpu": 0.5},
            ROOMS[:1],
            "resources.gpu: no worker has any GPUs, and one part asks for 0.5",
            "add GPUs",
        ),
        (
            {"cpu": 3, "gpu": 1},
            ROOMS,
            "resources: no worker has all that one part asks for: cpu 3, gpu 1",
            "of one, or start workers with as much of each",
        ),
    ],
)
def test_a_part_that_fits_nowhere_is_refused_by_the_field(needs, rooms, message, hint):
    with pytest.raises(Refused) as refused:
        must_fit(Resources(**needs), rooms, "no worker", MORE)
    assert str(refused.value).startswith(message)
    assert refused.value.hint.startswith("ask for less") and refused.value.hint.endswith(hint)


def test_nothing_is_refused_where_nobody_is_known():
    must_fit(Resources(cpu=5), [], "no worker", MORE)


def status(**kinds):
    """As Ray 2.60's monitor writes it."""
    return json.dumps({"monitor_pid": 42, "autoscaler_report": {"node_type_mapping": kinds}}).encode()


@pytest.mark.parametrize(
    ("said", "second", "may"),
    [
        (None, None, False),
        (status(e4a0="node_e4a0", b7="node_b7"), b"0", False),
        (status(ff00="ray.head.default"), b"0", True),
        (b'{"monitor_pid": 42}', b"0", False),
        (None, b"1", True),
    ],
    ids=["no monitor", "fixed", "autoscaler", "monitor that just began", "second autoscaler"],
)
def test_a_cluster_of_ray_grows_where_nodes_are_of_kinds_that_an_autoscaler_names(said, second, may):
    assert grows(said, second) is may
