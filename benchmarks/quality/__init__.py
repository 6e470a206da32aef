"""The `quality` workload: how good what was learned is, beside full fine-tuning and PEFT."""
