"""Weights in eight bits, by torchao through Transformers' own `quantization_config`."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import CaeAvError


if TYPE_CHECKING:
    from transformers import TorchAoConfig


# Linear maps whose weight is more than the right side of a product, as regular expressions on module names. All other
# linear maps are quantized; LSTMs, convolutions, grouped maps and embeddings are none.
NOT_QUANTIZED = (
    # Their weights are multiplied from the left, averaged and summed, so that no large map need be formed.
    r".*\.cross_modal_map",
    # Rows and columns of their weights are chosen by the number of frames.
    r".*\.token_mixer",
    # Small, and run once: what they say of relative positions is kept.
    r".*\.cpb_mlp",
    # Read by PyTorch's own attention, not by a module.
    r".*\.attn\.out_proj",
)


def int8_config() -> "TorchAoConfig":
    """
    Return a `quantization_config` for `from_pretrained` that keeps the weights of linear maps as int8, with one scale
    per output channel; what they are multiplied with stays as it is. `NOT_QUANTIZED` names the linear maps left out.

    Raises:
        CaeAvError: torchao is missing.
    """
    if find_spec("torchao") is None:
        raise CaeAvError('int8 weights need torchao: pip install "caeav-hf[export]"')
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(NOT_QUANTIZED))
