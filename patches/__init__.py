"""What HookedTransformer lacks, one gap per file, each patch reversible and usable by itself.

`config_fix` makes a HookedTransformer the language core of a Hugging Face model in memory;
`embedding_input` lets it take merged embeddings wherever it takes tokens; `logit_directions` makes
`logit_attrs` sum to the logit without folding. Importing this package changes nothing: a patch acts on one
instance, when it is applied, until it is removed.

    with EmbeddingInput(model):
        logits, cache = model.run_with_cache(embeds, tokens=tokens, attention_mask=mask)
"""

from lensplug.patches.config_fix import ConfigFix as ConfigFix
from lensplug.patches.embedding_input import EmbeddingInput as EmbeddingInput
from lensplug.patches.logit_directions import LogitDirections as LogitDirections
