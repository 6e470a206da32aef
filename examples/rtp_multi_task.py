"""rtp-llm's documented program on Foreword: static prompts by ``task_id``; only its import lines and paths are new.

    python examples/rtp_multi_task.py
    PTUNING_PATH=runs/prefix python examples/rtp_multi_task.py      # a learned prefix in front of all of it

docs/rtp-llm.md says what maps to what.
"""

import os
from pathlib import Path

from foreword.interop.rtp import ModelConfig, ModelFactory, Pipeline

os.environ["MULTI_TASK_PROMPT"] = str(Path(__file__).with_name("multi_task_prompt.json"))
model_name = os.environ.get("FOREWORD_MODEL", "smollm2-135m")
model_config = ModelConfig(ptuning_path=os.environ.get("PTUNING_PATH"))
model = ModelFactory.from_huggingface(model_name, model_config)
pipeline = Pipeline(model, model.tokenizer)

prompts = ["hello, what's your name<|im_end|>\n<|im_start|>assistant\n"]

# the static prompt number 1 stands in front, and is not computed again
generate_config = {"top_k": 1, "max_new_tokens": 40, "task_id": "1"}
for res in pipeline(prompts, generate_config=generate_config):
    print(res.batch_response)

# nothing stands in front but the learned prefix, if there is one
generate_config = {"top_k": 1, "max_new_tokens": 40}
for res in pipeline(prompts, generate_config=generate_config):
    print(res.batch_response)

pipeline.stop()
