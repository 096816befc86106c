"""Int8 weights, by torchao through the `quantization_config` of Transformers."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import CaeAvError


if TYPE_CHECKING:
    from transformers import TorchAoConfig


# Linear layers whose weights are used in other ways than by calling the layer, as regular expressions on module names.
# All other linear layers are quantized; LSTMs, convolutions, grouped maps and embeddings are not linear layers.
NOT_QUANTIZED = (
    # Their weights are multiplied from the left, averaged and summed, to avoid forming a large map.
    r".*\.cross_modal_map",
    # Rows and columns of their weights are selected by the number of frames.
    r".*\.token_mixer",
    # Small and run once: their output, the bias of relative positions, is cached.
    r".*\.cpb_mlp",
    # Read by PyTorch's attention function instead of called.
    r".*\.attn\.out_proj",
)


def int8_config() -> "TorchAoConfig":
    """
    Return a `quantization_config` for `from_pretrained` that stores the weights of linear layers as int8, with one
    scale per output channel; activations are not quantized. `NOT_QUANTIZED` names the layers left out.

    Raises:
        CaeAvError: torchao is missing.
    """
    if find_spec("torchao") is None:
        raise CaeAvError('int8 weights need torchao: pip install "caeav-hf[export]"')
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(NOT_QUANTIZED))
