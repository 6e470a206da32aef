"""Tiny random models of every family, in float32, proved and wrapped as `load_model` would."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from foreword import attention
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
SHARED = {**SIZES, "num_key_value_heads": 2}
GROUPED = {**SHARED, "head_dim": 16}
CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=6),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=16,
    ),
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        sliding_window=8,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=30.0,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **GROUPED,
        sliding_window=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=256),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SHARED),
    "opt": lambda: OPTConfig(**SIZES, word_embed_proj_dim=48, ffn_dim=64),
    "phi3": lambda: Phi3Config(**SHARED, pad_token_id=None),
    "olmo": lambda: OlmoConfig(**SHARED),
    "cohere": lambda: CohereConfig(**SHARED),
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=1),
}
CAUSAL = ("llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt_oss", "gpt2", "gpt_neox")
# Alike to one of those in everything but their layers, so only answers are compared.
FURTHER = ("qwen2", "opt", "phi3", "olmo", "cohere")
ENCODERS = ("bert", "roberta")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every byte is a token; 256.. are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def tiny_config(family: str):
    return CONFIGS[family]()


@cache
def tiny_model(family: str) -> LanguageModel:
    """The same random weights at every call; spread wide enough that a lost prefix shows."""
    attention.register()
    torch.manual_seed(sum(map(ord, family)))
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(tiny_config(family), attn_implementation=attention.ATTN_IMPLEMENTATION)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0, 1.0)
    model.eval().requires_grad_(False)
    return wrap_model(model, byte_tokenizer(), name=f"tiny-{family}")


def double(family: str) -> LanguageModel:
    """A copy in float64 throughout; the norm of Llama and Mistral goes through float32, PyTorch's does not."""
    model = copy.deepcopy(tiny_model(family).model).double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ in ("LlamaRMSNorm", "MistralRMSNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return wrap_model(model, byte_tokenizer(), name=f"double-{family}")


def save_tiny(family: str, folder: Path, **options) -> Path:
    """An ordinary model folder; ``options`` go to ``save_pretrained``."""
    lm = tiny_model(family)
    lm.model.save_pretrained(folder, **options)
    lm.tokenizer.save_pretrained(folder)
    return folder
