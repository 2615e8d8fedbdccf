"""`triptych info`: the parts of a model and the memory it takes, from the small files of its checkpoint.

Memory is calculated, not measured: weights, the keys and values of the longest context, and in training gradients, the
two moments of AdamW and the EMA. Activations and torch itself are left out.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from triptych.apps.arguments import default_threads
from triptych.apps.commands import InfoOptions
from triptych.apps.console import open_console
from triptych.apps.options import OpenModel
from triptych.model.bagel import Bagel
from triptych.model.config import BagelConfig
from triptych.model.config_files import read_config
from triptych.model.transformer import is_generation
from triptych.model.weights import outline, resolve_checkpoint

MODEL_PARTS = ("words, shared", "understanding expert", "generation expert", "vision tower", "autoencoder")
TRAINING_BYTES = 4 + 4 + 8 + 4  # a parameter in float32: itself, gradient, two moments, average


def run(options: InfoOptions, open_model: OpenModel) -> int:
    """Print a model's sizes; returns the exit code."""
    record = model_record(options.model)
    if options.as_json:
        print(json.dumps(record), flush=True)
    else:
        open_console(as_json=False).print(model_table(record))
    return 0


def model_record(name: str) -> dict[str, Any]:
    """Sizes, parameters by part, and bytes by mode of a model that is not loaded. Raises ModelError."""
    folder = resolve_checkpoint(name)
    config, _ = read_config(folder)
    parameters = part_sizes(outline(folder, config))
    total = sum(parameters.values())
    context = context_numbers(config)
    return {
        "model": name,
        "folder": str(folder),
        "name": config.name,
        "world": config.world,
        "files_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "parameters": {**parameters, "all": total},
        "memory_bytes": {
            "draw, float32": 4 * total + 4 * context,
            # the autoencoder stays in float32: 2 more bytes for each of its parameters
            "draw, bfloat16": 2 * total + 2 * parameters["autoencoder"] + 2 * context,
            "train, float32 with AdamW and EMA": TRAINING_BYTES * total,
        },
        "context_tokens": context_tokens(config),
        "threads": default_threads(total),  # on a CPU; None is torch's own number
        "config": asdict(config),
    }


def part_sizes(bagel: Bagel) -> dict[str, int]:
    """Parameters of each part; works on the meta device."""
    counts: dict[str, int] = dict.fromkeys(MODEL_PARTS, 0)
    for name, tensor in bagel.state_dict().items():
        counts[part_of(name)] += tensor.numel()
    return counts


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name."""
    head = name.split(".", 1)[0]
    if head == "autoencoder":
        return head
    if head in ("vit_model", "connector", "vit_pos_embed"):
        return "vision tower"
    if is_generation(name):
        return "generation expert"
    return "words, shared" if "embed_tokens" in name or "lm_head" in name else "understanding expert"


def context_tokens(config: BagelConfig) -> int:
    """Tokens in the context of an edit at most: clean latents, image patches, text and noise, in three branches."""
    latents = (config.vae_resize.max_side // config.latent_downsample) ** 2
    views = (config.vit_resize.max_side // config.vision.patch_size) ** 2
    # with classifier-free guidance: one context with all, one without the text, one without the image
    return 3 * (2 * latents + views + config.sampling.max_reflection)


def context_numbers(config: BagelConfig) -> int:
    """Numbers in the keys and values of `context_tokens`."""
    language = config.language
    # 2: keys and values
    return context_tokens(config) * 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim


def model_table(record: dict[str, Any]) -> Table:
    """`model_record` as a table."""
    table = Table(title=f"{record['name']}  ({record['folder']})", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for part, count in record["parameters"].items():
        table.add_row(f"parameters, {part}", f"{count:,}")
    table.add_section()
    for mode, size in record["memory_bytes"].items():
        table.add_row(f"memory to {mode}", size_text(size))
    table.add_row("weight files", size_text(record["files_bytes"]))
    table.add_section()
    height, width = record["config"]["image_size"]
    table.add_row("picture", f"{width} x {height}")
    sampling = record["config"]["sampling"]
    table.add_row("prompts", "of the sticker world" if record["world"] == "stickers" else "any")
    # N steps lie between N + 1 points
    table.add_row("flow steps to draw, to edit", f"{sampling['draw_points'] - 1}, {sampling['edit_points'] - 1}")
    table.add_row("CPU threads without --threads", str(record["threads"] or "torch's own number"))
    return table


def size_text(size: int) -> str:
    """Bytes for a person.

    >>> size_text(3_500_000)
    '3.5 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"
