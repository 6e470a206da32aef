"""rtp-llm's `ModelFactory`, `ModelConfig` and `Model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Stream
from foreword.errors import UnsupportedModel, UnsupportedOption, UsageError
from foreword.evaluation.answers import Answers
from foreword.interop.rtp.generate_config import GenerateConfig
from foreword.interop.rtp.task_prefixes import TaskPrefixes, ptuning_task, read_static_prompts
from foreword.models import LanguageModel, load_model
from foreword.text.prompt import Prompt
from foreword.text.static_prompts import StaticPrompt


@dataclass(frozen=True)
class ModelConfig:
    """rtp-llm's ``ModelConfig``, as far as Foreword supports it.

    Attributes:
        ptuning_path: a checkpoint of P-tuning v2 (THUDM, ChatGLM2 and later), a folder that PEFT saved, or the folder
            of a task in a bank, such as ``bank/reviews``.
        max_seq_len: positions that a request may take, prefix and answer included; 0 is the model's context.
        model_type: ignored; the model's configuration has it.
        async_mode: ignored; batching is always continuous.
        seq_size_per_block: ignored; the cache has a page size of its own.
        lora_infos: not supported here; serve an imported LoRA as a task.
    """

    ptuning_path: str | None = None
    max_seq_len: int = 0
    model_type: str = ""
    async_mode: bool = True
    seq_size_per_block: int = 8
    lora_infos: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.lora_infos:
            raise UnsupportedOption(
                "lora_infos is not supported; make each LoRA a task with `foreword import peft` and ask it by name."
            )
        if self.max_seq_len < 0:
            raise UsageError(f"max_seq_len must be 0 (the model's context) or more, got {self.max_seq_len}.")


class ModelFactory:
    """Loads models."""

    @staticmethod
    def from_huggingface(
        model_path_or_name: str,
        model_config: ModelConfig | None = None,
        revision: str | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> Model:
        """Load a model, compute the static prompts that ``MULTI_TASK_PROMPT`` names, and start an engine.

        Args:
            model_path_or_name: a Hub id, a folder, a ``.gguf`` file or ``smollm2-135m`` (built in).
            model_config: see there.
            revision: not supported; give the folder of the revision.
            trust_remote_code: run code that comes with the model.

        Raises:
            UnknownModel, UnsupportedModel: there is no such model, or it cannot carry a prefix or write.
            ModelMismatch: the P-tuning prefix was made for another model.
            DataError: the file of static prompts is malformed.
            PromptTooLong: one of them leaves no room for a request.
        """
        config = model_config if model_config is not None else ModelConfig()
        if not isinstance(config, ModelConfig):
            raise UsageError(f"model_config must be a ModelConfig, found {config!r}.")
        if revision is not None:
            raise UnsupportedOption(f"revision={revision!r} is not supported; fetch it and give its folder instead.")
        prompts = read_static_prompts()  # before the model, which takes longer to load
        lm = load_model(model_path_or_name, trust_remote_code=trust_remote_code)
        ptuning = ptuning_task(lm, config.ptuning_path) if config.ptuning_path else None
        return Model(lm, ptuning, prompts, max_seq_len=config.max_seq_len)


class Model:
    """A model whose engine runs until `stop`.

    Args:
        lm: a causal model or an encoder-decoder.
        ptuning: a prefix in front of every request, or ``None``.
        prompts: static prompts, in front of requests that name them.
        max_seq_len: positions that a request may take; 0 is the model's context.

    Attributes:
        tokenizer: of the model.
        engine: runs the requests.
    """

    def __init__(
        self, lm: LanguageModel, ptuning: Task | None, prompts: list[StaticPrompt], *, max_seq_len: int = 0
    ) -> None:
        if not lm.causal and not lm.is_encoder_decoder:
            raise UnsupportedModel(
                f"{lm.name} ({lm.identity.architecture}) writes no text; give a causal model or an encoder-decoder."
            )
        self.tokenizer = lm.tokenizer
        self._task_prefixes = TaskPrefixes(lm, ptuning, prompts)
        self.engine = Engine(lm, max_model_len=max_seq_len or None)
        self._answers = Answers(self.engine)

    def submit(self, text: str, config: GenerateConfig) -> list[Stream]:
        """Submit the requests of one prompt. A stream that is garbage-collected cancels its request."""
        prompt = self._task_prefixes.prompt(config.task, text, all_ids=config.repetition_penalty != 1)
        params = config.sampling_params(self.tokenizer, partial(self._max_tokens, prompt))
        task = self._task_prefixes.task(config.task)
        return self._answers.submit(task, prompt, params, n=max(1, config.num_return_sequences))

    def _max_tokens(self, prompt: Prompt, usual: int) -> int:
        engine = self.engine
        return prompt.cap_max_tokens(usual, engine.context, is_encoder_decoder=engine.is_encoder_decoder)

    def stop(self) -> None:
        """Stop the engine; running requests end with an error."""
        self.engine.close()
