"""`LanguageModel`: a frozen Transformers model, its tokenizer and its identity, run on ragged batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from foreword.adapters import AdapterHooks
from foreword.attention import AttentionFn, ForwardContext, RaggedAttention
from foreword.core import Adapter, Batch, KVPrefix, ModelIdentity, Pooling
from foreword.core.overview import Overview, WithOverview
from foreword.errors import UnsupportedModel
from foreword.models.past import Past, append_keys_values
from foreword.models.proof import Proof
from foreword.models.quantization import quantization


@dataclass(eq=False, repr=False)
class LanguageModel(WithOverview):
    """A frozen base model that passed the support probe; made by `foreword.load_model`.

    Attributes:
        name: what the user called it; it is served under this name.
        model: the Transformers model, in eval mode, no parameter requiring gradients.
        tokenizer: its tokenizer.
        identity: checked against that of every prefix.
        layers: numbers of every self-attention module, one for each use in a forward.
        causal: False for encoders.
        context: positions that the model can take, prefix included; ``None`` without a limit.
        proof: how near it comes to Transformers alone; ``None`` until the support probe has run.
        first_position: position id of the first token (RoBERTa counts from ``padding_idx + 1``).
        has_lm_head: whether it has an output matrix; without one (a sentence encoder) only heads can be learned.
        pooling: how its embeddings are made unless a request says; ``None`` if a request must.
        passes_gradients: whether it was proved that gradients reach all that may be learned in front of it.
        carried: how it carries prefixes, as `foreword doctor` says it.
        checkpoints: whether a layer that runs again in the backward pass still sees its prefix.
        is_encoder_decoder: as in Transformers' configurations (`EncoderDecoder`).
    """

    is_encoder_decoder: ClassVar[bool] = False
    carried: ClassVar[str] = "on ragged rows"
    checkpoints: ClassVar[bool] = True
    name: str
    model: Any
    tokenizer: Any
    identity: ModelIdentity
    layers: dict[nn.Module, list[int]]
    causal: bool
    context: int | None
    proof: Proof | None = None
    first_position: int = 0
    has_lm_head: bool = True
    pooling: Pooling | None = None
    passes_gradients: bool = False
    _adapters: AdapterHooks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._adapters = AdapterHooks.of(self.model)

    def overview(self) -> Overview:
        """Its architecture, size, dtype and device."""
        parameters = sum(each.numel() for each in self.model.parameters())
        return Overview(
            f"LanguageModel {self.name!r}",
            {
                "architecture": f"{self.identity.architecture}, {len(self.identity.layers)} layers",
                "parameters": f"{parameters:,}, {str(self.dtype).removeprefix('torch.')} on {self.device}",
                "context": f"{self.context} positions" if self.context is not None else None,
                "quantized": self.quantization,
                "kind": "encoder-decoder" if self.is_encoder_decoder else "causal" if self.causal else "encoder",
                "prefixes": self.carries,
                "proof": self.proof,
            },
        )

    @property
    def carries(self) -> str:
        """How it carries prefixes, and what its layers keep of them."""
        states = sum(bool(layer.states) for layer in self.identity.layers)
        attend = sum(bool(layer.kv_heads) for layer in self.identity.layers)
        keep = f", {states} keep{'s' * (states == 1)} states" if states else ""
        return f"{self.carried}: {attend} layer{'s' * (attend != 1)} attend{'s' * (attend == 1)}{keep}"

    @property
    def limits(self) -> tuple[str, ...]:
        """What it cannot do in the way that it carries prefixes."""
        return (
            ("a prefix with states is never cut, and cannot stand behind another",)
            if self.identity.keeps_states
            else ()
        )

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return self.identity.vocab_size

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations: that of the input embedding, unless its numbers are quantized to whole ones."""
        dtype = self.model.get_input_embeddings().weight.dtype
        return dtype if dtype.is_floating_point else self.model.dtype

    @property
    def quantization(self) -> str | None:
        """What its weights are quantized to; ``None`` for plain weights."""
        return quantization(self.model.config)

    @property
    def origin(self) -> dict[str, str]:
        """Entries of the provenance of what is made on it: its identity does not tell how it was loaded."""
        return {"quantization": self.quantization} if self.quantization is not None else {}

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Token ids that end a text, from the generation config and the tokenizer."""
        ends = {self.tokenizer.eos_token_id}
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends.update(configured if isinstance(configured, list) else [configured])
        return frozenset(end for end in ends if end is not None)

    def logits(
        self,
        batch: Batch,
        output_indices: Tensor,
        *,
        attend: AttentionFn | Past | None = None,
    ) -> Tensor:
        """Logits after chosen tokens of a ragged batch.

        Args:
            batch: the layout and the tokens.
            output_indices: ``[K]`` indices in ``0..N-1``; only these reach the output matrix.
            attend: what an engine's cache holds, in place of the batch's own prefixes: an `AttentionFn` on ragged rows,
                a `Past` through Transformers' cache.

        Returns:
            ``[K, vocab]`` in the model's dtype.
        """
        if not self.has_lm_head:
            raise UnsupportedModel(f"{self.name} has no output matrix, so it cannot score words; learn with a head.")
        return self._outputs(batch, output_indices, attend, hidden=False)

    def hidden_states(
        self,
        batch: Batch,
        output_indices: Tensor,
        *,
        attend: AttentionFn | Past | None = None,
    ) -> Tensor:
        """Final hidden states ``[K, hidden]`` of chosen tokens; the arguments are those of `logits`."""
        return self._outputs(batch, output_indices, attend, hidden=True)

    def _outputs(
        self, batch: Batch, output_indices: Tensor, attend: AttentionFn | Past | None, *, hidden: bool
    ) -> Tensor:
        """`logits` or `hidden_states`: what each way of carrying does by itself."""
        run = self._context(batch, attend)
        with self._adapted(batch):
            if hidden:
                return hidden_states(self.model, batch, run, self.first_position)[output_indices]
            return forward(self.model, batch, output_indices, run, self.first_position)

    @torch.no_grad()
    def kept(self, batch: Batch, positions: int | None = None) -> KVPrefix:
        """What all layers keep of a batch of one sequence: its prefix and its tokens, end to end, without gradients.

        Args:
            positions: keep only so many of its tokens, as they are in front of the others.
        """
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}

        def collect(layer: int, key: Tensor, value: Tensor) -> None:
            keys[layer], values[layer] = key[:, :positions].contiguous(), value[:, :positions].contiguous()

        first = torch.zeros(1, dtype=torch.long, device=self.device)
        self.hidden_states(batch, first, attend=RaggedAttention(batch, collect))
        layers = range(len(self.identity.layers))
        own_keys, own_values = ([side[layer] for layer in layers] for side in (keys, values))
        return append_keys_values(self.identity, batch.prefixes[0], own_keys, own_values)

    def _context(self, batch: Batch, attend: AttentionFn | Past | None) -> ForwardContext:
        own = cast(AttentionFn, attend) if attend is not None else RaggedAttention(batch)
        return ForwardContext(own, self.layers, device=self.device)

    @contextmanager
    def _adapted(self, batch: Batch) -> Iterator[None]:
        self._adapters.activate(batch)
        with self._applied():
            yield

    @contextmanager
    def _adapted_rows(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Run padded rows ``[R, T]``, each with its adapter."""
        self._adapters.activate_rows(adapters, self.device)
        with self._applied():
            yield

    @contextmanager
    def _applied(self) -> Iterator[None]:
        try:
            yield
            self._adapters.check_applied(self.name)
        finally:
            if not torch.is_grad_enabled():
                self._adapters.clear()


