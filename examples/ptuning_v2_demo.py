"""P-tuning v2 实战：一个文件，从头读到尾。 P-tuning v2 in one file, to be read from top to bottom.

    python examples/ptuning_v2_demo.py                      # 训练、保存、生成 train, save, generate
    python examples/ptuning_v2_demo.py --generate-only      # 重新加载，只生成 load what was saved, and answer
    python examples/ptuning_v2_demo.py --generate-only --ask 处理退款 "台灯怎么退钱？订单1234。"
    python examples/ptuning_v2_demo.py --answer-only --prompt-length 64 --encoder lstm --lora --bf16
    python examples/ptuning_v2_demo.py --resume --epochs 3  # 从最后一个检查点继续 go on from the last checkpoint

P-tuning v2 在模型的每一层注入可学习的键和值，模型本身一个参数也不动。很多教程用的 PEFT `PromptEncoder`
其实是 P-tuning v1：它只学习输入端的嵌入。
P-tuning v2 learns keys and values in every layer (Liu et al. 2022, arXiv:2110.07602) of a model that stays frozen.
PEFT's `PromptEncoder`, which many tutorials call P-tuning v2, is P-tuning v1: it learns input embeddings only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import foreword
from foreword.core import Batch, Task
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.lora import LoRA, PrefixAndLoRA
from foreword.prompts.lower import empty_prefix
from foreword.prompts.prefix import PrefixValues, PTuningV2, initial_prefix
from foreword.prompts.reparam import BiLSTM, ResidualReparam
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.modules.trainable_prompt import TrainablePrompt

TASK = "customer-service"
TEMPLATE = "指令：{instruction}\n输入：{input}\n回答：{target:output}"
IGNORED = -100  # 这里不计损失 no loss is taken here


# ------------------------------------------------------------------------------------------ 1. 配置 Settings
@dataclass
class PTuningConfig:
    """Every field is a flag of the command line: ``prompt_length`` is ``--prompt-length``."""

    model_name: str = field(default="smollm2-135m", metadata={"help": "built-in name, folder, .gguf file or Hub id"})
    prompt_length: int = field(default=32, metadata={"help": "virtual tokens in every layer"})
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    output_dir: str = "runs/ptuning-v2-demo"
    bf16: bool = field(default=False, metadata={"help": "frozen model in bfloat16; the prefix learns in float32"})
    fp16: bool = field(default=False, metadata={"help": "frozen model in float16, with loss scaling (CUDA)"})
    epochs: float = 1
    lr: float = 3e-4
    per_device_train_batch_size: int = 2
    logging_steps: int = 5
    max_steps: int = field(default=-1, metadata={"help": "stop early; -1 runs all epochs"})
    answer_only: bool = field(default=False, metadata={"help": "loss of the answer alone, not of the question"})
    encoder: Literal["mlp", "lstm", "none"] = field(
        default="mlp",
        metadata={"help": "network that the prefix learns through, dropped afterwards; none wants --lr 0.005"},
    )
    lora: bool = field(default=False, metadata={"help": "learn a LoRA beside the prefix"})
    held_out: float = field(default=0.1, metadata={"help": "share of the rows that is evaluated and never learned"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations, for less memory"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run code that comes with the model"})
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: int = 42

    @property
    def dtype(self) -> str:
        """Of the frozen model. What is learned is float32 always."""
        if self.bf16 and self.fp16:
            raise SystemExit("--bf16 and --fp16 exclude each other; choose one.")
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


# ------------------------------------------------------------------------------------------ 2. 数据 Data
ITEMS = ("蓝牙耳机", "电饭煲", "台灯", "羽绒服", "跑步鞋", "行李箱", "机械键盘", "保温杯", "加湿器", "双肩包")
# 指令、几种问法、答复 an instruction, ways to ask, the reply
TOPICS = (
    (
        "查询物流",
        ("订单{order}的{item}到哪里了？", "{item}还没收到，订单{order}。", "订单{order}发货了吗？我买了{item}。"),
        "您好，订单{order}的{item}已经发货，三天内送达。",
    ),
    (
        "处理退款",
        ("{item}不想要了，订单{order}。", "订单{order}的{item}退款还没到账。", "{item}怎么退钱？订单{order}。"),
        "您好，{item}的退款七天内原路退回，订单{order}。",
    ),
    (
        "处理换货",
        ("{item}有划痕，订单{order}。", "订单{order}的{item}尺寸不对。", "{item}是坏的，能换吗？订单{order}。"),
        "很抱歉，我们明天上门取件，为您更换{item}，订单{order}。",
    ),
    (
        "开具发票",
        ("订单{order}的{item}能开发票吗？", "{item}的发票没收到，订单{order}。", "请补开{item}的发票，订单{order}。"),
        "您好，{item}的发票今天发到您的邮箱，订单{order}。",
    ),
    (
        "修改地址",
        (
            "订单{order}的{item}地址填错了。",
            "{item}能改寄到公司吗？订单{order}。",
            "我搬家了，{item}寄新家，订单{order}。",
        ),
        "好的，请回复新地址，我们改寄{item}，订单{order}。",
    ),
)


def build_dataset(count: int = 200, seed: int = 0) -> list[dict[str, str]]:
    """Rows ``{instruction, input, output}`` of a shop's customer service; a seed names a data set."""
    source = random.Random(seed)
    rows = []
    for index in range(count):
        instruction, questions, reply = TOPICS[index % len(TOPICS)]
        slots = {"order": source.randint(1000, 9999), "item": source.choice(ITEMS)}
        question = source.choice(questions).format(**slots)
        rows.append({"instruction": instruction, "input": question, "output": reply.format(**slots)})
    source.shuffle(rows)
    return rows


