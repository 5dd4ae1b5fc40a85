"""Every quantizer whose fields don't contradict each other."""

import itertools

from quartet_compile.errors import QuantizerError
from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.quantizer import Quantizer


def legal_quantizers():
    """Every legal combination of the fields, and of some headrooms with E4M3 scales."""
    spans = [{}, {"largest_scale": 256.0}, {"headroom": 17 / 16}, {"headroom": 17 / 16 * 0.93, "largest_scale": 255.99}]
    allowed = formats.allowed_values()
    for values in itertools.product(*allowed.values()):
        fields = dict(zip(allowed, values, strict=True))
        for span in spans if fields["scale_format"] == "e4m3" else spans[:1]:
            try:
                yield Quantizer(**fields, **span)
            except QuantizerError:
                continue
