"""Arrays of numpy, JAX and torch as numpy's; none of the frameworks is imported."""

from typing import Any

import numpy as np


def is_torch(values: Any) -> bool:
    """Whether it is a tensor of torch."""
    return type(values).__module__.partition(".")[0] == "torch"


def host_array(values: Any) -> np.ndarray:
    """Return an array or a tensor, from whichever device, as an array of numpy.

    torch's bfloat16 becomes float32, which holds it exactly; numpy does not know it.
    """
    if not is_torch(values):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
