"""Tiny random checkpoints of models that read images too, whole: text side, vision tower and what joins them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Llama4Config,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from tiny_models import GROUPED, SHARED, byte_tokenizer

SPECIALS = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {"image_size": 16, "patch_size": 4}
QWEN_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 48, "num_heads": 2}
MARKS = {"image_token_id": 260, "video_token_id": 261, "vision_start_token_id": 262, "vision_end_token_id": 263}


def _mrope(*sections: int, **options) -> dict:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **options}


CONFIGS = {
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config={**SHARED, **SPECIALS, "rope_parameters": _mrope(2, 2, 2)},
        vision_config={**QWEN_TOWER, "patch_size": 4, "fullatt_block_indexes": [0]},
        **MARKS,
    ),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config={**GROUPED, **SPECIALS, "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True)},
        vision_config={**QWEN_TOWER, "patch_size": 4, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **MARKS,
    ),
    "gemma3": lambda: Gemma3Config(
        text_config={**GROUPED, **SPECIALS, "sliding_window": 8, "query_pre_attn_scalar": 16},
        vision_config={**TOWER, **PATCHES},
        mm_tokens_per_image=4,
        boi_token_index=258,
        eoi_token_index=259,
        image_token_index=260,
    ),
    "smolvlm": lambda: SmolVLMConfig(
        text_config={**SHARED, **SPECIALS, "model_type": "llama"},
        vision_config={**TOWER, **PATCHES},
        image_token_id=260,
        scale_factor=2,
    ),
    "llama4": lambda: Llama4Config(
        text_config={
            **GROUPED,
            **SPECIALS,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
            "num_hidden_layers": 4,
        },
        vision_config={
            **TOWER,
            **PATCHES,
            "intermediate_size": 64,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "vision_output_dim": 16,
        },
        boi_token_index=258,
        eoi_token_index=259,
        image_token_index=260,
    ),
}
CONFIGS["paligemma"] = lambda: PaliGemmaConfig(
    text_config={**GROUPED, **SPECIALS, "model_type": "gemma"},
    vision_config={**TOWER, **PATCHES, "model_type": "siglip_vision_model"},
    image_token_index=260,
    projection_dim=48,
)
FAMILIES = tuple(CONFIGS)


def save_tiny(family: str, folder: Path) -> Path:
    """A model folder as it is published, with the vision tower's weights."""
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForImageTextToText.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
            elif not bool(parameter.isfinite().all()) or float(parameter.abs().max()) > 1e3:
                parameter.zero_()  # some start as they were allocated
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
