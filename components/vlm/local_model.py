"""Any image-text-to-text model of `transformers`, from a folder of weights on this machine.

Nothing is fetched, no code of the folder is run, and only safetensors are read. Questions are
answered one at a time, so that an answer depends on nothing but its own question; to answer many at
once, serve the model and use `endpoint.py`.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.outputs import sha256
from components.vlm.dialogue import Dialogue, Reply

READ = (".safetensors", ".json", ".jinja", ".txt", ".model")  # what transformers reads of a folder


class LocalModel:
    """`dialogue.Model` on a folder of weights; loaded when it is first asked."""

    captioner = "transformers"

    def __init__(
        self,
        folder: Path,
        digest: str,
        device: str,
        decoding: dict[str, Any],
        section: str,
    ) -> None:
        """UserError when the folder's digest is not `digest`, which pins what a run used.

        `section` of the values names it in messages.
        """
        self.folder, self.device, self.section = folder, device, section
        self.digest, self.settings = weights_digest(folder, section), decoding
        self.decoding = json.dumps(decoding | {"device": device}, sort_keys=True)  # other numbers
        if self.digest != digest:
            raise UserError(
                f"{self.section}.model_digest: expected that of {folder}, which is {self.digest}; "
                f"got {digest or 'none'}. Set it to that, if these are the weights that you mean."
            )

    def sent(self) -> dict[str, int]:
        """Nothing: no network is used."""
        return {}

    def replies(self, dialogues: list[Dialogue]) -> list[Reply]:
        """One reply for each dialogue."""
        return [self._reply(dialogue) for dialogue in dialogues]

    def _reply(self, dialogue: Dialogue) -> Reply:
        import torch

        processor, model = self._loaded
        inputs = processor.apply_chat_template(
            self._messages(dialogue),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, dtype=model.dtype)
        torch.manual_seed(self.settings["seed"])
        warm = self.settings["temperature"] > 0
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=self.settings["max_new_tokens"],
                do_sample=warm,
                **({"temperature": self.settings["temperature"]} if warm else {}),
            )
        asked = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        (text,) = processor.batch_decode(output[:, asked:], skip_special_tokens=True)
        return Reply(text, "", int(inputs["input_ids"].shape[1]), int(output.shape[1] - asked))

    def _messages(self, dialogue: Dialogue) -> list[dict[str, Any]]:
        picture = {"type": "image", "image": dialogue.question.picture}
        messages = [_message("user", self._plain(dialogue.question.text), picture)]
        for turn in dialogue.turns:
            messages.append(_message("assistant", self._plain(turn.reply)))
            messages.append(_message("user", self._plain(turn.then)))
        return messages

    def _plain(self, text: str) -> str:
        """Text without the model's own marks: words of a data set are data, never markup."""
        processor, _ = self._loaded
        marks = set(getattr(processor.tokenizer, "all_special_tokens", []))
        marks |= {str(getattr(processor, name, "")) for name in ("image_token", "video_token")}
        for mark in sorted(filter(None, marks), key=len, reverse=True):
            text = text.replace(mark, " ")
        return text

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Processor and model. UserError when the folder has none that can be used."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"{self.section}.device: cuda, but no GPU is visible here; use cpu.")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(self.folder, **local)
            model = AutoModelForImageTextToText.from_pretrained(
                self.folder,
                use_safetensors=True,
                dtype=torch.float32 if self.device == "cpu" else torch.bfloat16,
                **local,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"{self.section}.model: {self.folder} cannot be used: {error}. Expected an "
                "image-text-to-text model of transformers, with safetensors, a processor and a "
                "chat template."
            ) from error
        if not getattr(processor, "chat_template", None):
            raise UserError(
                f"{self.section}.model: {self.folder} has no chat template; name another."
            )
        return processor, model.to(self.device).eval()


def weights_digest(folder: Path, section: str) -> str:
    """sha256 over the names and digests of the files that transformers reads."""
    files = [p for p in sorted(folder.glob("*")) if p.suffix in READ and p.is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(
            f"{section}.model: {folder} has no *.safetensors; expected a folder of weights as "
            "transformers saves it (pickled weights are not read)."
        )
    lines = "".join(f"{path.name}\0{sha256(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _message(role: str, text: str, *pictures: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [*pictures, {"type": "text", "text": text}]}
