"""A tiny model as a GGUF file, written with llama.cpp's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from torch import Tensor

from foreword.models import LanguageModel

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
OUTER = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def write_gguf(lm: LanguageModel, file: Path, *, half: bool = False, interleaved: bool | None = None) -> Path:
    """``lm`` must be a Llama, Qwen2 or Qwen3 with the byte tokenizer, in float32.

    Args:
        half: write matrices in float16.
        interleaved: whether numbers that are rotated together are put side by side; by default as the architecture has
            it.
    """
    kind = lm.model.config.model_type
    side_by_side = kind == "llama" if interleaved is None else interleaved
    writer = GGUFWriter(file, kind)
    _describe(writer, lm)
    _tokens(writer, lm)
    for name, tensor in lm.model.state_dict().items():
        if name != "lm_head.weight" or not lm.model.config.tie_word_embeddings:
            tensor = tensor.half() if half and tensor.dim() > 1 else tensor
            _tensor(writer, lm.model.config, name.removeprefix("model."), tensor, side_by_side)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _describe(writer: GGUFWriter, lm: LanguageModel) -> None:
    config = lm.model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tokens(writer: GGUFWriter, lm: LanguageModel) -> None:
    words = sorted(lm.tokenizer.get_vocab(), key=lm.tokenizer.get_vocab().__getitem__)
    count = lm.model.config.vocab_size
    # With fewer than two merges the readers take the file for another kind; two spaces occur in no test.
    words += ["ĠĠ", "ĠĠĠ", *(f"<unused{i}>" for i in range(count - len(words) - 2))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL if len(word) > 4 else TokenType.NORMAL for word in words])
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ"])
    writer.add_eos_token_id(lm.tokenizer.eos_token_id)
    writer.add_bos_token_id(lm.tokenizer.eos_token_id)  # Transformers 5.16 reads no tokenizer without one


def _tensor(writer: GGUFWriter, config: Any, name: str, tensor: Tensor, interleaved: bool) -> None:
    name, _, kind = name.rpartition(".")
    if not name.startswith("layers."):
        writer.add_tensor(f"{OUTER[name]}.{kind}", tensor.numpy())
        return
    _, layer, part = name.split(".", 2)
    if interleaved and part.endswith(("q_proj", "k_proj")):
        tensor = _interleaved(tensor, config.num_attention_heads if "q_" in part else config.num_key_value_heads)
    writer.add_tensor(f"blk.{layer}.{NAMES[part]}.{kind}", tensor.contiguous().numpy())


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring numbers, Transformers the two halves of a head."""
    return tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
