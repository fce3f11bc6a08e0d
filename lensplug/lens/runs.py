"""One run of a prompt by a lens: activations, gradients, the memory it needs, and Hugging Face's run beside it."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lensplug import engines
from lensplug.cache.lens_cache import LensCache
from lensplug.errors import LensplugError
from lensplug.hf.run_lock import in_turn
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput, refuse_other_inputs
from lensplug.interventions import in_force as interventions
from lensplug.lens.wrapped_model import WrappedModel
from lensplug.positions.indices import Position
from lensplug.reductions import Keep, KeepGradients
from lensplug.running import caching, gradients, parity
from lensplug.running.caching import NamesFilter, Needed, Plan, PositionsOrModality
from lensplug.running.hook_checks import known_hooks
from lensplug.running.memory_estimate import Estimate, refuse_too_large
from lensplug.running.parity import ParityReport
from lensplug.validation.arguments import checked


class Runs(WrappedModel):
    """The methods of a lens that run a prompt once."""

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
                well; "gradient_rollout", that analysis at the rows where the target is read, multiplied up while
                gradients are taken, `[batch row key]` in all (`reductions.GradientRolloutRows` for other rows and
                options). Attention runs at the speed of SDPA, blocks are computed again in the backward pass (hooks
                fire again), and the logits are those that the target needs, `[batch row d_vocab]`, unless it is a
                function.

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
