"""Many questions about cached videos: the part of the prompt they share is computed once."""

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.cache_utils import DynamicLayer

from pipeline.encoders.checkpoint import first_line, require_vocabulary
from pipeline.encoders.origin import require_made_by
from pipeline.encoders.wrappers import adapter_state, find_model
from pipeline.generation import reads_prompt, settle
from pipeline.prefill import PrefillInputs, build_prefill, check_belonging
from pipeline.prompt_arguments import as_count, as_name, as_questions, as_tokenizer, as_videos
from pipeline.store.video import CachedVideo
from schemas.errors import PrefillError

MAX_PREFIXES = 4
"""KV caches of prompt heads held at a time; the least recently used is dropped."""


class Session:
    """Answers questions about one or more cached videos.

    The KV cache of the prompt up to the end of the last video is computed once per prompt head and
    copied for each question; it is never cropped, so models whose cache cannot be cropped work.
    A KV cache is found by what went into it (the videos' keys and row counts, every id and position
    of the head, the model's weights by place and version, which adapters are active), so it is not
    stale when anything of that changes, weights changed in place by torch operations included (not
    through ``.data``).

    Answers equal those of ``model.generate(**video.prefill(...))`` up to the rounding of other
    matrix shapes: about 1e-6 of the logits in float32, 2e-2 in bfloat16.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        video: CachedVideo | Sequence[CachedVideo],
        *,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check that model, tokenizer and videos belong together; nothing is computed yet.

        Args:
            model: of the checkpoint that made the cache, in any floating type, with a quantised or
                tuned language model or with adapters; also inside torch.compile, DataParallel,
                DistributedDataParallel or PEFT.
            tokenizer: of the same checkpoint, or its processor.
            video: a loaded one or several, in the order of the prompt.
            checkpoint: local directory or hub id of the model's checkpoint, for a model that does
                not say where it was loaded from. It is believed.

        Raises:
            PrefillError: arguments of another kind or in another order, or videos of different
                encoders.
            ModelError: no such model, its checkpoint did not make the cache or is not found, or the
                tokenizer is of another one.
        """
        self._runs = find_model(model)
        self._model = self._runs.plain
        self._tokenizer = as_tokenizer(tokenizer)
        self._videos = as_videos(video)
        check_belonging(self._videos, self._tokenizer)
        manifest, name = self._videos[0].manifest, as_name(checkpoint)
        directory = require_made_by(self._model, manifest, checkpoint=name)
        if directory is not None:
            require_vocabulary(self._tokenizer, directory)
        self._prefixes: OrderedDict[str, Any] = OrderedDict()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    def ask(
        self,
        question: str,
        *,
        system: str | None = None,
        max_new_tokens: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> str:
        """Answer one question; greedy unless a ``generation_config`` says otherwise.

        Args:
            question: text.
            system: system text before the video.
            max_new_tokens: of the answer, where ``generation_config`` does not say.
            generation_config: as transformers takes it, ``stop_strings`` included. What a session
                cannot do is refused by name: another KV cache, lengths that count the prompt,
                several answers.

        Raises:
            PrefillError: a question or a setting that cannot be used.
            ModelError: another tokenizer than the cache's.
        """
        settings = self._settings(max_new_tokens, generation_config)
        inputs = self._inputs(question, system)
        past = copy.deepcopy(self._prefix(inputs))
        return self._generate([inputs], past, settings)[0]

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        system: str | None = None,
        max_new_tokens: int = 64,
        generation_config: GenerationConfig | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """Answer several questions, ``batch_size`` at a time, in their order.

        Shorter questions are padded between the prefix and the question. Models whose KV cache
        holds more than keys and values (linear attention) are asked one question at a time, and
        so is every model where a setting would read the padding (``no_repeat_ngram_size``,
        ``repetition_penalty`` and their like).

        Raises:
            PrefillError: as ``ask``, before anything is asked.
        """
        settings = self._settings(max_new_tokens, generation_config)
        batch_size = as_count(batch_size, "batch_size")
        if reads_prompt(settings, self._model.generation_config):
            batch_size = 1
        answers: list[str] = []
        for batch in self._batches(questions, system, batch_size):
            past = copy.deepcopy(self._prefix(batch[0]))
            answers += self._generate(batch, past, settings)
        return answers

    def next_logits(
        self, questions: Sequence[str], *, system: str | None = None, batch_size: int = 8
    ) -> Tensor:
        """What the model would say first to each question: one forward per batch, no sampling.

        Args:
            questions: Q of them; shorter ones are padded as in ``ask_many``.
            system: system text before the video.
            batch_size: questions in one forward; each holds a copy of the video's KV cache.

        Returns:
            ``(Q, vocabulary)`` float32 on the CPU, before any processing by a generation config.
        """
        vocabulary = self._model.config.get_text_config().vocab_size
        found = [torch.empty(0, vocabulary)]
        for batch in self._batches(questions, system, batch_size):
            past = copy.deepcopy(self._prefix(batch[0]))
            if len(batch) > 1:
                past.batch_repeat_interleave(len(batch))
            input_ids, attention_mask, position_ids = _padded(batch, self._pad_id())
            start, device = batch[0].prefix_length, self._model.device
            with torch.inference_mode():
                output = self._runs.runs(
                    input_ids=input_ids[:, start:].to(device),
                    attention_mask=attention_mask.to(device),
                    position_ids=position_ids[..., start:].to(device),
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                )
            found.append(output.logits[:, -1].float().cpu())
        return torch.cat(found)

    def _batches(
        self, questions: Sequence[str], system: str | None, batch_size: int
    ) -> Iterator[list[PrefillInputs]]:
        """Prompts of at most ``batch_size`` questions each, in their order."""
        batch_size = as_count(batch_size, "batch_size")
        prompts = [self._inputs(question, system) for question in as_questions(questions)]
        if not prompts:
            return
        size = batch_size if _is_plain(self._prefix(prompts[0])) else 1
        for first in range(0, len(prompts), size):
            yield prompts[first : first + size]

    def _inputs(self, question: str, system: str | None) -> PrefillInputs:
        return build_prefill(self._videos, self._tokenizer, question, system=system)

    def _prefix(self, inputs: PrefillInputs) -> Any:
        """The KV cache of the prompt head, from memory or computed now."""
        length = inputs.prefix_length
        key = self._prefix_key(inputs)
        if key not in self._prefixes:
            given = inputs.to(self._model.device, self._model.dtype)
            with torch.inference_mode():
                output = self._runs.runs(
                    input_ids=given.input_ids[:, :length],
                    attention_mask=torch.ones_like(given.input_ids[:, :length]),
                    position_ids=given.position_ids[..., :length],
                    mm_encoder_outputs=given["mm_encoder_outputs"],
                    use_cache=True,
                    logits_to_keep=1,
                )
            self._prefixes[key] = output.past_key_values
            if len(self._prefixes) > MAX_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _prefix_key(self, inputs: PrefillInputs) -> str:
        length = inputs.prefix_length
        digest = hashlib.sha256()
        for video in self._videos:
            digest.update(f"{video.selection} ".encode())
        digest.update(f"{self._model.dtype} {self._model.device} {length} ".encode())
        digest.update(repr(adapter_state(self._model)).encode())
        for weight in self._model.parameters():
            version = 0 if weight.is_inference() else weight._version
            digest.update(f"{weight.data_ptr()} {version} ".encode())
        digest.update(inputs.input_ids[:, :length].cpu().numpy().tobytes())
        digest.update(inputs.position_ids[..., :length].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _generate(
        self,
        batch: Sequence[PrefillInputs],
        past: Any,
        settings: GenerationConfig,
    ) -> list[str]:
        copies = len(batch) * (settings.num_beams or 1)
        if copies > 1:
            past.batch_repeat_interleave(copies)
        input_ids, attention_mask, position_ids = _padded(batch, self._pad_id())
        try:
            with torch.inference_mode():
                generated = self._runs.generate(
                    input_ids=input_ids.to(self._model.device),
                    attention_mask=attention_mask.to(self._model.device),
                    position_ids=position_ids.to(self._model.device),
                    past_key_values=past,
                    generation_config=settings,
                    tokenizer=self._tokenizer,
                )
        except ValueError as error:
            raise PrefillError(
                f"transformers cannot generate with these settings: {first_line(error)}; use "
                "model.generate(**video.prefill(...)) for what a session cannot do"
            ) from error
        new_ids = getattr(generated, "sequences", generated)[:, input_ids.shape[1] :]
        return list(map(str, self._tokenizer.batch_decode(new_ids, skip_special_tokens=True)))

    def _settings(self, max_new_tokens: int, given: GenerationConfig | None) -> GenerationConfig:
        own = self._model.generation_config
        return settle(given, own, max_new_tokens=max_new_tokens, pad_id=self._pad_id())

    def _pad_id(self) -> int:
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        return int(pad if pad is not None else end)


def _padded(batch: Sequence[PrefillInputs], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of prompts of equal length, padded right after the shared prefix."""
    longest = max(inputs.input_ids.shape[1] for inputs in batch)
    ids, masks, positions = [], [], []
    for inputs in batch:
        split, missing = inputs.prefix_length, longest - inputs.input_ids.shape[1]
        head, tail = inputs.input_ids[:, :split], inputs.input_ids[:, split:]
        pad = torch.full_like(tail[:, :1], pad_id).expand(1, missing)
        ids.append(torch.cat([head, pad, tail], dim=1))
        mask = torch.ones_like(ids[-1])
        mask[:, split : split + missing] = 0
        masks.append(mask)
        before, after = inputs.position_ids[..., :split], inputs.position_ids[..., split:]
        gap = torch.zeros_like(after[..., :1]).expand(4, 1, missing)
        positions.append(torch.cat([before, gap, after], dim=2))
    position_ids = torch.cat(positions, dim=1)
    position_ids[0] = torch.arange(longest, device=position_ids.device)
    return torch.cat(ids), torch.cat(masks), position_ids


def _is_plain(past: Any) -> bool:
    """Whether a KV cache is nothing but keys and values, so that padding can be masked out."""
    return isinstance(past, DynamicCache) and all(type(x) is DynamicLayer for x in past.layers)
