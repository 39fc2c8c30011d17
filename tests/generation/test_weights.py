"""Weights arranged for writing compute what they did; those of 8 bits almost, and each row by itself."""

import pytest
import torch

from lmkit.base.errors import UserError
from lmkit.generation.weights import Int8Linear, PackedLinear, prepare
from tests.model.families import ours, reference

TOKENS = torch.randint(3, 101, (5, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "gemma3_text"])
@pytest.mark.parametrize("rows", [1, 16])
def test_arranged_weights_compute_what_transformers_computes(name, rows):
    theirs, model = reference(name), ours(reference(name))
    prepare(model, None, rows)
    assert any(isinstance(m, PackedLinear) for m in model.modules()) == (rows > 1)
    assert any(not p.is_contiguous() for p in model.parameters()) == (rows == 1)
    with torch.no_grad():
        want = theirs(TOKENS).logits
        torch.testing.assert_close(model.head(model(TOKENS)), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "gemma3_text"])
def test_weights_of_8_bits_are_close_and_no_row_depends_on_others(name):
    model = ours(reference(name))
    with torch.no_grad():
        want = model.head(model(TOKENS))
        prepare(model, "int8", 1)
        got = model.head(model(TOKENS))
        assert 0 < (got - want).norm() / want.norm() < 0.04  # tiny matrices of random numbers: 127 steps are coarse
        layer = next(part for part in model.modules() if isinstance(part, Int8Linear))
        rows = (
            torch.randn(4, layer.width, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(4)[:, None]
        )
        alone = torch.cat([layer(row[None]) for row in rows])
        assert torch.equal(layer(rows), alone) and layer(rows[:, None]).shape == (4, 1, alone.size(1))


def test_a_layer_of_8_bits_loses_only_the_rounding_of_its_weights():
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((40, 64), (40,), (7, 64)))
    x[:, 3] *= 100  # an outlier, as Transformers have them
    scales = weight.abs().amax(1, keepdim=True) / 127
    want = x @ ((weight / scales).round() * scales).T + bias
    got = Int8Linear(weight, bias)(x)
    assert (got - want).abs().max() < 5e-4 * want.abs().max()


def test_another_quantisation_is_refused():
    with pytest.raises(UserError, match="allowed: int8"):
        prepare(ours(reference("gpt2")), "int4", 1)
