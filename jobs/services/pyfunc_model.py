"""The registered model's pyfunc: prompts in, greedy continuations out. Stored as code (no pickle) beside safetensors weights.

It loads weights and tokenizer only as they were signed by a trusted key. Its own code runs before that: who does not trust where the folder came
from checks all of it first, with `moeline model verify FOLDER`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


def _trusted(named: str | None) -> list[bytes]:
    from models.signature import KEY_FILE, SignatureRefused

    place = Path(named or os.environ.get("MOELINE_MODEL_KEY") or "")
    files = [place] if place.is_file() else sorted(place.glob("*.pub")) if place.is_dir() and place != Path() else []
    if not files:
        raise SignatureRefused(
            "No public key is known to check this model's signature with. Put the key published with its card into a file, or name the folder keys of the home "
            f"that registered it ({KEY_FILE} lies there): MOELINE_MODEL_KEY=FILE_OR_FOLDER."
        )
    return [file.read_bytes() for file in files]


class MoelineModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """``predict`` takes a DataFrame with a column ``prompt`` (or a list of strings) and the parameter ``max_new_tokens``."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer of the Hugging Face folder that was stored with this model.

        The trusted public keys: the model config ``public_key_file`` or the environment variable MOELINE_MODEL_KEY, a file or a folder of
        ``*.pub``. Raises models.signature.SignatureRefused where the folder is not what one of them signed, or no key is named.
        """
        from tokenizers import Tokenizer

        from models import huggingface, signature

        folder = context.artifacts["model"]
        signature.verify(Path(folder), _trusted((context.model_config or {}).get("public_key_file")))
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
