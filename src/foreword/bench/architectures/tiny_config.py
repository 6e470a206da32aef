"""Tiny configurations of any class of Transformers: with a layer of every kind that the default one has.

A configuration is shrunk by what its fields are called and hold, not by what the architecture is called, so that the
architectures of the next release of Transformers are built, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 300
# Every byte is a token; those above are special.
BOS, EOS, PAD, FIRST_SPECIAL = 256, 256, 257, 258
LAYERS = (4, 5, 6, 7, 8, 10, 12)
DEPTH = r"num_hidden_layers|n_layers?|num_layers|num_blocks"
INDICES = r".*(_ids|indices|idxs|indexes|_layers)"
# The largest value of fields by name, the first pattern that fits; ``None`` leaves a field as it is.
SIZES: tuple[tuple[str, int | None], ...] = (
    (r"(pre|post)?training_tp|chunk_size_feed_forward|type_vocab_size|num_labels|.*_multiplier", None),
    (r"ngram_vocab_size_base|.*hash_byte_group_vocab", 100),
    (r".*vocab_size(_per_layer_input)?", VOCABULARY),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|context_length)", 256),
    (r"max_(source|target)_positions|model_max_length", 256),
    (r"num_kv_shared_layers", 2),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", 1),
    (r".*(_period|_interval|_every_n_layers|_sparse_step|_group_size|_layers_per_stack)", 4),
    (r".*_offset", 1),
    (r"(n_routed_|num_local_|num_|moe_num_|n_|zero_)(experts|expert_num)", 4),
    (r"zero_expert_num", 2),
    (r".*(shared_experts)", 1),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|num_selected_experts", 2),
    (r"n_group|topk_group|num_expert_group|num_limited_groups", 1),
    (r".*(num_hidden_layers|n_layers?|num_layers|_layers|num_blocks|depth)", 2),
    (r".*(rotary_dim|rope_head_dim)", 8),
    (r"qk_head_dim", 24),
    (r"query_pre_attn_scalar", 16),
    (r".*(head_dim|kv_channels|d_head|headdim|dim_head|d_kv|head_size)", 16),
    # Of equal tokens it would keep any.
    (r"keep_window_size", None),
    (r".*(sliding_window|window_size|local_attention|attention_window(_len)?|attention_chunk_size|_window_size)", 8),
    (r".*(num_groups|n_groups|ngroups)", 1),
    # Scores are cut off at 0, where those of a few heads would tie.
    (r"index(er)?_n_heads", 32),
    (r".*(heads?|n_head|n_heads)", 4),
    (r".*(lora_rank|_rank)", 16),
    (r"num_filters|base_channels", 4),
    (r"index_topk", 8),
    (r"(mamba_d_)?(ssm_)?(state|state_size|d_state)", 8),
    (r"lru_width|mamba_d_ssm", 64),
    (r"(moe|shared|expert|dense).*(intermediate_size|ffn_hidden_size|intermediate)(_size)?", 32),
    (
        r".*(intermediate_size(_mlp)?|ffn_dim|n_inner|dim_ff|d_ff|dff|d_inner|ffn_hidden_size|feed_forward_size|mlp_dim)",
        96,
    ),
    (
        r".*(hidden_size(_global)?|n_embd|d_model|d_latents|embed(ding)?_(dim|size)|emb_(dim|size)|proj_dim|hidden_dim)",
        64,
    ),
    (r"dim|projector_(input|output)_dim|vision_output_dim|adapter_(in_dim|out_dim|input_size)|output_dim", 64),
)
# What no rule can know, by model type.
FACTS: Mapping[str, Mapping[str, Any]] = {
    # The default has no attention layer; released ones do.
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    # The default attends in every layer; released ones convolve in most.
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    # Pairs of a pattern and how often it is repeated.
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    # heads * head_dim must be expand * hidden_size.
    "mamba2": {"num_heads": 8},
    # The default has a part that the class reads and the configuration lacks.
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        },
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 32,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    # The language of a text that names none.
    "xmod": {"default_language": "en_XX"},
    # The default has no vocabulary.
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": FIRST_SPECIAL},
    # Must be the sum of its two parts, which are larger in some layers.
    "dots3_note_text": {"head_dim": 32},
    # Random layers without a norm saturate.
    "mobilebert": {"normalization_type": "layer_norm"},
    # Keys of less than 64 are rounded up in one place alone.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    # Sums and products of these are hidden_size and the number of positions.
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
}


def tiny_configs(config_class: type[PreTrainedConfig], kind: str) -> Iterator[PreTrainedConfig | Exception]:
    """Tiny configurations, the likeliest first: with few layers, but one of every kind that the default one has."""
    default = _default(config_class)
    own, depth = _own_values(default), _depth(default)
    shrunk = {name: small for name, value in own.items() if (small := _small(name, value, own)) is not None}
    fields_of_kind: dict[str, Any] = {"is_decoder": True} if kind == "causal" and "is_decoder" in own else {}
    if getattr(default, "is_encoder_decoder", False) and getattr(default, "decoder_start_token_id", None) is None:
        fields_of_kind["decoder_start_token_id"] = PAD
    missing = {name: _needed(name) for name, value in own.items() if value is None and _needed(name) is not None}
    depths = {name for name in own if re.fullmatch(DEPTH, name) and own[name]}
    by_layer = default.to_dict().get("per_layer_config")
    wanted, partial, failed = _layer_kinds(default, depth), [], []
    for filled in ({}, missing):
        for count in LAYERS if depths else LAYERS[:1]:
            for lists in (
                [_fewer_layers(default, depth, count)] if by_layer else [{}, _fewer_layers(default, depth, count)]
            ):
                settings = {**shrunk, **dict.fromkeys(depths, count), **filled, **lists, **fields_of_kind}
                try:
                    config = config_class(**{**settings, **FACTS.get(config_class.model_type, {})})
                except Exception as error:
                    failed.append(error)
                    continue
                if wanted - _layer_kinds(config, count):
                    partial.append(config)
                else:
                    yield config
    yield from [*partial, *failed[:1]]


def _default(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The default configuration, or the first that facts make valid."""
    try:
        return config_class()
    except Exception:
        return config_class(**FACTS.get(config_class.model_type, {}))


