"""Temperature scaling makes probabilities as sure as they are right (Guo et al. 2017). Shapes: N rows, C classes."""

import numpy as np

SHARPEST, FLATTEST = 0.05, 20.0  # the temperatures that are tried
TINY = 1e-38  # stands for probabilities that float32 rounds to 0


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Returns what all logits are to be divided by, so that the labels are likeliest. labels: (N,); probabilities:
    (N, C). Returns None where each label has the largest probability: the lower the temperature, the likelier they
    are."""
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(np.asarray(probabilities, float), TINY))
    logits -= logits.max(1, keepdims=True)
    of_labels = logits[np.arange(len(labels)), labels]
    if (of_labels == 0).all():
        return None

    def nats(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(logits / temperature).sum(1)) - of_labels / temperature).mean())

    found = minimize_scalar(nats, bounds=np.log([SHARPEST, FLATTEST]), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))
