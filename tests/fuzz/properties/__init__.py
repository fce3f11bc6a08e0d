"""Every property, by area; importing registers them."""

from fuzz.properties import answers as answers
from fuzz.properties import changes as changes
from fuzz.properties import core as core
from fuzz.properties import edits as edits
from fuzz.properties import encoders as encoders
from fuzz.properties import kept as kept
from fuzz.properties import labels as labels
from fuzz.properties import mixing as mixing
from fuzz.properties import places as places
from fuzz.properties import reading as reading
from fuzz.properties import unembedding as unembedding
