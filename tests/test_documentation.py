"""What README and the pages of ``docs/`` tell a reader to type runs as it is written, from an empty folder.

Here with a tiny model of the built-in model's tokenizer, so that learning takes seconds; the slow test takes the
built-in model itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from documented_commands import blocks, run_page
from foreword.models.load import pull

ROOT = Path(__file__).parents[1]
# The blocks of the architecture are parts of files, which `test_architecture.py` runs.
PAGES = [
    page
    for page in [*ROOT.glob("README*.md"), *sorted((ROOT / "docs").glob("*.md"))]
    if page.name != "architecture.md" and blocks(page)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model that reads and chats as the built-in one does."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(pull("smollm2-135m", print))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_first_screen_of_the_readme_runs_as_written(tmp_path, model):
    run_page(ROOT / "README.md", tmp_path, model, until="## A long text")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_runs_as_written(page, tmp_path, model):
    run_page(page, tmp_path, model)


@pytest.mark.slow
def test_the_readme_runs_as_written_with_the_built_in_model(tmp_path):
    run_page(ROOT / "README.md", tmp_path, "smollm2-135m")
