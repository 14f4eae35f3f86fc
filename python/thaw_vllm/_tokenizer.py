"""The engine's tokenizer with the names that Hugging Face's have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MAX_CACHED = 1 << 16


class Tokenizer:
    """Encodes and decodes as the engine does, since the engine does it. Safe for threads."""

    def __init__(
        self, call: Callable[[str, str, dict[str, Any]], Any], name: str, vocab_size: Callable[[], int]
    ):
        self._call = call
        self._vocab_size = vocab_size
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()
        self.name_or_path = name

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self._vocab_size()

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens in it count as such."""
        body = {"prompt": text, "add_special_tokens": add_special_tokens}
        return [int(token) for token in self._call("POST", "/tokenize", body)["tokens"]]

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """{input_ids, attention_mask}, of one text or of each of several."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        each = [self.encode(one, add_special_tokens) for one in text]
        return {"input_ids": each, "attention_mask": [[1] * len(ids) for ids in each]}

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids. `skip_special_tokens` leaves out those whose text is <|...|> or <...>."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        if skip_special_tokens:
            ids = [token for token in ids if not self._is_special(token)]
        return str(self._call("POST", "/detokenize", {"tokens": ids})["prompt"]) if ids else ""

    def batch_decode(
        self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False
    ) -> list[str]:
        """decode() of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The texts of encode(text)'s tokens, without those that are added."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token alone."""
        return [self.text_of(int(token)) for token in token_ids]

    def text_of(self, token_id: int) -> str:
        """The text of one token, remembered."""
        with self._lock:
            known = self._texts.get(token_id)
        if known is not None:
            return known
        text = self.decode([token_id])
        with self._lock:
            if len(self._texts) < _MAX_CACHED:
                self._texts[token_id] = text
        return text

    def _is_special(self, token_id: int) -> bool:
        text = self.text_of(token_id)
        return (
            len(text) > 2
            and text.startswith("<")
            and text.endswith(">")
            and len(self.encode(text, False)) == 1
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> Any:
        """Messages by the model's own template: token ids, or their text with `tokenize=False`."""
        body: dict[str, Any] = {
            "messages": [dict(message) for message in conversation],
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        ids = [int(token) for token in self._call("POST", "/tokenize", body)["tokens"]]
        return ids if tokenize else self.decode(ids)
