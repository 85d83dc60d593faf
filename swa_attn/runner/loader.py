"""From a Hugging Face directory to a model.

Every tensor of the checkpoint goes somewhere or is set aside by a rule, and every parameter is filled exactly once;
anything else is listed in one error before memory is allocated or a single weight is read.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from .checkpoint import Checkpoint, CheckpointError
from .config import ModelConfig, WindowReading
from .generation_config import GenerationConfig
from .models import MODELS
from .shown import listed, named
from .source import Source, check_fit

logger = logging.getLogger(__name__)


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mimo_window: WindowReading = "size_plus_self",
    fused_qkv_tp: int | None = None,
    ignore_fields: Iterable[str] = (),
    ignore_prefixes: Iterable[str] = (),
    strict: bool = False,
) -> nn.Module:
    """Build the model that `directory`'s `config.json` describes and fill it, tensor by tensor.

    Of a multimodal checkpoint that is the text model. What is left out is logged in one line and found in the model's
    `skipped`.

    Args:
        directory: holds `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`, and perhaps
            `generation_config.json`.
        device: where the weights go.
        dtype: of the weights, also of those stored as float8; None means the config's. What a module names in
            `float32_parameters` (the router's weight and correction bias) is float32 whatever this is.
        mimo_window, ignore_fields: see `ModelConfig.from_dict`.
        fused_qkv_tp: the tensor-parallel degree whose ranks' [Q; K; V] rows a fused `qkv_proj` strings together. None
            means the full layers' number of KV heads, as in the published V2.5 (4) and V2.5-Pro (8); 1 is plain
            [Q; K; V], which some re-exported checkpoints hold under the same name and shape.
        ignore_prefixes: of tensors that are not the model's, beside the vision and audio towers and the multi-token-
            prediction layers.
        strict: refuse a checkpoint of which a part would be left out.

    Returns:
        The model, in evaluation mode, requiring no grad. Its `config` is the `ModelConfig`, its `generation` the
        `GenerationConfig`, its `skipped` maps the parts that were left out to their sizes.

    Raises:
        ConfigError: a configuration file is malformed or the model is not supported.
        CheckpointError: tensors are missing, unexpected, given twice or of another shape or dtype, a file is damaged or
            not the directory's own, or `strict` forbids to skip a part; the message lists them.
        OSError: a file cannot be opened.
        ImportError: safetensors is not installed.
    """
    config = ModelConfig.from_file(
        Path(directory) / "config.json", mimo_window=mimo_window, ignore_fields=ignore_fields
    )
    generation = GenerationConfig.from_folder(directory)
    num_ranks = config.full.num_kv_heads if fused_qkv_tp is None else fused_qkv_tp
    source = Source(Checkpoint(directory), config, num_ranks, tuple(ignore_prefixes))
    _report(source, generation, strict)
    with torch.device("meta"):
        model = MODELS[config.model_type](config)
    check_fit(source, dict(model.named_parameters()))
    _materialise(model, dtype or config.dtype, device)
    parameters = dict(model.named_parameters())
    for name in source.names:
        parts = (destination.within(parameters) for destination in source.destinations(name))
        for part, piece in zip(parts, source.pieces(name), strict=True):
            part.copy_(piece)
    model.generation, model.skipped = generation, source.skipped
    return model.eval()


def _report(source: Source, generation: GenerationConfig, strict: bool) -> None:
    """Say what is not loaded or not done, once."""
    folder = source.checkpoint.directory
    parts = ", ".join(f"{part} ({size})" for part, size in source.skipped.items())
    if parts and strict:
        raise CheckpointError(f"{folder}: strict, but only the text model can be loaded, not: {parts}")
    if parts:
        logger.warning("%s: loading the text model; skipped: %s", folder, parts)
    if generation.not_applied:
        wishes = listed(map(named, generation.not_applied))
        logger.warning("%s: the sampler does not have: %s", folder / generation.FILE, wishes)


def _materialise(model: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace the meta parameters by memory on `device`."""
    for module in model.modules():
        keeps_float32 = getattr(module, "float32_parameters", ())
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = torch.float32 if name in keeps_float32 else dtype
            memory = torch.empty(parameter.shape, dtype=own, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))
