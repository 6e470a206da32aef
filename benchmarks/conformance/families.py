"""Tiny random models of many families, saved as ordinary folders: built here, so that nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    NemotronConfig,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    StableLmConfig,
    T5Config,
)

Kind = Literal["causal", "encoder", "encoder-decoder"]

VOCABULARY = 300
END, PAD = 256, 257
# Wide enough that a prefix which is lost changes the logits far beyond rounding.
SPREAD = 0.12
_SPECIAL: dict[str, Any] = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
# Heads of 32 are the narrowest that vLLM's CPU kernels take.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    **_SPECIAL,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
# Shorter than the longest prefix that is put in front, so that a part of it is out of sight.
_WINDOW = 8
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
_BEGINS: dict[str, Any] = {"decoder_start_token_id": PAD}
_AUTO: Mapping[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        key: names its record.
        title: names its row.
        config: of a tiny one.
        kind: which way it reads and writes.
    """

    key: str
    title: str
    config: Callable[[], PreTrainedConfig]
    kind: Kind = "causal"

    def save(self, folder: Path, seed: int) -> None:
        """Write a model with random weights and its tokenizer."""
        torch.manual_seed(seed)
        model = _AUTO[self.kind].from_config(self.config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, SPREAD)
        model.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)

    def stock(self, folder: Path) -> Any:
        """The saved model as Transformers alone loads it, in float32."""
        model = _AUTO[self.kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval().requires_grad_(False)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


FAMILIES: Mapping[str, Family] = {
    family.key: family
    for family in (
        Family("llama", "Llama", lambda: LlamaConfig(**_GROUPED)),
        Family("mistral", "Mistral (sliding window)", lambda: MistralConfig(**_GROUPED, sliding_window=_WINDOW)),
        Family("qwen2", "Qwen2", lambda: Qwen2Config(**_GROUPED)),
        Family("qwen3", "Qwen3", lambda: Qwen3Config(**_GROUPED, head_dim=32)),
        Family(
            "gemma2",
            "Gemma 2 (soft caps)",
            lambda: Gemma2Config(
                **_GROUPED,
                head_dim=32,
                sliding_window=_WINDOW,
                query_pre_attn_scalar=32,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=30.0,
            ),
        ),
        Family(
            "gpt_oss",
            "GPT-OSS (sinks)",
            lambda: GptOssConfig(
                **_GROUPED,
                head_dim=32,
                sliding_window=_WINDOW,
                layer_types=_ALTERNATING,
                num_local_experts=4,
                num_experts_per_tok=2,
            ),
        ),
        Family(
            "gemma3",
            "Gemma 3 (text)",
            lambda: Gemma3TextConfig(
                **_GROUPED, head_dim=32, sliding_window=_WINDOW, layer_types=_ALTERNATING, query_pre_attn_scalar=32
            ),
        ),
        Family(
            "gpt2",
            "GPT-2",
            lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=128, n_layer=3, n_head=4, n_positions=256, **_SPECIAL),
        ),
        Family("gpt_neox", "GPT-NeoX", lambda: GPTNeoXConfig(**_SIZES)),
        Family("opt", "OPT", lambda: OPTConfig(**_SIZES, word_embed_proj_dim=128, ffn_dim=64)),
        Family("phi3", "Phi-3", lambda: Phi3Config(**_GROUPED)),
        Family("olmo", "OLMo", lambda: OlmoConfig(**_GROUPED)),
        Family("cohere", "Cohere", lambda: CohereConfig(**_GROUPED)),
        Family("bert", "BERT", lambda: BertConfig(**_SIZES), "encoder"),
        Family("roberta", "RoBERTa", lambda: RobertaConfig(**{**_SIZES, "pad_token_id": 1}), "encoder"),
        Family(
            "t5",
            "T5",
            lambda: T5Config(
                vocab_size=VOCABULARY,
                d_model=48,
                d_kv=12,
                d_ff=64,
                num_layers=3,
                num_heads=4,
                eos_token_id=END,
                pad_token_id=PAD,
                **_BEGINS,
            ),
            "encoder-decoder",
        ),
        Family(
            "bart",
            "BART",
            lambda: BartConfig(
                vocab_size=VOCABULARY,
                d_model=48,
                encoder_layers=3,
                decoder_layers=3,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_position_embeddings=256,
                **_SPECIAL,
                **_BEGINS,
            ),
            "encoder-decoder",
        ),
        Family("stablelm", "StableLM", lambda: StableLmConfig(**_GROUPED)),
        Family("nemotron", "Nemotron", lambda: NemotronConfig(**_GROUPED)),
        Family(
            "bloom",
            "Bloom",
            lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=48, n_layer=3, n_head=4, **_SPECIAL),
        ),
        Family(
            "falcon_h1",
            "Falcon-H1",
            lambda: FalconH1Config(
                **_GROUPED, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12, mamba_n_groups=1, mamba_d_state=8
            ),
        ),
        Family(
            "mamba",
            "Mamba",
            lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=48, state_size=4, num_hidden_layers=3, **_SPECIAL),
        ),
    )
}