def format_sample(sample: Mapping[str, str]) -> tuple[str, str]:
    """``指令：… 输入：… 回答：`` and the answer behind it."""
    return f"指令：{sample['instruction']}\n输入：{sample['input']}\n回答：", sample["output"]


def tokenize(tokenizer: Any, sample: Mapping[str, str], answer_only: bool) -> dict[str, list[int]]:
    """``{input_ids, labels}`` of one row. Question and answer are tokenized apart, as they will be when served."""
    question, answer = format_sample(sample)
    question_ids = tokenizer(question).input_ids
    answer_ids = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {
        "input_ids": question_ids + answer_ids,
        "labels": ([IGNORED] * len(question_ids) if answer_only else question_ids) + answer_ids,
    }


def split(rows: list[dict[str, str]], held_out: float) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """学习用的行和留出的行；行已经打乱。 Rows to learn from, and the last ones, held out; rows are shuffled."""
    count = round(held_out * len(rows))
    if not 0 <= count < len(rows):
        raise SystemExit(f"--held-out {held_out} leaves none of {len(rows)} rows to learn from; give a share below 1.")
    return rows[: len(rows) - count], rows[len(rows) - count :]


def collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, list[list[int]]]:
    """不补齐：一个批次就是首尾相接的一行。 No padding: the rows of a batch are laid end to end."""
    return {name: [row[name] for row in rows] for name in ("input_ids", "labels")}


