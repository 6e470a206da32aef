"""Methods that need more than an encoder and an optimizer: PET, AutoPrompt, ensembles, warm start, full fine-tuning."""