def _own_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Of the fields that not every configuration has; what is derived from them is left to the class."""
    shared = {each.name for each in fields(PreTrainedConfig)}
    return {each.name: _value(config, each) for each in fields(type(config)) if each.name not in shared}


def _value(config: PreTrainedConfig, of: Field[Any]) -> Any:
    """A field as the class completed it, unless that differs by layer; sizes that it derives are as they were given."""
    value = vars(config).get(of.name, of.default)
    if value is MISSING or (isinstance(value, int) and of.default is not MISSING and not isinstance(of.default, int)):
        return None if of.default is MISSING else of.default
    return value


def _small(name: str, value: Any, own: Mapping[str, Any]) -> Any:
    """The value of a field in a tiny configuration, ``None`` for the default one."""
    if isinstance(value, PreTrainedConfig):
        return next((each for each in tiny_configs(type(value), "part") if not isinstance(each, Exception)), None)
    if re.fullmatch(r".*token_(id|index)", name):
        return _special(name, value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if re.fullmatch(r".*(num_key_value_heads|kv_n_heads|num_kv_heads)", name):
        heads = next((own[each] for each in ("num_attention_heads", "n_heads") if own.get(each)), value)
        return 4 if value >= heads else min(value, 2)
    if name == "vocab_size":
        return VOCABULARY
    # Multi-head latent attention rotates a part of each head, whose size some configurations call head_dim.
    size = _size("qk_rope_head_dim" if name == "head_dim" and own.get("qk_rope_head_dim") == value else name)
    return None if size is None else min(value, size)


def _size(name: str) -> int | None:
    """The largest value of a field, ``None`` if it may be anything."""
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def _needed(name: str) -> int | None:
    """A size that some classes leave out by default and cannot do without."""
    return _size(name) if re.fullmatch(r"vocab_size|head_dim|.*experts.*|num_key_value_heads", name) else None


def _special(name: str, value: Any) -> Any:
    """Ids of special tokens of `VOCABULARY`. Low ids of padding stay: position embeddings may count from there."""
    if not isinstance(value, int) or value < 0 or (name == "pad_token_id" and value < 5):
        return None
    if name in ("bos_token_id", "eos_token_id"):
        return EOS
    if name in ("pad_token_id", "decoder_start_token_id"):
        return PAD
    return FIRST_SPECIAL + sum(map(ord, name)) % (VOCABULARY - FIRST_SPECIAL)


def _depth(config: PreTrainedConfig) -> int:
    own = _own_values(config)
    return max((own[name] for name in own if re.fullmatch(DEPTH, name) and own[name]), default=0)


def _layer_kinds(config: PreTrainedConfig, depth: int) -> set[tuple[str, str, bool]]:
    """Every value of every attribute that has one for each layer, and whether a second layer has it, too."""
    lists = dict(_own_values(config))
    for name, value in vars(type(config)).items():
        if isinstance(value, property) and value.fget is not None:
            with suppress(Exception):
                lists[name] = value.fget(config)
    by_layer = {name: [repr(each) for each in values] for name, values in lists.items() if _by_layer(values, depth)}
    return {
        (name, each, values.count(each) > second)
        for name, values in by_layer.items()
        for each in values
        for second in (0, 1)
    }


def _by_layer(values: Any, depth: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == depth > 1


def _fewer_layers(config: PreTrainedConfig, depth: int, count: int) -> dict[str, Any]:
    """Every list that has a value for each layer, for ``count`` layers among which all values are."""
    lists = {name: values for name, values in _own_values(config).items() if _by_layer(values, depth)}
    # Two of each kind, since layers of a kind may share weights or keys.
    kinds: dict[tuple[str, str], list[int]] = {}
    for name, values in lists.items():
        for place, value in enumerate(values):
            kinds.setdefault((name, repr(value)), []).append(place)
    places = sorted({place for own in kinds.values() for place in own[:2]})[:count]
    places += [place for place in range(depth) if place not in places][: count - len(places)]
    found: dict[str, Any] = {name: [values[place] for place in sorted(places)] for name, values in lists.items()}
    given = config.to_dict().get("per_layer_config")
    if given:
        own = {int(place): values for place, values in given.items()}
        found["per_layer_config"] = {
            at: {name: _overridden(config, name, value) for name, value in own[place].items()}
            for at, place in enumerate(sorted(places))
            if place in own
        }
    return found


def _overridden(config: PreTrainedConfig, name: str, value: Any) -> Any:
    """What one layer has instead of the others' small value: in the same proportion."""
    common, size = next(each.default for each in fields(type(config)) if each.name == name), _size(name)
    if size is None or not isinstance(value, int) or not isinstance(common, int) or isinstance(value, bool):
        return value
    return max(min(common, size) * value // common, 1)