# ------------------------------------------------------------------------------------------ 3. 模型 Model
class PTuningModel(nn.Module):
    """冻结的模型和可训练的前缀。 The frozen model, and the prefix that learns.

    Only the encoder is a submodule: optimizer and checkpoints see what is learned and nothing else.
    """

    def __init__(self, lm: LanguageModel, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self._lm = lm

    def forward(self, input_ids: list[list[int]], labels: list[list[int]]) -> dict[str, Tensor]:
        front = self.encoder.front()  # 每一层的键和值 keys and values of every layer, with gradients
        rows = [ids[:-1] for ids in input_ids]  # 每个 token 预测下一个 every token predicts the next one
        targets = torch.tensor([label for row in labels for label in row[1:]], device=self._lm.device)
        counted = (targets != IGNORED).nonzero()[:, 0]
        logits = self._lm.logits(Batch.from_rows(front, rows, device=self._lm.device), counted)
        return {"loss": F.cross_entropy(logits.float(), targets[counted])}


def inject(lm: LanguageModel, config: PTuningConfig, text: str) -> PTuningModel:
    """Put a prefix of ``prompt_length`` positions in front, in every layer.

    It starts as the keys and values of a real text, which learns several times faster than from random numbers.
    """
    encoders = {"mlp": PTuningV2(projection=True).encoder, "lstm": lstm_encoder, "none": PTuningV2().encoder}
    generator = torch.Generator().manual_seed(config.seed)
    encoder = encoders[config.encoder](lm, init.from_text(lm, text)(config.prompt_length, generator))
    if config.lora:
        encoder = PrefixAndLoRA(encoder, LoRA().encoder(lm, InitialValues(0, generator)))
    return PTuningModel(lm, encoder)


def lstm_encoder(lm: LanguageModel, start: InitialValues) -> PrefixValues:
    """An LSTM over the virtual tokens, as in P-tuning v1, that makes the keys and values of every layer at once."""
    width = lm.identity.hidden_size

    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        inputs = torch.randn(start.length, width, generator=start.generator).to(initial)
        return inputs, ResidualReparam(initial, BiLSTM(width, width // 2), nn.Linear(width // 2 * 2, initial.shape[1]))

    return PrefixValues(initial_prefix(lm, start), lm.dtype, reparam=reparam)


# ------------------------------------------------------------------------------------------ 4. 训练 Train
def train(lm: LanguageModel, config: PTuningConfig, *, resume: bool = False) -> PTuningModel:
    samples, held = split(build_dataset(), config.held_out)
    rows, held_rows = ([tokenize(lm.tokenizer, each, config.answer_only) for each in part] for part in (samples, held))
    model = inject(lm, config, "\n\n".join("".join(format_sample(sample)) for sample in samples[:8]) + "\n\n")
    learned = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(parameter.numel() for parameter in lm.model.parameters())
    print(f"可训练参数 learned: {learned:,}; 冻结参数 frozen: {frozen:,}")
    trainer = Trainer(
        model, arguments(lm, config), train_dataset=rows, eval_dataset=held_rows or None, data_collator=collate
    )
    # 只有各层自己重算，冻结模型的其余部分保持 eval 模式 only the layers run again; all else stays in eval mode
    with gradient_checkpointing(lm, config.gradient_checkpointing):
        trainer.train(resume_from_checkpoint=last_checkpoint(config) if resume else None)
    return model


def last_checkpoint(config: PTuningConfig) -> str:
    """每个 epoch 保存一次：前缀、优化器、随机数。 One is saved each epoch: what is learned, optimizer, random state."""
    folder = Path(config.output_dir)
    if (found := get_last_checkpoint(config.output_dir) if folder.is_dir() else None) is None:
        raise SystemExit(f"{folder} has no checkpoint to resume from; run without --resume first.")
    return found


def arguments(lm: LanguageModel, config: PTuningConfig) -> TrainingArguments:
    if config.fp16 and lm.device.type != "cuda":
        raise SystemExit(f"--fp16 needs the loss scaling of CUDA, and the model is on {lm.device}; use --bf16.")
    made = TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.lr,
        logging_steps=config.logging_steps,
        fp16=config.fp16,  # bf16 无需缩放 bfloat16 needs no loss scaling: the frozen model is loaded in it, that is all
        seed=config.seed,
        save_strategy="epoch",
        eval_strategy="epoch" if config.held_out else "no",
        per_device_eval_batch_size=config.per_device_train_batch_size,
        prediction_loss_only=True,
        report_to="none",
        remove_unused_columns=False,
        use_cpu=lm.device.type == "cpu",
    )
    made._n_gpu = min(made.n_gpu, 1)  # DataParallel cannot cut a ragged batch
    return made


# ------------------------------------------------------------------------------------------ 5. 保存与加载 Save and load
def save(lm: LanguageModel, model: PTuningModel, config: PTuningConfig) -> Task:
    """Prefix into a bank, tokenizer and settings beside it. The frozen model is not copied."""
    method = "lora-hybrid" if config.lora else "p-tuning-v2"
    task = Task(TASK, method, empty_prefix(lm), template=TEMPLATE, generation={"max_tokens": 80})
    folder = Path(config.output_dir)
    published = foreword.Bank(folder / "bank").publish(TrainablePrompt(model.encoder).to_task(lm, task), replace=True)
    lm.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(asdict(config), ensure_ascii=False, indent=2), encoding="utf-8")
    print(f"已保存 saved: {published.ref}, {published.nbytes / 1e6:.2f} MB, {folder}")
    return published


def load(folder: Path, device: str, trust_remote_code: bool) -> tuple[LanguageModel, Task]:
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} holds no saved run; train first, or give another --output-dir.")
    config = PTuningConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    # 信任由运行的人给出，不由文件给出 trust is given by who runs it, not by a file
    lm = foreword.load_model(config.model_name, dtype=config.dtype, device=device, trust_remote_code=trust_remote_code)
    task = foreword.Bank(folder / "bank").load(TASK)
    task.prefix.model.check(lm.identity, f"task '{TASK}'")
    return lm, task


