"""Inputs of a lens: text and media to what the core receives, and copies of them with something changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lensplug.errors import LensplugError
from lensplug.hf import conversations, prompts
from lensplug.hf.conversations import Prompts, split_answers
from lensplug.hf.run_lock import in_turn
from lensplug.inputs import edited_inputs, other_media
from lensplug.inputs import multimodal_input as _inputs
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.media import load_media
from lensplug.media.processed_media import load_seen
from lensplug.positions.by_modality import Where, mask_at
from lensplug.running import generation
from lensplug.running.generation import Answer
from lensplug.validation.arguments import checked


class MakesInputs(WrappedModel):
    """The methods of a lens that make inputs, with the model's own processor, encoders and embedding table."""

    @in_turn
    @checked
    def prepare(
        self,
        text: Prompts,
        *,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        chat_template: bool = True,
        answer: str | Sequence[str] | None = None,
    ) -> MultimodalInput:
        """Text, images, videos and sounds to the input of the core.

            inputs = lens.prepare("What is the color? Answer single word.", images=["photo.jpg"])
            inputs = lens.prepare("What happens?", videos=["clip.mp4"])
            inputs = lens.prepare("How does the speaker sound?", audio=[(waveform, sampling_rate)])
            batch = lens.prepare(["What is this?", "And this?"], images=[[first], [second]])
            inputs = lens.prepare("What is the color? Answer single word.", images=["photo.jpg"], answer="Red")

        Args:
            text: One prompt, or a list of prompts for a batch. A prompt is a text, or a conversation: chat messages in
                Hugging Face's form (a list of dictionaries with `role` and `content`), whose parts hold their media
                ({"type": "image", "path": "photo.jpg"}) or refer to those of `images`, `videos` and `audio`, in their
                order. Where the assistant has the last word it is the answer.
            images: A list of PIL images, uint8 arrays or files, or a single one; for a batch, one list for
                each prompt. Photographs are turned as their EXIF says.
            videos: Files of videos (16 frames are taken; `lensplug.media.load_video` takes another number),
                frames (a list of images, or uint8 `[frame height width 3]`), or pairs of frames and how many of
                them there are in a second.
            audio: Files of sounds, or pairs of waveform and sampling rate. A rate that is not the encoder's
                is resampled, and a warning says so; another says what of a long sound the encoder does not hear.
                Each file is read as far as a memory limit allows, 1 GiB unless `lensplug.media.set_memory_limit`
                changes it.
            chat_template: Wrap each prompt as a user's turn with its media first. Without it the text
                is taken as it is and must hold the placeholders.
            answer: What the model is taken to answer, labelled "generated", as with `with_answer`: one for all prompts,
                one for each, or several for one prompt.

        Raises:
            LensplugError: If media and placeholders do not match, a file cannot be read, or the processor
                refuses.
        """
        if self.processor is None:
            raise LensplugError("this lens has no processor: run your own and use lens.encode(processor_outputs).")
        conversation_prompts, spoken = split_answers(conversations.read(text))
        if spoken is not None and answer is not None:
            raise LensplugError("the messages end with the assistant's answer, and answer= is given: give one of them.")
        outputs, media, pieces = prompts.prepare(
            self.processor,
            conversation_prompts,
            batched=conversations.is_batch(text),
            images=images,
            videos=videos,
            audio=audio,
            chat_template=chat_template,
        )
        inputs = _inputs.encode(self.hf_model, self.core, self.processor, outputs, given=media, pieces=pieces)
        words = spoken if answer is None else answer
        return inputs if words is None else self._with_answer(inputs, words).inputs

    @in_turn
    @checked
    def with_answer(self, inputs: MultimodalInput, text: str | Sequence[str]) -> Answer:
        """Append an answer of your own instead of a generated one (teacher forcing): what would make the model say it?

            answer = lens.with_answer(inputs, "Red")
            _, cache, grads = lens.run_with_gradients(answer.inputs, target=answer, keep="gradient_rollout")
            both = lens.with_answer(inputs, ["Red", "Blue"])          # of one prompt

        It can be used wherever an answer of `generate` can. The text is tokenised as it is, like a `target`, and
        nothing is
        added: an end-of-turn token counts only if the text contains it.

        Args:
            inputs: From `prepare` or `encode`; padded at the left, if at all.
            text: One answer for all prompts, one per prompt, or several for one prompt.

        Raises:
            LensplugError: If there is not one answer for each prompt, one has no tokens or holds a placeholder, or
                prompt and answer exceed the context.
        """
        return self._with_answer(inputs, text)

    def _with_answer(self, inputs: MultimodalInput, text: str | Sequence[str]) -> Answer:
        refuse_other_inputs(inputs)
        return generation.given(self.model, self.hf_model, self.core, self.tokenizer, inputs, text)

    @in_turn
    @checked
    def encode(
        self, processor_outputs: Mapping[str, Any], *, images: Any = None, videos: Any = None, audio: Any = None
    ) -> MultimodalInput:
        """The outputs of a processor to the input of the core; the decoder is not run.

        Args:
            processor_outputs: From the model's own processor.
            images: What the processor was given, as for `prepare`. Views draw over it, and most families need
                its size to locate tokens (with the settings of the lens's processor). Whether the
                processor saw a photograph as its EXIF turns it is found from its pixels; a warning says
                where they are of another image.
            videos: The same for videos: the frames that the processor received, not the file.
            audio: The same for sounds.

        Raises:
            LensplugError: If there are no tokens, or placeholders and media do not match.
        """
        media = load_seen(processor_outputs, self.processor, images=images, videos=videos, audio=audio)
        return _inputs.encode(self.hf_model, self.core, self.processor, processor_outputs, given=media)

    @in_turn
    @checked
    def without(self, inputs: MultimodalInput, positions: Where) -> Variant:
        """The same prompts with some positions removed, for `lens.model` and `logits_at`; later positions move up.

            lens.model(lens.without(inputs, "image"))

        Args:
            inputs: From `prepare` or `encode`.
            positions: A modality ("image"; "media" for every image, video and audio position), several, or a mask
                `[batch pos]`, True (or 1) where a position is left out.

        Raises:
            LensplugError: If there is no such modality, nothing is left of an example, or the model gives its core
                more than embeddings (Gemma 3, Qwen2-VL) and would have to see a part of its image, video or sound.
        """
        refuse_other_inputs(inputs)
        removed = mask_at(positions, inputs, inputs.tokens.shape, "positions")
        return edited_inputs.without(self.hf_model, self.core, inputs, removed)

    @in_turn
    @checked
    def with_media(
        self,
        inputs: MultimodalInput,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: Sequence[Any] | None = None,
    ) -> Variant:
        """One prompt with other media in the places of its own, several variants at once, for `lens.model`.

            lens.model(lens.with_media(inputs, images=[[picture], [grey]]))          # two variants

        The media go through the processor and the encoder, so every view of a picture shows the same. They have the
        sizes of those that they replace, and no position moves. A kind that is not given stays as it is.

        Args:
            inputs: One example from `prepare`, from `encode` with its media, or an answer's.
            images: For each variant the list of its images.
            videos: For each variant the list of its videos.
            audio: For each variant the list of its sounds.

        Raises:
            LensplugError: If nothing is given, lists differ in length, media are not of the number and sizes of those
                of the inputs, or the others of the inputs are not known.
        """
        refuse_other_inputs(inputs)
        lengths = {len(variants) for variants in (images, videos, audio) if variants is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise LensplugError(
                "other media are given as images=, videos= or audio=, a list for each variant, and of each kind for as"
                " many variants, at least one."
            )
        n_variants = lengths.pop()
        media = load_media(n_variants, batched=True, images=images, videos=videos, audio=audio)
        return other_media.with_media(self.hf_model, self.core, self.processor, inputs, n_variants, media)
