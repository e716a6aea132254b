"""The registered model's pyfunc: prompts in, greedy continuations out. Stored as code (no pickle) beside safetensors weights."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd


class MoelineModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """``predict`` takes a DataFrame with a column ``prompt`` (or a list of strings) and the parameter ``max_new_tokens``."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer of the Hugging Face folder that was stored with this model."""
        from tokenizers import Tokenizer

        from models import huggingface

        folder = context.artifacts["model"]
        self.model, self.config = huggingface.load(folder)
        self.model.eval()
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema; the signature is given
        """One continuation per prompt; a prompt longer than the model's context is cut on the left."""
        prompts = model_input["prompt"] if isinstance(model_input, pd.DataFrame) else model_input
        return [self._continue(str(prompt), int((params or {}).get("max_new_tokens", 32))) for prompt in prompts]

    def _continue(self, prompt: str, max_new_tokens: int) -> str:
        import torch

        ids = self.tokenizer.encode(prompt).ids or [0]
        new: list[int] = []
        with torch.inference_mode():
            for _ in range(max(1, max_new_tokens)):
                window = torch.tensor([(ids + new)[-self.config.max_seq_len :]])
                token = int(self.model.lm_head(self.model.hidden(window)[:, -1]).argmax())
                if token == 0:  # <|endoftext|>
                    break
                new.append(token)
        return str(self.tokenizer.decode(new))


mlflow.models.set_model(MoelineModel())
