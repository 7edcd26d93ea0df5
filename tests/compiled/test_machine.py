"""Threads: torch's own, and those of compiled loops."""

import torch

from kgon.compiled import machine


def test_compiled_loops_keep_the_threads_that_torch_leaves(monkeypatch):
    monkeypatch.setattr(machine, "_WORTH_A_THREAD", 1e-6)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with machine.one_torch_thread(), machine.one_torch_thread():
            assert torch.get_num_threads() == 1
            slices = []
            machine.share_out(slices.append, 9, 1.0)
            assert sorted(slices, key=lambda s: s.start) == [slice(0, 3), slice(3, 6), slice(6, 9)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    slices = []
    machine.share_out(slices.append, 1, 1.0)
    assert slices == [slice(0, 1)]
