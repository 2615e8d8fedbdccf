"""Replay of golden files of the reference implementation: `python tests/replay_parity.py FOLDER`.

A folder holds the cases of the parity kit (json + safetensors) and `tiny_ckpt`. Everything is read from there, so that
other sets of the same layout (sizes, seeds, aspects, guidance) replay too.
"""

import torch

torch.set_num_threads(1)  # as the reference ran; a tiny model is not faster on more
