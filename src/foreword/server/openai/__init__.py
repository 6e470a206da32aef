"""OpenAI's routes: chat and text completions, models; and vLLM's tokenize."""
