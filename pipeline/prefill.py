"""Cached tokens to the inputs of one prefill: ids, positions and features, never apart.

Features enter a transformers model through its declared ``mm_encoder_outputs`` argument
(transformers >= 5.18). Positions are always given: without them a model falls back to plain text
positions and answers wrongly without an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from pipeline.encoders.checkpoint import check_tokenizer
from pipeline.prompt_arguments import as_tokenizer, as_videos, check_texts
from pipeline.store.video import CachedVideo
from schemas.errors import PrefillError

VIDEO_PAD = "<|video_pad|>"

INPUT_NAMES = ("input_ids", "attention_mask", "position_ids", "mm_encoder_outputs")


@dataclass(frozen=True, slots=True, eq=False)
class PrefillInputs(Mapping[str, Any]):
    """Everything ``model.generate(**inputs)`` or ``model(**inputs)`` needs for one prompt.

    As a mapping it has ``input_ids`` (1, L), ``attention_mask`` (1, L), ``position_ids`` (4, 1, L)
    int64 (row 0 counts 0..L-1, rows 1-3 are t, y, x) and ``mm_encoder_outputs``. The latter is made
    afresh at each access: generation with beams changes the object it is given.

    ``embeddings`` is ``(N, D)`` and ``deepstack`` ``(S, N, D)`` in prompt order. The first
    ``prefix_length`` columns do not depend on the question.
    """

    input_ids: Tensor
    position_ids: Tensor
    embeddings: Tensor
    deepstack: Tensor
    prefix_length: int

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs":
            return {"video": self._encoder_outputs()}
        if name == "attention_mask":
            return torch.ones_like(self.input_ids)
        if name in INPUT_NAMES:
            return getattr(self, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(INPUT_NAMES)

    def __len__(self) -> int:
        return len(INPUT_NAMES)

    def __repr__(self) -> str:
        length, tokens = self.input_ids.shape[1], len(self.embeddings)
        return (
            f"PrefillInputs({length} columns, {tokens} visual tokens, "
            f"{len(self.deepstack)} DeepStack layers, {self.embeddings.dtype})"
        )

    def _encoder_outputs(self) -> BaseModelOutputWithDeepstackFeatures:
        per_video: Any = [self.embeddings]  # transformers declares a tensor and expects a list
        per_layer: Any = [[layer] for layer in self.deepstack]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=per_video, deepstack_features=per_layer or None
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "PrefillInputs":
        """The same inputs on another device, features in another floating type if given."""
        return PrefillInputs(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.embeddings.to(device, dtype),
            self.deepstack.to(device, dtype),
            self.prefix_length,
        )


def build_prefill(
    videos: CachedVideo | Sequence[CachedVideo],
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    question: str,
    *,
    system: str | None = None,
) -> PrefillInputs:
    """Build the inputs for one question about one or more cached videos, in the order given.

    The text around the videos comes from the tokenizer's chat template, as for the uncompressed
    prompt; each video's stretch and positions come from the cache. No model is seen here: whether
    it is the one that made the cache is for ``Session`` to check, or for whoever runs it.

    Args:
        videos: loaded from caches of one encoder.
        tokenizer: of the checkpoint that made them, or its processor.
        question: text.
        system: text before the videos.

    Raises:
        PrefillError: arguments of another kind, no chat template, one without a place for videos, a
            special token inside the question, videos of different encoders, or of another family
            than the tokenizer's.
        ModelError: the tokenizer writes timestamps or markers with other ids than the cache.
    """
    videos, tokenizer = as_videos(videos), as_tokenizer(tokenizer)
    check_belonging(videos, tokenizer)
    parts = split_prompt(tokenizer, question, num_videos=len(videos), system=system)
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    position = 0
    for text, video in zip(parts[:-1], videos, strict=True):
        position = _append_text(ids, positions, text, position)
        ids.append(video.input_ids.to(torch.int64).cpu())
        positions.append(video.position_ids.to(torch.int64).cpu() + position)
        position += video.next_position
    prefix_length = sum(len(chunk) for chunk in ids) + 1
    _append_text(ids, positions, parts[-1], position)
    input_ids = torch.cat(ids)
    position_ids_3L = torch.cat(positions, dim=1)
    position_ids_4L = torch.cat([torch.arange(len(input_ids))[None], position_ids_3L])
    device = videos[0].features.device
    return PrefillInputs(
        input_ids=input_ids[None].to(device),
        position_ids=position_ids_4L[:, None].to(device),
        embeddings=_joined([video.embeddings for video in videos], dim=0),
        deepstack=_joined([video.deepstack for video in videos], dim=1),
        prefix_length=prefix_length,
    )


def split_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, *, num_videos: int, system: str | None = None
) -> list[list[int]]:
    """Token ids of the text before, between and after the videos: ``num_videos + 1`` lists.

    The last one begins with the marker that closes the last video, so that the text before it and
    the question are tokenized apart.

    Raises:
        PrefillError: see ``build_prefill``.
    """
    if num_videos < 1:
        raise PrefillError("a prefill needs at least one video, got none")
    check_texts(question, system)
    for text in filter(None, (question, system)):
        special = next((t for t in _special_tokens(tokenizer) if t in text), None)
        if special is not None:
            raise PrefillError(
                f"the question or system text contains {special}, which the model would take for "
                "a marker and not for text; remove it"
            )
    content = [{"type": "video"}] * num_videos + [{"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    if not tokenizer.chat_template:
        raise PrefillError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; load it from the "
            "model's own checkpoint"
        )
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    texts = str(prompt).split(VIDEO_PAD)
    parts = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    end_marker = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    if len(parts) != num_videos + 1 or any(part[:1] != [end_marker] for part in parts[1:]):
        raise PrefillError(
            f"the chat template of {tokenizer.name_or_path!r} gives {len(texts) - 1} places of the "
            f"form <|vision_start|>{VIDEO_PAD}<|vision_end|> for {num_videos} videos; use the "
            "model's own tokenizer"
        )
    return parts


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {VIDEO_PAD, "<|image_pad|>", *(str(token) for token in added if token.special)}


def _append_text(
    ids: list[Tensor], positions: list[Tensor], text: Sequence[int], position: int
) -> int:
    ids.append(torch.tensor(text, dtype=torch.int64))
    positions.append(torch.arange(position, position + len(text)).expand(3, -1))
    return position + len(text)


def check_belonging(videos: Sequence[CachedVideo], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless one encoder made all of these videos, and this tokenizer is of its checkpoint.

    Raises:
        PrefillError: several encoders, or a tokenizer of another family.
        ModelError: a tokenizer that writes timestamps or markers with other ids.
    """
    _check_same_encoder(videos)
    _check_placeholders(videos, tokenizer)
    manifest = videos[0].manifest
    if not manifest.is_imported:
        check_tokenizer(tokenizer, manifest.encoder, repr(tokenizer.name_or_path))