# ------------------------------------------------------------------------------------------ 6. 生成 Generate
def generate(lm: LanguageModel, task: Task, samples: Sequence[Mapping[str, str]]) -> list[str]:
    """用户只给文字，前缀由引擎注入。 Callers give text only; the engine puts the prefix in front by itself."""
    with foreword.Engine(lm) as engine:
        return [answer.text.strip() for answer in engine.generate_many(samples, task)]


def show(lm: LanguageModel, task: Task, samples: Sequence[Mapping[str, str]]) -> None:
    bare = replace(task, prefix=empty_prefix(lm), adapter=None)
    for sample, before, after in zip(samples, generate(lm, bare, samples), generate(lm, task, samples), strict=True):
        print(f"\n{sample['instruction']} | {sample['input']}")
        print(f"  没有前缀 without the prefix: {before[:60]!r}")
        print(f"  注入前缀 with the prefix:    {after!r}")


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(argv)
    samples = build_dataset(3, seed=1)  # 没见过的问题 questions that were not learned
    if options.ask:
        samples = [{"instruction": options.ask[0], "input": options.ask[1]}]
    if options.generate_only:
        return show(*load(Path(config.output_dir), config.device, config.trust_remote_code), samples)
    if options.resume:
        last_checkpoint(config)  # 先检查，再加载模型 checked before the model is loaded
    set_seed(config.seed)
    lm = foreword.load_model(
        config.model_name, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    task = save(lm, train(lm, config, resume=options.resume), config)
    show(lm, task, samples)
    print(f"\n部署 serve it: foreword serve --model {config.model_name} --bank {config.output_dir}/bank")


def parse(argv: Sequence[str] | None) -> tuple[PTuningConfig, argparse.Namespace]:
    parser = HfArgumentParser(PTuningConfig, description="P-tuning v2 on customer-service rows.")
    parser.add_argument(
        "--full-loss", dest="answer_only", action="store_false", help="loss of the whole text (default)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output-dir")
    parser.add_argument("--generate-only", action="store_true", help="answer with what --output-dir holds")
    parser.add_argument("--ask", nargs=2, metavar=("指令", "输入"), help="instruction and input of a question")
    config, options = parser.parse_args_into_dataclasses(argv)
    given = {name for name, value in asdict(config).items() if value != getattr(PTuningConfig(), name)}
    if options.generate_only and (ignored := given - {"output_dir", "device", "trust_remote_code"}):
        raise SystemExit(f"--generate-only takes {', '.join(sorted(ignored))} from the folder; leave it out.")
    return config, options


if __name__ == "__main__":
    main()
