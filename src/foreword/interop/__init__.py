"""Other people's checkpoints: what PEFT and THUDM's P-tuning v2 wrote becomes tasks, and tasks become PEFT folders."""