def _check_same_encoder(videos: Sequence[CachedVideo]) -> None:
    for video in videos[1:]:
        mine, first = (_encoder_of(each) for each in (video, videos[0]))
        differing = ", ".join(
            f"{name} {theirs} and {value}"
            for (name, value), theirs in zip(mine.items(), first.values(), strict=True)
            if value != theirs
        )
        if differing:
            raise PrefillError(
                f"videos {videos[0].video_id!r} and {video.video_id!r} come from different "
                f"encoders ({differing}); use videos of caches that one checkpoint made"
            )


def _encoder_of(video: CachedVideo) -> dict[str, object]:
    encoder = video.manifest.encoder
    return {
        "model type": encoder.model_type,
        "width": video.hidden_size,
        "DeepStack layers": video.num_deepstack,
        "type": str(video.features.dtype),
        "weights digest": encoder.weights_digest[:12],
        "tokenizer digest": encoder.tokenizer_digest[:12],
    }


def _check_placeholders(videos: Sequence[CachedVideo], tokenizer: PreTrainedTokenizerBase) -> None:
    pad: Any = tokenizer.convert_tokens_to_ids(VIDEO_PAD)
    for video in videos:
        found = 0 if pad is None else int(torch.count_nonzero(video.input_ids == pad))
        if found != video.num_tokens:
            raise PrefillError(
                f"video {video.video_id!r} has {found} placeholders {VIDEO_PAD} (id {pad}) for "
                f"{video.num_tokens} cached tokens: the tokenizer {tokenizer.name_or_path!r} is "
                "not that of the model the cache was built with, or that model is neither Qwen3-VL "
                "nor Qwen2-VL and its prompts are not written here"
            )


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
