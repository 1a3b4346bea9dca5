"""What workers on other machines need of this one, on two networks with a cable between them."""

from __future__ import annotations

import pytest

from engines.clusters import holds_inside, may_be_linked

pytestmark = pytest.mark.cluster


def test_workers_of_another_network_reach_this_machine():
    if not may_be_linked():
        pytest.skip("this machine allows no networks of their own with a cable between them (unshare, veth)")
    holds_inside("on_two_networks.py", must=True)
