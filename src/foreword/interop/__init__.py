"""Import of PEFT and THUDM P-tuning v2 checkpoints as tasks, and export of tasks as PEFT folders."""
