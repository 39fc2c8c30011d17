"""The families, one entry each: their axes, the keys of transformers' config.json and the names of its tensors.

Data only. A family whose axes exist is added here and nowhere else, with a parity test. Module names on the left are
those of `lmkit.model`; several names on the right are stacked row by row in one tensor on the left; `{i}` runs over
blocks (for ALBERT `{g}` over groups and `{j}` inside a group).
"""

from lmkit.architecture.families.decoders import DECODERS
from lmkit.architecture.families.encoder_decoders import ENCODER_DECODERS
from lmkit.architecture.families.encoders import ENCODERS
from lmkit.architecture.families.spec import Family, HeadSpec

__all__ = ["FAMILIES", "Family", "HeadSpec"]

FAMILIES: dict[str, Family] = DECODERS | ENCODERS | ENCODER_DECODERS
