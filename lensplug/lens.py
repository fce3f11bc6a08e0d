"""MultimodalLens: a multimodal model whose language core is a TransformerLens model.

Created by `lensplug.load` or `lensplug.wrap`. It prepares inputs with the model's own processor and code, runs the core
with TransformerLens's hooks and cache, and checks that both compute the same. The TransformerLens model itself is
`lens.model`, with all its methods; it takes the inputs of the lens wherever it takes tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug import engines
from lensplug.cache.lens_cache import LensCache
from lensplug.engines.copying import copy_together
from lensplug.errors import LensplugError
from lensplug.hf import conversations, prompts
from lensplug.hf.conversations import Prompts, split_answers
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.run_lock import in_turn, refuse_training, turn
from lensplug.inputs import edited_inputs, other_media
from lensplug.inputs import multimodal_input as _inputs
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.interventions import in_force as interventions
from lensplug.interventions.edit import Edit
from lensplug.interventions.in_force import Acted
from lensplug.interventions.knockout import Knockout
from lensplug.media import load_media
from lensplug.media.processed_media import load_seen
from lensplug.patches.both.placeholders import placeholders_as_words
from lensplug.patches.both.temporary_hooks import temporary_hooks
from lensplug.patches.patch import in_force
from lensplug.positions.by_modality import Where, mask_at, named
from lensplug.positions.indices import Position
from lensplug.provenance import fingerprint as checkpoint
from lensplug.reductions import Keep, KeepGradients
from lensplug.running import caching, generation, gradients, knockout_runs, parity
from lensplug.running.caching import HookName, NamesFilter, Needed, Plan, PositionsOrModality, names_taken
from lensplug.running.edited_runs import EditedRuns, edited_runs
from lensplug.running.generation import Answer, Choosing
from lensplug.running.hook_checks import hook_names_of, known_hooks
from lensplug.running.memory_estimate import Estimate, refuse_too_large
from lensplug.running.parity import ParityReport
from lensplug.validation.arguments import checked, described
from lensplug.validation.finite import refuse_overflow
from lensplug.validation.masks import Mask

FwdHooks = Sequence[tuple[HookName | Callable[[str], bool], Callable[..., Any]]]
"""As TransformerLens takes them: names, or functions of the name, and functions of activation and hook."""


class MultimodalLens:
    """A Hugging Face multimodal model with its language core under TransformerLens.

    Threads that use one lens, or several on one Hugging Face model, wait for each other, also where they call
    `lens.model` itself; hooks that you leave on `lens.model` act in all their runs (see `lensplug.hf.run_lock`).
    A model in training mode is refused by every run.
    """

    def __init__(
        self,
        hf_model: Any,
        processor: Any,
        core: LanguageCore,
        model: Any,
        *,
        engine: engines.EngineName,
        process_weights: bool = False,
    ) -> None:
        """Use `lensplug.wrap` or `lensplug.load`."""
        self.hf_model = hf_model
        self.processor = processor
        self.core = core
        self.model = model
        self.engine = engine
        self.process_weights = process_weights
        checkpoint.remember(model, hf_model, core.decoder, core.head)

    def __deepcopy__(self, memo: dict[int, Any]) -> MultimodalLens:
        """A lens with its own copy of the weights, shared between its two models."""
        hf_model, model = copy_together(self.hf_model, self.model, memo)
        processor = copy.deepcopy(self.processor, memo)
        core = LanguageCore.of(hf_model)
        return MultimodalLens(
            hf_model, processor, core, model, engine=self.engine, process_weights=self.process_weights
        )

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None where there is no processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def __repr__(self) -> str:
        """Model, engine, size."""
        cfg = self.model.cfg
        return (
            f"MultimodalLens({type(self.hf_model).__name__} as {self.engine}: {cfg.n_layers} layers x {cfg.n_heads}"
            f" heads, d_model {cfg.d_model}, {str(self.core.dtype).removeprefix('torch.')} on {self.core.device})"
        )

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
            _, cache, grads = lens.run_with_gradients(answer.inputs, target=answer, keep="cam")
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
    def run_with_cache(
        self,
        inputs: MultimodalInput,
        *,
        names_filter: NamesFilter = None,
        needs: Needed = None,
        keep: Keep = None,
        query_positions: PositionsOrModality | None = None,
        residual_positions: PositionsOrModality | None = None,
        logit_positions: PositionsOrModality | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, ...] | None, LensCache]:
        """Logits and TransformerLens's ActivationCache, without gradients.

        By default everything is cached, as in TransformerLens; for a prompt with an image that is gigabytes. With only
        what the analyses read, and where they read it, a run costs about as much as running the model:

            _, cache = lens.run_with_cache(
                inputs, needs=[analysis.head_specialization, analysis.logit_lens],
                query_positions=[-1], residual_positions=[-1], logit_positions=[-1],
            )

        All positions may be negative (from the last that is not padding), a tensor with a row for each example, or a
        modality ("image"); `[]` keeps none. An analysis names the hooks that the cache lacks.

        Args:
            inputs: From `prepare` or `encode`.
            names_filter: Which hooks to keep: a name, several, or a function of the name; all by default. Names may be
                in TransformerLens's short form, "resid_post" for every layer, ("resid_post", 3) for one.
            needs: In its place, the analyses that will read the cache (or their names, "logit_lens"): keeps the hooks
                that they say they need. `functools.partial(analysis.activations, hook="z")` where options say what.
            keep: What to keep of attention patterns that are too large to keep, made in blocks of rows while the model
                runs; single heads' patterns are then kept for `query_positions` only. By name, or a reduction of
                `lensplug.reductions` with options:

                - "head_mean": the mean over heads, `[batch query key]` in each layer, in fp32
                  ("blocks.0.attn.head_mean"): what `attention_rollout` and `received_attention` read of all rows.
                - "rollout": `attention_rollout` itself, of all rows, one `[batch query key]` for all layers.
                - "modality_mass": what each query of each head gives to each modality: `head_specialization` of any
                  query position.
                - "received": what each key of each head receives of later queries: `sinks`.
            query_positions: Keep scores and patterns of these query positions only, in fp32, `[batch head row key]`
                in the order given (`cache.query_positions`). Attention then runs at the speed of SDPA, does not
                overflow in fp16, and no `head x pos x pos` tensor is made.
            residual_positions: Keep the residual stream at these positions only, `[batch row d_model]`
                (`cache.residual_positions`).
            logit_positions: Make logits at these positions only, `[batch row d_vocab]`.
            **kwargs: For TransformerLens's `run_with_cache` (`device="cpu"` moves what is kept;
                `return_type="loss"` gives the loss in place of the logits).

        Raises:
            LensplugError: If a name is no hook of the model, options do not go together, the run would need more
                memory than is free (see `estimate`), or, with `query_positions`, a hook of yours edits scores or
                patterns: the output would not change.
        """
        refuse_other_inputs(inputs)
        names_filter = known_hooks(self.model, names_filter)
        plan = Plan.of(
            self.model,
            inputs,
            names_filter=names_filter,
            needs=needs,
            keep=keep,
            query_positions=query_positions,
            residual_positions=residual_positions,
            logit_positions=logit_positions,
            **kwargs,
        )
        refuse_too_large(self.model, inputs, plan, engine=self.engine)
        with interventions.bound(self.model, inputs):
            return caching.run_with_cache(self.model, self.engine, inputs, plan)

    @checked
    def estimate(
        self,
        inputs: MultimodalInput,
        *,
        names_filter: NamesFilter = None,
        needs: Needed = None,
        keep: Keep = None,
        query_positions: PositionsOrModality | None = None,
        residual_positions: PositionsOrModality | None = None,
        logit_positions: PositionsOrModality | None = None,
        **kwargs: Any,
    ) -> Estimate:
        """The memory that a run would need, from shapes alone; nothing is run.

            print(lens.estimate(inputs, needs=[analysis.head_specialization], query_positions=[-1]))

        `run_with_cache` makes the same estimate, and refuses runs that do not fit into free memory.

        Args:
            inputs: From `prepare` or `encode`.
            names_filter: This and the rest as for `run_with_cache`.
            needs: Likewise.
            keep: Likewise.
            query_positions: Likewise.
            residual_positions: Likewise.
            logit_positions: Likewise.
            **kwargs: Likewise.

        Raises:
            LensplugError: As `run_with_cache`.
        """
        refuse_other_inputs(inputs)
        plan = Plan.of(
            self.model,
            inputs,
            names_filter=known_hooks(self.model, names_filter),
            needs=needs,
            keep=keep,
            query_positions=query_positions,
            residual_positions=residual_positions,
            logit_positions=logit_positions,
            **kwargs,
        )
        return Estimate.of(self.model, inputs, plan, engine=self.engine)

    @in_turn
    @checked
    def run_with_gradients(
        self,
        inputs: MultimodalInput,
        *,
        target: Target,
        position: Position = -1,
        names_filter: NamesFilter = None,
        keep: KeepGradients = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], LensCache, LensCache]:
        """Logits, activations and the gradient of a token's logit with respect to each of them.

            logits, cache, grads = lens.run_with_gradients(inputs, target="Red")
            result = analysis.gradient_rollout(cache, grads, rows=-1)

        `grads[name]` has the shape of `cache[name]` and is d(sum over the batch of the target's logit) /
        d(activation); examples do not mix, so it is the gradient of each example's own logit. All three are
        detached, and no parameter gets a gradient. Needs the memory of a training step without the parameters'
        gradients.

        Patterns are taken as free numbers, as in the literature. Processed weights are then another function of
        them: logits are centred, and folded value biases shift the gradient of each row of a pattern by a
        constant. For the model's own gradients use a lens without `process_weights`.

        Args:
            inputs: From `prepare` or `encode`.
            target: Whose logit: a word that is one token, a token id, a tensor of ids [batch]; a pair of them, for the
                difference of two logits; an answer of `generate` or `with_answer` (run on `answer.inputs`), or the
                inputs that hold it, for the sum over its tokens; or a function that makes one number of the logits
                [batch pos d_vocab]. `position` is for the first two.
            position: Where the logit is read, the place before the one it is written to, or one for each example;
                negative ones count from the last that is not padding.
            names_filter: Which hooks to keep, as in `run_with_cache`; by default every layer's `attn.hook_pattern`,
                which `analysis.gradient_rollout` needs, or with `keep` none.
            keep: What to keep in place of patterns and their gradients, for prompts of thousands of positions:
                "cam" and "cam_negative", the mean over heads of the positive (negative) part of gradient x
                attention, `[batch query key]` in each layer, in fp32, which `analysis.gradient_rollout` reads as
                well. Attention runs at the speed of SDPA, blocks are computed again in the backward pass (hooks fire
                again), and the logits are those that the target needs, `[batch row d_vocab]`, unless it is a function.

        Raises:
            LensplugError: If a name is no hook, the target is not one token or has no gradient, the position is
                out of range, or a gradient is not finite (fp16).
        """
        refuse_other_inputs(inputs)
        names_filter = known_hooks(self.model, names_filter)
        with interventions.bound(self.model, inputs):
            return gradients.run_with_gradients(
                self.model,
                self.engine,
                inputs,
                tokenizer=self.tokenizer,
                target=target,
                position=position,
                names_filter=names_filter,
                keep=keep,
            )

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

    @in_turn
    @checked
    def logits_at(
        self,
        inputs: MultimodalInput | Variant | Float[Tensor, "batch pos d_model"],
        rows: Int[Tensor, "batch row"],
        *,
        attention_mask: Mask | None = None,
        hidden: Where | None = None,
    ) -> Float[Tensor, "batch row d_vocab"]:
        """Logits at a few positions, at the speed of SDPA, optionally with attention knockout of some positions.

        Args:
            inputs: From `prepare` or `encode`, an edited copy of them (`without`, `lensplug.inputs.edited_inputs`), or
                merged embeddings `[batch pos d_model]`.
            rows: For each example the positions, from the left.
            attention_mask: For embeddings with padding, `[batch pos]`; inputs have their own.
            hidden: Positions that no query attends to, in any layer (attention knockout): a modality of the inputs
                ("image"), several, or a mask `[batch pos]` of True and False, or 1 and 0. Other positions do not move.

        Raises:
            LensplugError: If a hook edits scores or patterns, which would not change these logits.
        """
        if named(hidden) is not None:
            lens_inputs = inputs if isinstance(inputs, MultimodalInput) else None
            hidden = mask_at(
                cast(Where, hidden), lens_inputs, () if lens_inputs is None else lens_inputs.shape, "hidden"
            )
        with torch.no_grad(), self.logits_only(rows, hidden=cast("Mask | None", hidden)):
            logits: Tensor = self.model(inputs, attention_mask=attention_mask)
        return logits

    @checked
    @contextmanager
    def logits_only(
        self,
        rows: Int[Tensor, "batch row"],
        *,
        hidden: Mask | None = None,
        whole_patterns: bool = False,
    ) -> Iterator[None]:
        """A scope in which `lens.model` computes logits at a few positions only, at the speed of SDPA.

        For many runs with hooks from which only these logits are read (`analysis.activation_patching`).

        Args:
            rows: For each example the positions, from the left.
            hidden: As for `logits_at`.
            whole_patterns: Compute scores and patterns of all rows, at full cost, for hooks that edit them. Otherwise
                only those of `rows` are computed, so that an edit, which would have no effect, is detected and refused.
        """
        with ExitStack() as stack:
            stack.enter_context(turn(self.core.decoder.config))
            refuse_training(self.hf_model, "lens.hf_model")
            refuse_training(self.model, "lens.model")
            if not whole_patterns:
                stack.enter_context(engines.attention_rows(self.engine, self.model, rows, hidden=hidden))
            elif hidden is not None:
                raise LensplugError("positions cannot be hidden where whole patterns are made.")
            stack.enter_context(engines.logit_rows(self.model, rows))
            yield

    @checked
    @contextmanager
    def edited_runs(
        self,
        inputs: MultimodalInput,
        rows: Int[Tensor, "batch row"] | None = None,
        *,
        whole_patterns: bool = False,
        batch: int | None = None,
        gradients: bool = False,
    ) -> Iterator[EditedRuns]:
        """A scope of many runs of one prompt, each with an edit of its own: batched, and begun where they are edited.

            rows = torch.tensor([[inputs.shape[1] - 1]])
            with lens.edited_runs(inputs, rows) as runs:
                halved = runs.logits(1, [("blocks.3.hook_resid_pre", lambda stream, hook: stream / 2)], from_layer=3)

        Blocks below `from_layer` are not run again, and hooks of yours in them do not fire again. Under edits that are
        in force when the scope begins (`lens.intervene`), runs are whole, and one at a time.

        Args:
            inputs: From `prepare` or `encode`.
            rows: For each example the positions, from the left, whose logits are made; None: all, with whole patterns.
            whole_patterns: As for `logits_only`.
            batch: How many runs are made side by side (`runs.batch`); None: as many as fit into half of the free
                memory, and no more than make it faster.
            gradients: For runs of which gradients are taken.

        Raises:
            LensplugError: If batch is less than 1.
        """
        refuse_other_inputs(inputs)
        with turn(self.core.decoder.config):
            refuse_training(self.hf_model, "lens.hf_model")
            refuse_training(self.model, "lens.model")
            with edited_runs(
                self.model,
                self.engine,
                inputs,
                rows,
                whole_patterns=whole_patterns,
                batch=batch,
                whole_runs=bool(interventions.edits_on(self.model)),
                gradients=gradients,
            ) as runs:
                yield runs

    @in_turn
    @checked
    def read_under_each(
        self,
        inputs: MultimodalInput,
        variants: Sequence[Sequence[Knockout]],
        rows: Int[Tensor, " row"],
        read: Callable[[Tensor], Tensor],
        *,
        done: Callable[[int], None] = lambda passes: None,
    ) -> Tensor:
        """What is read of the logits of one prompt under each of many knockouts.

        Positions before the first that a knockout reaches are run once for all; the others of many knockouts run in one
        pass. Towards "last" a knockout costs one position.

            by_layer = [[Knockout("image", "last", layers=layer)] for layer in range(24)]
            last = torch.tensor([inputs.shape[1] - 1])
            lens.read_under_each(inputs, by_layer, last, lambda logits: logits[:, 0].argmax(-1))

        Args:
            inputs: One example, from `prepare` or `encode`.
            variants: For each the knockouts that are in force together; an empty one is the prompt as it is.
            rows: Positions, from the left, whose logits are read.
            read: Takes logits `[variant row d_vocab]` of some variants, returns what is kept, `[variant ...]`.
            done: Called behind each pass with the number of its variants.

        Returns:
            What `read` returned, in the order of the variants.

        Raises:
            LensplugError: If there are several examples or no variants, or a knockout changes nothing.
        """
        refuse_other_inputs(inputs)
        if len(inputs) != 1 or not variants:
            raise LensplugError(
                f"read_under_each is given {len(inputs)} examples and {len(variants)} variants, expected one example"
                " (inputs[0:1]) and at least one variant."
            )
        refuse_training(self.model, "lens.model")
        return knockout_runs.read_under(self.model, self.engine, inputs, variants, rows, read, done)

    @in_turn
    @checked
    def run_with_hooks(
        self,
        inputs: MultimodalInput,
        *,
        fwd_hooks: FwdHooks = (),
        **kwargs: Any,
    ) -> Any:
        """TransformerLens's `run_with_hooks`: hooks act during this call only, also if one raises.

        Names may be in TransformerLens's short form: `[("resid_post", function)]` in every layer,
        `[(("resid_post", 3), function)]` in one.

        Raises:
            LensplugError: If a name is no hook of the model.
        """
        refuse_other_inputs(inputs)
        hooks = self._by_whole_name(fwd_hooks)
        with (
            interventions.bound(self.model, inputs),
            refuse_overflow(self.model, inputs.attention_mask, each_score=True),
        ):
            return self.model.run_with_hooks(inputs, fwd_hooks=hooks, **kwargs)

    def _by_whole_name(self, fwd_hooks: FwdHooks) -> list[tuple[Any, Callable[..., Any]]]:
        """Hooks by their whole names: of a short form one for each layer."""
        return [(name, function) for names, function in fwd_hooks for name in hook_names_of(self.model, names)]

    @checked
    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[None]:
        """A scope with hooks of your own in every run of the lens, also in `generate`; they go also if a run raises.

            with lens.hooks([("resid_post", steer)]):
                lens.generate(inputs).text

        Args:
            fwd_hooks: As for `run_with_hooks`. A hook on scores or patterns makes runs compute all of them.

        Raises:
            LensplugError: If a name is no hook of the model.
        """
        hooks = [
            (name, function)
            for names, function in self._by_whole_name(fwd_hooks)
            for name in (names_taken(self.model, names) if callable(names) else [names])
        ]
        if fwd_hooks and not hooks:
            raise LensplugError("these functions of the name take no hook of this model: see lens.model.hook_dict.")
        with turn(self.core.decoder.config), temporary_hooks(self.model, hooks):
            yield

    @contextmanager
    def intervene(self, *edits: Any) -> Iterator[Acted]:
        """A scope in which every run of the lens is made under edits of `lensplug.interventions`.

            with lens.intervene(Knockout(from_="image", to="last", layers=range(2, 5))):
                lens.generate(inputs).text
            with lens.intervene(Steer(direction, layers=12, scale=0.1), Ablate(heads=[(3, 1)])) as acted:
                _, cache = lens.run_with_cache(inputs)
            acted.to_dataframe()

        They act in the order given, those of an outer scope first, in `run_with_cache`, `run_with_gradients`,
        `run_with_hooks`, `logits_at`, `generate` and `lens.model` itself, before hooks of yours; caches hold what they
        made, and results say so (`result.provenance.options["interventions"]`). After the scope the model is as it was.

        Args:
            *edits: `Knockout`, `Ablate`, `Steer`, `Replace`, `Scale`, `SpliceSAE`.

        Yields:
            What they did in the last run.

        Raises:
            LensplugError: If something is no edit; and, by a run, if a place or component is not there, or an edit did
                not act.
        """
        if wrong := [edit for edit in edits if not isinstance(edit, Edit) or isinstance(edit, type)]:
            raise LensplugError(
                f"{described(wrong[0])} is no edit: give those of lensplug.interventions, Knockout(from_='image')."
            )
        patch = interventions.InForce(self.model, edits)
        with turn(self.core.decoder.config), in_force(patch):
            yield patch.acted

    @contextmanager
    def placeholders_as_words(self) -> Iterator[None]:
        """A scope in which `lens.model` accepts placeholder tokens without media, as if they were text.

            with lens.placeholders_as_words():
                lens.model(inputs.tokens)                      # without the image

        Placeholder tokens mark where an image or sound goes, not its content: outside this scope `lens.model` refuses
        them, also if a tool of TransformerLens passes them.
        """
        with placeholders_as_words():
            yield

    @in_turn
    @checked
    def generate(
        self,
        inputs: MultimodalInput,
        *,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        fwd_hooks: FwdHooks = (),
    ) -> Answer:
        """The answer generated by the wrapped core; hooks on `lens.model` fire once per step.

            answer = lens.generate(inputs, max_new_tokens=8)
            answer = lens.generate(inputs, do_sample=True, temperature=0.7, top_p=0.9, seed=0)

        The first step runs the prompt, each further step one token with a key-value cache; logits are computed at the
        last position only. Attention runs at the speed of SDPA, unless a hook reads or edits scores or patterns: then
        all of them are computed. Tokens are chosen by transformers' own code, and the model's `generation_config` holds
        (penalties, forbidden words, the end); what is not followed is named in a warning.

        Args:
            inputs: From `prepare` or `encode`.
            max_new_tokens: At most this many; an answer ends earlier at an end-of-turn token.
            do_sample: Choose tokens by chance; without it the likeliest is taken, whatever `generation_config` says.
            temperature: With `do_sample`, what logits are divided by; that of `generation_config` if not given.
            top_p: With `do_sample`, nucleus sampling: the probability mass, in (0, 1], of the tokens that are kept.
            top_k: With `do_sample`, how many of the likeliest tokens are left.
            seed: With `do_sample`, where chance begins: the same answer again, and nothing changes for other code.
            stop_strings: An answer ends where it has one of them; it belongs to the answer.
            fwd_hooks: Hooks for this answer, as for `run_with_hooks`: each is called once for the prompt, then once for
                each token, with one position.

        Raises:
            LensplugError: If a value is invalid, the prompt is padded at its right, the answer would
                leave the model's context, or the run would need more memory than is free.
        """
        refuse_other_inputs(inputs)
        choosing = Choosing(max_new_tokens, do_sample, temperature, top_p, top_k, seed, stop_strings)
        with self.hooks(fwd_hooks) if fwd_hooks else nullcontext():
            return self._generate(inputs, choosing)

    def _generate(self, inputs: MultimodalInput, choosing: Choosing) -> Answer:
        whole_patterns = engines.makes_whole_patterns(self.engine, self.model)
        options: dict[str, Any] = {} if whole_patterns else {"query_positions": []}
        plan = Plan.of(self.model, inputs, names_filter=[], logit_positions=[-1], **options)
        Estimate.of_answer(self.model, inputs, plan, choosing.max_new_tokens, engine=self.engine).refuse_too_large()
        with (
            interventions.bound(self.model, inputs, generating=True),
            refuse_overflow(self.model, inputs.attention_mask, each_score=whole_patterns),
        ):
            return generation.generate(
                self.model, self.engine, self.hf_model, self.core, self.tokenizer, inputs, choosing
            )

    @in_turn
    @checked
    def check(self, inputs: MultimodalInput, *, whole_patterns: bool = False) -> ParityReport:
        """The full Hugging Face model with SDPA attention against the wrapped core, on the same input.

        Both run once, the wrapped core at the speed of SDPA as well: about twice the time of one. Residual streams are
        compared at all positions, logits at up to 128 of each example, the ones furthest apart among them. In float16
        it also counts heads whose scores overflow when full patterns are computed.

        The inputs of an answer no longer hold media: the full model then starts from the same embeddings.

        Args:
            inputs: From `prepare`, `encode` or an answer.
            whole_patterns: Run the wrapped core with full patterns, as when they are cached or hooked: gigabytes at
                thousands of positions. `lensplug.wrap` does this on a short text.

        Raises:
            LensplugError: If the run would need more memory than is free.
        """
        refuse_other_inputs(inputs)
        if edits := tuple(getattr(self.model, "interventions", ())):
            raise LensplugError(
                f"{edits[0]} is in force, so that the model is meant to differ from the full one: leave the scope of"
                " lens.intervene first."
            )
        makes_whole_patterns = whole_patterns or engines.makes_whole_patterns(self.engine, self.model)
        options: dict[str, Any] = {} if makes_whole_patterns else {"query_positions": []}
        plan = Plan.of(self.model, inputs, names_filter=[], logit_positions=[-1], **options)
        Estimate.of_check(self.model, inputs, plan, parity.ROWS, engine=self.engine).refuse_too_large()
        embedded = {"inputs_embeds": inputs.embeds, "attention_mask": inputs.attention_mask}
        return parity.compare(
            self.hf_model,
            self.core,
            self.model,
            model_inputs=inputs.model_inputs or embedded,
            wrapped_input=inputs,
            attention_mask=inputs.attention_mask,
            centered=self.process_weights,
            engine=self.engine,
            whole_patterns=whole_patterns,
        )