def has_lm_head(model: Any) -> bool:
    """Whether the model has an output matrix; a sentence encoder has none."""
    return model.get_output_embeddings() is not None


def forward(model: Any, batch: Batch, output_indices: Tensor, run: ForwardContext, first_position: int) -> Tensor:
    """One forward of a Transformers model over ``[1, N]`` tokens; see `LanguageModel.logits`."""
    # A model that does not know `logits_to_keep` would swallow it and return the logits of every token.
    keeps = "logits_to_keep" in signature(model.forward).parameters
    output = model(
        **_inputs(model, batch, first_position),
        use_cache=False,
        **({"logits_to_keep": output_indices} if keeps else {}),
        foreword=run,
    )
    return output.logits[0] if keeps else output.logits[0, output_indices]


def model_body(model: Any) -> Any:
    """The model without its output matrix."""
    if model.base_model is not model:
        return model.base_model
    # A class whose `base_model_prefix` names no attribute of it, such as Llama 4's, gives itself.
    return next((child for child in model.children() if hasattr(child, "base_model_prefix")), model)


def hidden_states(model: Any, batch: Batch, run: ForwardContext, first_position: int) -> Tensor:
    """Final hidden states ``[N, hidden]`` of all tokens, from the model without its output matrix."""
    body = model_body(model)
    known = signature(body.forward).parameters
    cache = {"use_cache": False} if "use_cache" in known else {}
    output = body(**_inputs(model, batch, first_position), **cache, foreword=run).last_hidden_state[0]
    return output.to(batch.token_ids.device)  # the last layer may be on another GPU


def _inputs(model: Any, batch: Batch, first_position: int) -> dict[str, Tensor]:
    positions = [torch.arange(o, o + n) for o, n in zip(batch.position_offsets, batch.lengths, strict=True)]
    position_ids = torch.cat(positions).to(batch.token_ids.device)[None] + first_position
    if batch.embeds is None or batch.embed_indices is None:
        return {"input_ids": batch.token_ids[None], "position_ids": position_ids}
    return {"inputs_embeds": embed_tokens(model, batch)[None], "position_ids": position_ids}


def token_embeddings(model: Any, ids: Tensor) -> Tensor:
    """Input embeddings ``[..., hidden]`` of tokens; a table of integers (I-BERT) gives its scale beside."""
    found = model.get_input_embeddings()(ids)
    return found[0] if isinstance(found, tuple) else found


def embed_tokens(model: Any, batch: Batch) -> Tensor:
    """Input embeddings ``[N, hidden]`` of a batch with soft tokens. Raises UnsupportedModel for a model without."""
    if "inputs_embeds" not in signature(model.forward).parameters:
        raise UnsupportedModel(
            f"{type(model).__name__} takes token ids and no input embeddings, so it has no soft tokens; learn with "
            "p-tuning-v2, prefix-tuning or lora."
        )
    embedded = token_embeddings(model, batch.token_ids)
    if batch.embeds is None or batch.embed_indices is None:
        return embedded
    # Index with a copy, not in place: the looked-up embeddings may be a view that autograd still needs.
    return embedded.index_copy(0, batch.embed_indices, batch.embeds.to(embedded.dtype))
