"""The model computes what the challenge's baseline computes: logits, losses and every gradient, to float32 rounding."""

import json

import numpy as np
import pytest
import torch

from pgolf.core.model.config import ModelConfig
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.tied_embed import TiedEmbed
from pgolf.core.model.parts.untied_embed import UntiedEmbed

CASES = ("tied", "untied", "smallemb")


def build(data):
    """Model, inputs, targets and tolerances of one golden file."""
    meta = json.loads(str(data["meta"]))
    given = meta["config"]
    config = ModelConfig(
        **{key: given[key] for key in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")},
        embed=TiedEmbed() if given["tie_embeddings"] else UntiedEmbed(),
        position=Rope(base=given["rope_base"]),
        mlp=Relu2(mult=float(given["mlp_mult"])),
        logit_softcap=TanhSoftcap(cap=given["logit_softcap"]),
    )
    model = GPT(config)
    weights = {key.removeprefix("param."): torch.from_numpy(data[key]) for key in data if key.startswith("param.")}
    model.load_state_dict(weights)
    return model, torch.from_numpy(data["input_ids"]), torch.from_numpy(data["target_ids"]), meta["tolerance"]


@pytest.fixture(params=CASES)
def case(request, oracle):
    """(data, model, inputs, targets, tolerances) for each golden model."""
    data = oracle(f"baseline_gpt_{request.param}.npz")
    return data, *build(data)


def test_logits(case):
    data, model, ids, _, tolerance = case
    with torch.no_grad():
        logits = model.head(model.hidden(ids)).numpy()
    assert logits.shape == data["logits"].shape
    np.testing.assert_allclose(logits, data["logits"], rtol=0, atol=tolerance["logits_abs"])


def test_losses(case):
    data, model, ids, targets, tolerance = case
    with torch.no_grad():
        nll, loss = model.nll(ids, targets), model(ids, targets)
    np.testing.assert_allclose(nll.numpy(), data["nll"], rtol=0, atol=tolerance["logits_abs"])
    assert float(loss) == pytest.approx(float(data["loss"]), abs=tolerance["loss_abs"])
    assert float(nll.double().mean()) == pytest.approx(float(data["loss"]), abs=tolerance["loss_abs"])


def test_nll_from_a_later_start_is_the_tail_of_the_whole(case):
    _, model, ids, targets, _ = case
    with torch.no_grad():
        whole, tail = model.nll(ids, targets), model.nll(ids, targets, start=7)
    assert tail.shape == (len(ids), ids.size(1) - 7)
    torch.testing.assert_close(tail, whole[:, 7:], rtol=0, atol=1e-5)


def reductions(grad):
    """The three forms in which a gradient may be stored."""
    return {"grad": grad, "gradrow": grad.sum(axis=-1), "gradcol": grad.sum(axis=-2) if grad.ndim > 1 else grad}


def test_every_gradient(case):
    data, model, ids, targets, tolerance = case
    model(ids, targets).backward()
    checked = set()
    for name, weight in model.named_parameters():
        grad = weight.grad.double().numpy()
        allowed = tolerance["grad_rel_to_max"] * np.abs(grad).max()
        for form, value in reductions(grad).items():
            if f"{form}.{name}" in data:
                wanted = data[f"{form}.{name}"]
                np.testing.assert_allclose(value, wanted, rtol=0, atol=allowed, err_msg=f"{form}.{name}")
                checked.add(f"{form}.{name}")
        norm = float(data[f"gradnorm.{name}"])
        assert np.linalg.norm(grad) == pytest.approx(norm, rel=tolerance["grad_rel_to_max"]), name
        checked.add(f"gradnorm.{name}")
    assert checked == {key for key in data if key.startswith("grad")}
